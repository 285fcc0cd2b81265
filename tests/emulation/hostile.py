"""Hostile arguments must lead to an error or a result, never to a fault in a kernel."""

import pytest
import torch

from tests.emulation import plugin  # noqa: F401  # loads the emulated operators
from tests.ops.hostile import calls

TWICE = [f"detection_loss_rescale_: {maps}_grads longer" for maps in ("cls", "box", "centerness")]
"""Lists of outputs that contain the same tensor twice."""


@pytest.mark.timeout(600)
def test_no_kernel_faults():
    faults = []
    for operator, description, arguments, _ in calls():
        try:
            getattr(torch.ops.fcos_fast, operator)(*arguments)
        except Exception as error:
            if ", block (" in str(error):  # the format of the emulation's messages
                faults.append(f"{operator}: {description}")
    assert faults == TWICE
