"""No argument of a registered operator crashes the process; invalid ones raise with a message."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from fcos_fast import backend, ops
from fcos_fast.assignment import MAX_LABEL, MAX_SIDE
from tests.ops.arguments import LEVELS, RULE, ground_truth, maps, valid_arguments
from tests.tree import ROOT


def test_no_argument_crashes_the_process():
    done = subprocess.run(
        [sys.executable, "-m", "tests.ops.hostile"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    last = done.stdout[-500:].rpartition("\n  ")[0] if done.returncode == 1 else done.stdout[-200:]
    assert done.returncode == 0, (
        f"exit status {done.returncode}; the last calls were\n{last}\n{done.stderr[-3000:]}"
    )


@pytest.mark.parametrize(
    "sizes",
    [
        [-5, 1, 10, 1],
        [-5_000_000, 1, 1, 1],
        [MAX_SIDE + 1, 1, 1, 1],
        [2**31 - 1, 0, 1, 1],
        [2**62, 2**62, 1, 1],
    ],
)
def test_level_sizes_are_not_trusted(sizes):
    boxes, labels, starts, _, geometry, *rest = valid_arguments()["assign_targets"]
    with pytest.raises(RuntimeError, match=r"of a level=.*; expected 0\.\.16777216"):
        torch.ops.fcos_fast.assign_targets(boxes, labels, starts, sizes, geometry, *rest)
    levels = [replace(LEVELS[0], height=sizes[0], width=sizes[1]), replace(LEVELS[1], height=sizes[2])]
    for name in ("native", "reference"):
        with backend(name), pytest.raises(ValueError, match=r"levels\[0\] is .*; expected 0\.\.16777216"):
            ops.assign_targets(ground_truth(), levels, RULE)


def test_too_many_levels_of_the_greatest_size_do_not_overflow():
    boxes, labels, starts, _, geometry, *rest = valid_arguments()["assign_targets"]
    sides = [MAX_SIDE] * 2 * 40_000
    with pytest.raises(RuntimeError, match="number of locations"):
        torch.ops.fcos_fast.assign_targets(boxes, labels, starts, sides, geometry[:7] * 40_000, *rest)


@pytest.mark.parametrize("label", [2**31, 2**32 + 1, 2**40, 2**62])
def test_a_label_beyond_int32_does_not_become_another_class(label, device):
    gt = replace(ground_truth(), labels=torch.tensor([label, 1, 0])).to(device)
    if device == "cpu":
        with pytest.raises(ValueError, match=f"label {label}; expected classes"):
            ops.assign_targets(gt, LEVELS, RULE)
        with pytest.raises(ValueError, match=f"label {label}; expected classes"):
            ops.match_anchors(gt.boxes, gt)
    arguments = valid_arguments()
    _, _, _, *rest = arguments["assign_targets"]
    labels, matched, *_ = torch.ops.fcos_fast.assign_targets(*gt.tensors(), *rest)
    assert (labels[matched == 0] == MAX_LABEL).all()
    assert (matched == 0).any()
    labels, matched, _ = torch.ops.fcos_fast.match_anchors(
        gt.boxes, *gt.tensors(), 0.5, 0.4, "own_match", 0.0
    )
    assert labels[0, 0] == MAX_LABEL
    assert matched[0, 0] == 0


@pytest.mark.parametrize(
    ("op", "index", "value", "message"),
    [
        ("box_loss", 2, "gIoU", "kind='gIoU'; expected one of iou, linear_iou, giou, diou, ciou"),
        ("box_loss_backward", 3, "", "kind=''; expected one of iou"),
        ("detection_loss", 11, "giou ", "kind='giou '; expected one of iou"),
        ("assign_targets", 5, "half_open", "range_test='half_open'; expected one of closed, open, left_open"),
        ("assign_targets", 6, "middle", "sampling='middle'; expected one of box, center_clipped"),
        ("assign_targets", 7, "", "tie_break=''; expected one of area"),
        ("postprocess", 5, "sum", "score='sum'; expected one of sqrt, product, classification"),
        ("detection_loss_rescale_", 3, torch.ones(2), r"expected upstream \(3,\)"),
        ("detection_loss", 1, [x.to(torch.int8) for x in maps(4)], "a map has dtype Char"),
        ("detection_loss_rescale_", 0, [torch.ones(2, 1).expand(2, 4)], "expected dense gradients"),
        ("nms", 3, 1.5, "iou_threshold=1.5; expected a number from 0 to 1"),
        ("nms_padded", 4, 0, "max_detections=0; expected 1"),
    ],
)
def test_direct_calls_raise_and_name_the_argument(op, index, value, message):
    arguments = valid_arguments()[op]
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.fcos_fast, op)(*arguments[:index], value, *arguments[index + 1 :])


def test_errors_are_also_of_the_types_that_torchvision_raises():
    boxes, scores = torch.rand(3, 4), torch.rand(3)
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match="boxes has shape"):
            ops.nms(boxes[0], scores, 0.5)
        with pytest.raises(error, match="scores has shape"):
            ops.batched_nms(boxes, scores[:2], torch.zeros(3, dtype=torch.int64), 0.5)
    for error in (TypeError, RuntimeError):
        with pytest.raises(error, match="boxes has dtype torch.int64"):
            ops.nms(boxes.long(), scores, 0.5)
