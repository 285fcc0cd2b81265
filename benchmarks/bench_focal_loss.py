"""Sum of the focal loss and its gradient, for the logits of two 800x1088 images and the 91 classes of torchvision.

torchvision takes dense targets only. Beside class targets it gets them ready-made: building them is not in its time.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from benchmarks.case import COMPILED, OURS, Case, loss_and_gradients, torchvision
from fcos_fast import ops, reference

LOCATIONS, CLASSES = 36_268, 91


def make(device, dtype):
    logits = (2 * torch.randn(LOCATIONS, CLASSES) - 4).to(device, dtype).requires_grad_()
    classes = torch.randint(CLASSES, (LOCATIONS,))
    classes[torch.rand(LOCATIONS) > 0.01] = -1  # background
    one_hot = F.one_hot(classes.clamp(min=0), CLASSES) * (classes >= 0)[:, None]
    return logits, classes.to(device), one_hot.to(device, dtype)


def on_classes(loss):
    return loss_and_gradients(lambda logits, classes, dense: loss(logits, classes, reduction="sum"))


def on_dense(loss):
    return loss_and_gradients(lambda logits, classes, dense: loss(logits, dense, reduction="sum"))


def rows(on_targets):
    rows = {
        "reference": on_targets(reference.sigmoid_focal_loss),
        COMPILED: on_targets(torch.compile(reference.sigmoid_focal_loss)),
    }
    if torchvision:
        rows["torchvision"] = on_dense(torchvision.ops.sigmoid_focal_loss)
    rows[OURS] = on_targets(ops.sigmoid_focal_loss)
    rows["floor: copy of the logits"] = lambda logits, classes, dense: logits.detach().clone()
    return rows


def check(result, expected):
    """torchvision computes and sums bfloat16 in bfloat16, fcos_fast in float32."""
    rtol = 5e-2 if expected[1].dtype == torch.bfloat16 else 1e-4
    (loss, grad), (expected_loss, expected_grad) = result, expected
    torch.testing.assert_close(loss, expected_loss, rtol=rtol, atol=0, check_dtype=False)
    torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=rtol / 100)


CASES = [
    Case(
        "focal_loss",
        f"{LOCATIONS:,} x {CLASSES} {str(dtype).removeprefix('torch.')}, {kind}",
        functools.partial(make, dtype=dtype),
        rows(on_targets),
        check,
    )
    for dtype in (torch.float32, torch.bfloat16)
    for kind, on_targets in (("dense targets", on_dense), ("class targets", on_classes))
]


def test_focal_loss(time_row):
    time_row()
