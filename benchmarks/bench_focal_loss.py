"""Sum of the focal loss and its gradient, for the logits of a batch.

torchvision only supports dense targets. In cases with class targets, its time does not include converting them.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from benchmarks.case import Case, loss_and_gradients, nbytes, torchvision
from benchmarks.data import BATCHES
from benchmarks.rows import COMPILED, OURS
from fcos_fast import ops, reference


def make(device, batch, dtype):
    shape = batch.locations, batch.classes
    logits = (2 * torch.randn(shape) - 4).to(device, dtype).requires_grad_()
    classes = torch.randint(batch.classes, shape[:1])
    classes[torch.rand(shape[0]) > 0.01] = -1  # background
    one_hot = F.one_hot(classes.clamp(min=0), batch.classes) * (classes >= 0)[:, None]
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


def check(result, expected, data):
    """torchvision computes in bfloat16; fcos_fast computes in float32 and returns a float32 sum."""
    rtol = 5e-2 if expected[1].dtype == torch.bfloat16 else 1e-4
    (loss, grad), (expected_loss, expected_grad) = result, expected
    torch.testing.assert_close(loss, expected_loss.float(), rtol=rtol, atol=0)
    torch.testing.assert_close(grad, expected_grad, rtol=rtol, atol=rtol / 100)


KINDS = {
    "dense targets": (on_dense, lambda logits, classes, dense: 2 * nbytes(logits) + nbytes(dense)),
    "class targets": (on_classes, lambda logits, classes, dense: 2 * nbytes(logits) + nbytes(classes)),
}

CASES = [
    Case(
        "focal_loss",
        f"{batch.locations:,} x {batch.classes} {str(dtype).removeprefix('torch.')}, {kind}",
        functools.partial(make, batch=batch, dtype=dtype),
        rows(on_targets),
        check,
        devices=(device,),
        bytes_moved=bytes_moved,
    )
    for device, batch in BATCHES.items()
    for dtype in (torch.float32, torch.bfloat16)
    for kind, (on_targets, bytes_moved) in KINDS.items()
]


def test_focal_loss(time_row):
    time_row()
