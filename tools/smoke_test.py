"""Test an installed fcos_fast with nothing but torch and numpy: every native CPU operator against its reference.

Run it in the environment to test, from any folder: ``python -I tools/smoke_test.py``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import fcos_fast
from fcos_fast import _extension, ops, reference
from fcos_fast.assignment import RULES, GroundTruth

RULE = RULES["official"]
IMAGE_SIZE = (64, 96)
LEVELS = RULE.levels([(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)], IMAGE_SIZE)
STRIDES = [level.stride for level in LEVELS]
CLASSES, BATCH = 3, 2


def check_installation() -> None:
    """The imported package is the installed one, it is complete, and its binaries load."""
    folder = Path(fcos_fast.__file__).parent
    assert "site-packages" in folder.parts, f"fcos_fast was imported from {folder}, not from site-packages"
    assert fcos_fast.__version__ == version("fcos_fast")
    assert (folder / "py.typed").is_file(), "py.typed is missing: type checkers ignore the package"
    assert list((folder / "configs").glob("*.yaml")), "the recipes are missing"
    assert find_spec("torchvision") is None, (
        "torchvision is installed: the test is for an environment without it"
    )
    subprocess.run([sys.executable, "-I", "-m", "fcos_fast.info"], check=True)
    if list(folder.glob("_C_cuda.*")) and torch.version.cuda:
        assert _extension.cuda_error is None, _extension.cuda_error


def random_boxes(*shape: int) -> Tensor:
    """Boxes (*shape, 4) inside the image, at least 2 pixels wide and high."""
    corners = torch.rand(*shape, 2) * 40
    return torch.cat((corners, corners + torch.rand(*shape, 2) * 20 + 2), dim=-1)


def random_maps(channels: int) -> list[Tensor]:
    """A map (B, channels, H, W) per level."""
    return [torch.randn(BATCH, channels, level.height, level.width) for level in LEVELS]


def operator_calls() -> dict[str, tuple[Callable, list[Tensor]]]:
    """For each operator: a function that calls it in a module, and the inputs whose gradients are compared."""
    gt = GroundTruth.pack(list(random_boxes(BATCH, 4)), list(torch.randint(CLASSES, (BATCH, 4))))
    logits, classes = torch.randn(50, CLASSES), torch.randint(-2, CLASSES, (50,))
    pred, target = random_boxes(50), random_boxes(50)
    boxes, scores = random_boxes(BATCH, 40), torch.rand(BATCH, 40)
    labels = torch.randint(CLASSES, (BATCH, 40))
    maps = random_maps(CLASSES), [x.abs() + 0.1 for x in random_maps(4)], random_maps(1)
    targets = reference.assign_targets(gt, LEVELS, RULE)
    x = torch.randn(BATCH, 8, 5, 7)
    sizes = [IMAGE_SIZE] * BATCH
    return {
        "assign_targets": (lambda m: vars(m.assign_targets(gt, LEVELS, RULE)), []),
        "batched_nms": (lambda m: m.batched_nms(boxes[0], scores[0], labels[0], 0.5), []),
        "box_loss": (lambda m: m.box_loss(pred, target, "ciou"), [pred]),
        "centerness": (lambda m: m.centerness(pred), [pred]),
        "detection_loss": (lambda m: m.detection_loss(*maps, targets, units=STRIDES), tree_leaves(maps)),
        "group_norm_relu": (lambda m: m.group_norm_relu(x, 4), [x]),
        "match_anchors": (lambda m: vars(m.match_anchors(boxes[0], gt)), []),
        "nms": (lambda m: m.nms(boxes[0], scores[0], 0.5), []),
        "nms_padded": (lambda m: m.nms_padded(boxes, scores, labels, 0.5, 10), []),
        "postprocess": (lambda m: m.postprocess(*maps, LEVELS, sizes, units=STRIDES), []),
        "sigmoid_focal_loss": (lambda m: m.sigmoid_focal_loss(logits, classes), [logits]),
        "sigmoid_focal_loss_star": (lambda m: m.sigmoid_focal_loss_star(logits, classes), [logits]),
    }


def results_and_gradients(result: object, inputs: list[Tensor]) -> list[Tensor]:
    """All tensors of a result, and the gradients of their sum."""
    tensors = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
    return tensors + (list(torch.autograd.grad(sum(x.sum() for x in tensors), inputs)) if inputs else [])


def check_operator(name: str, call: Callable, inputs: list[Tensor]) -> None:
    """Native and reference agree in every tensor of the result and in the gradients."""
    for x in inputs:
        x.requires_grad_()
    with fcos_fast.backend("native"):
        actual = results_and_gradients(call(ops), inputs)
    expected = results_and_gradients(call(reference), inputs)
    for x in inputs:
        x.requires_grad_(False)
    torch.testing.assert_close(actual, expected, msg=lambda text: f"{name}: {text}")
    print(f"{name:26}equals the reference ({len(actual)} results and gradients)")


def main() -> int:
    """Run all checks; the first that fails raises."""
    torch.manual_seed(0)
    check_installation()
    calls = operator_calls()
    assert sorted(calls) == sorted(ops.__all__), "an operator has no call here"
    for name, (call, inputs) in calls.items():
        check_operator(name, call, inputs)
    print(f"fcos_fast {fcos_fast.__version__} with torch {torch.__version__}: {len(calls)} operators passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
