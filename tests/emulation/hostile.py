"""What an operator does with arguments that nobody should give it: an error or a result, never a fault in a kernel."""

import pytest
import torch

from tests.emulation import plugin  # noqa: F401, the operators are the emulated ones
from tests.ops.hostile import calls

TWICE = [f"detection_loss_rescale_: {maps}_grads longer" for maps in ("cls", "box", "centerness")]
"""The same tensor twice in a list that is written."""


@pytest.mark.timeout(600)
def test_no_kernel_faults():
    faults = []
    for operator, description, arguments, _ in calls():
        try:
            getattr(torch.ops.fcos_fast, operator)(*arguments)
        except Exception as error:
            if ", block (" in str(error):  # as the emulation begins its messages
                faults.append(f"{operator}: {description}")
    assert faults == TWICE
