"""Runs every registered operator once inside a graph capture. Needs the plugin, which `tests.emulation.run` loads."""

import contextlib

import pytest
import torch

from tests.emulation.plugin import captured, of_cpu, outcome
from tests.ops.arguments import tensors_in

SYNCHRONIZING = {"nms"}  # the shape of its result depends on the data


@pytest.mark.parametrize("name", sorted(of_cpu))
def test_equals_the_cpu_operator_and_never_synchronizes(name):
    with contextlib.nullcontext() if name in SYNCHRONIZING else captured():
        actual = outcome(name)
    for a, b in zip(tensors_in(actual), tensors_in(of_cpu[name]), strict=True):
        torch.testing.assert_close(a, b)
