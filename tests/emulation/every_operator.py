"""Every registered operator once, while a graph is captured. Needs the plugin; `tests.emulation.run` brings it."""

import contextlib

import pytest
import torch

from tests.emulation.plugin import captured, of_cpu, outcome
from tests.ops.arguments import tensors_in

WAITING = {"nms"}  # the size of its result is data


@pytest.mark.parametrize("name", sorted(of_cpu))
def test_equals_the_cpu_operator_and_never_waits(name):
    with contextlib.nullcontext() if name in WAITING else captured():
        actual = outcome(name)
    for a, b in zip(tensors_in(actual), tensors_in(of_cpu[name]), strict=True):
        torch.testing.assert_close(a, b)
