"""What a case says of its peer, tried on ``meta``, which stands for a GPU that nobody may wait for."""

from __future__ import annotations

import pytest
import torch

from benchmarks.case import timed_on
from tests.engine.test_step import NeverWaits


class NeverWaitsOnCuda(NeverWaits):
    """Where a mask is filled with one number, CUDA does not count its elements."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.index_put_ and args[2].ndim == 0:
            return args[0]
        return super().__torch_dispatch__(func, types, args, kwargs)


CASES = list({case.operator: case for case in timed_on("cuda")}.values())


@pytest.mark.parametrize("case", CASES, ids=[case.operator for case in CASES])
def test_a_peer_that_is_captured_does_not_wait(case):
    """A failed capture would cost the row, and a new process."""
    torch.manual_seed(0)
    try:
        data = case.data("meta")
    except NotImplementedError:  # made by an operator of ours, which has no kernel there
        assert case.peer_waits
        return
    with NeverWaitsOnCuda():
        if case.peer_waits:
            with pytest.raises((RuntimeError, NotImplementedError)):
                case.rows[case.peer](*data)
        else:
            case.rows[case.peer](*data)
