"""Whether a peer synchronizes as its case declares. Tested on the device ``meta``, which cannot be synchronized."""

from __future__ import annotations

import pytest
import torch

from benchmarks.case import timed_on
from tests.engine.test_step import NeverWaits


class NeverWaitsOnCuda(NeverWaits):
    """On CUDA, filling a mask with one number does not synchronize."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.index_put_ and args[2].ndim == 0:
            return args[0]
        return super().__torch_dispatch__(func, types, args, kwargs)


CASES = list({case.operator: case for case in timed_on("cuda")}.values())


@pytest.mark.parametrize("case", CASES, ids=[case.operator for case in CASES])
def test_a_captured_peer_does_not_synchronize(case):
    """A failed capture would cost the row and need a new process."""
    torch.manual_seed(0)
    try:
        data = case.data("meta")
    except NotImplementedError:  # created by our operator, which has no meta kernel
        assert case.peer_synchronizes
        return
    with NeverWaitsOnCuda():
        if case.peer_synchronizes:
            with pytest.raises((RuntimeError, NotImplementedError)):
                case.rows[case.peer](*data)
        else:
            case.rows[case.peer](*data)
