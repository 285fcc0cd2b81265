"""Small valid arguments of every registered operator (including private ones), in the order of its schema."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from fcos_fast import ops, reference
from fcos_fast.assignment import RULES, GroundTruth

RULE = RULES["official"]
STRIDES = (8, 16)
LEVELS = RULE.levels([(4, 6), (2, 3), (1, 1), (1, 1), (1, 1)], (32, 48))[:2]
CLASSES, BATCH = 3, 2


def registered() -> set[str]:
    """Names of all operators in the extension."""
    assert ops is not None  # importing it registers them
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("fcos_fast::") for name in names if name.startswith("fcos_fast::")}


def ground_truth() -> GroundTruth:
    boxes = torch.tensor([[1.0, 2.0, 20.0, 25.0], [10.0, 4.0, 40.0, 30.0], [0.0, 0.0, 9.0, 9.0]])
    return GroundTruth.pack([boxes[:2], boxes[2:]], [torch.tensor([0, 2]), torch.tensor([1])])


def maps(channels: int) -> list[torch.Tensor]:
    return [torch.rand(BATCH, channels, level.height, level.width) + 0.1 for level in LEVELS]


def valid_arguments() -> dict[str, tuple]:
    """New tensors each time, since some operators write into their arguments."""
    torch.manual_seed(0)
    gt = ground_truth()
    targets = reference.assign_targets(gt, LEVELS, RULE)
    logits, regression, quality = maps(CLASSES), maps(4), maps(1)
    inputs, labels = torch.randn(5, CLASSES), torch.tensor([0, 2, -1, -2, 1])
    of_rows = torch.tensor([0.5, 2, 2, 1, 3])
    pred, target = torch.rand(6, 4) + 0.1, torch.rand(6, 4) + 0.1
    boxes, scores = torch.rand(BATCH, 7, 4), torch.rand(BATCH, 7)
    boxes[..., 2:] += boxes[..., :2]
    idxs = torch.randint(0, 2, (BATCH, 7))
    x, weight = torch.randn(BATCH, 8, 3, 3), torch.rand(8)
    _, mean, rstd = torch.ops.fcos_fast.group_norm_relu(x, weight, weight, 2, 1e-5)
    channels_last = torch.randn(BATCH, 8, 7, 5).to(memory_format=torch.channels_last)
    box = ("giou", True, 0.0, 1e-7)
    loss = (
        *(logits, regression, quality, targets.labels, targets.ltrb, targets.centerness, targets.totals),
        *(torch.ones(3, BATCH), [float(s) for s in STRIDES], 0.25, 2.0, "giou", 0.0, 1e-7, True, True),
    )
    return {
        "sigmoid_focal_loss": (inputs, labels, of_rows, 0.25, 2.0),
        "sigmoid_focal_loss_sum": (inputs, labels, of_rows, 0.25, 1.5, True),
        "sigmoid_focal_loss_backward": (torch.rand(5, CLASSES), inputs, labels, None, 0.25, 2.0),
        "sigmoid_focal_loss_star": (inputs, torch.rand(5, CLASSES), None, 2.0, 1.0),
        "sigmoid_focal_loss_star_sum": (inputs, labels, of_rows, 2.0, 1.0, True),
        "sigmoid_focal_loss_star_backward": (torch.tensor(1.0), inputs, labels, of_rows, 2.0, 1.0),
        "assign_targets": (
            *gt.tensors(),
            [size for level in LEVELS for size in (level.height, level.width)],
            [
                float(g)
                for level in LEVELS
                for g in (level.stride, *level.step, *level.offset, *level.size_range)
            ],
            *("closed", "center_clipped", "area", 1.5),
        ),
        "match_anchors": (
            torch.rand(9, 4) * 9 + torch.tensor([0, 0, 9, 9]),
            *gt.tensors(),
            0.5,
            0.4,
            "last_claim",
            0.1,
        ),
        "centerness": (pred,),
        "centerness_backward": (torch.rand(6), pred),
        "box_loss": (pred, target, *box),
        "box_loss_sum": (pred, target, *box),
        "box_loss_backward": (torch.rand(6), pred, target, *box),
        "detection_loss": (*loss, True),
        "detection_loss_backward": (torch.rand(3), *loss),
        "detection_loss_rescale_": (maps(CLASSES), maps(4), maps(1), torch.rand(3)),
        "group_norm_relu": (x, weight, weight, 2, 1e-5),
        "group_norm_relu_backward": (torch.rand_like(x), x, mean, rstd, weight, weight),
        "winograd_input": (channels_last, 3, torch.rand(36, 5, 8)),
        "winograd_gradient": (channels_last, 3, torch.rand(36, 5, 8)),
        "winograd_output": (torch.rand(36, 5, 8), weight, 3, channels_last.clone()),
        "nms": (boxes[0], scores[0], idxs[0], 0.5),
        "nms_padded": (boxes, scores, idxs, 0.5, 5),
        "postprocess": (
            *(logits, regression, quality, torch.tensor([[32, 48], [30, 40]])),
            [
                float(g)
                for level, s in zip(LEVELS, STRIDES, strict=True)
                for g in (*level.step, *level.offset, s)
            ],
            *("sqrt", 0.05, True, True, 20, True, False, 0.6, False, 10, False, True, False),
        ),
    }


def tensors_in(tree) -> list[Tensor]:
    """All tensors in nested lists, tuples, dictionaries and dataclasses."""
    if isinstance(tree, Tensor):
        return [tree]
    if dataclasses.is_dataclass(tree):
        tree = [getattr(tree, field.name) for field in dataclasses.fields(tree)]
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [t for part in tree for t in tensors_in(part)] if isinstance(tree, (list, tuple)) else []
