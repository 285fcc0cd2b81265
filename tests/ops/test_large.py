"""More than 2**31 elements: indices must be 64-bit. 32-bit indices would miss the last row."""

import os

import pytest
import torch

from fcos_fast import ops
from fcos_fast.assignment import RULES, GroundTruth

pytestmark = pytest.mark.large
ROWS = 2**29 + 3  # of four elements


@pytest.fixture
def needs():
    """Skips the test if fewer GiB of memory are free."""

    def check(device: str, gib: int) -> None:
        if device == "cuda":
            torch.cuda.empty_cache()
            free = torch.cuda.mem_get_info()[0]
        else:
            free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if free < gib * 2**30:
            pytest.skip(f"needs {gib} GiB of free memory")

    return check


def rows_of(row, last, device):
    boxes = torch.tensor(row, dtype=torch.bfloat16, device=device).repeat(ROWS, 1)
    boxes[-1] = torch.tensor(last)
    return boxes


def test_centerness(device, needs):
    needs(device, 14)
    ltrb = rows_of([2, 2, 2, 2], [1, 2, 3, 4], device).requires_grad_()
    quality = ops.centerness(ltrb)
    (grad,) = torch.autograd.grad(quality.sum(), ltrb)
    last = ltrb[-1:].detach().requires_grad_()
    (expected,) = torch.autograd.grad(ops.centerness(last).sum(), last)
    assert quality[-1] == ops.centerness(last)
    assert torch.equal(grad[-1:], expected)
    assert int((quality == 1).sum()) == ROWS - 1
    assert not grad[:-1].any()


def test_box_loss(device, needs):
    needs(device, 28)
    pred = rows_of([0, 0, 2, 2], [0, 0, 2, 2], device).requires_grad_()
    target = rows_of([0, 0, 2, 2], [0, 0, 2, 1], device)
    loss = ops.box_loss(pred, target, "linear_iou")
    (grad,) = torch.autograd.grad(loss.sum(), pred)
    assert loss[-1] == 0.5
    assert grad[-1].any()
    assert not loss[:-1].any()


@pytest.mark.gpu
def test_assign_targets(needs):
    needs("cuda", 24)
    sizes, image = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)], (800, 1344)
    rule = RULES["official"]
    levels = rule.levels(sizes, image)
    locations = sum(height * width for height, width in sizes)
    images = 2**31 // (4 * locations) + 2
    box, label = torch.tensor([[100.0, 100, 300, 400]]), torch.tensor([3])
    starts = torch.zeros(images + 1, dtype=torch.int64)
    starts[-1] = 1  # belongs to the last image
    targets = ops.assign_targets(GroundTruth(box.cuda(), label.cuda(), starts.cuda()), levels, rule)
    expected = ops.assign_targets(GroundTruth.pack([box], [label]), levels, rule)
    assert targets.ltrb.numel() > 2**31
    assert torch.equal(targets.labels[-1:].cpu(), expected.labels)
    assert torch.equal(targets.ltrb[-1:].cpu(), expected.ltrb)
    assert targets.num_positive.cpu() == expected.num_positive
    assert int(targets.labels[:-1].max()) == -1


@pytest.mark.gpu
def test_nms(needs):
    needs("cuda", 24)
    side = 632
    count = side * side  # a bit for each pair, in words of 64: more than 2**31 of them
    assert count * (count // 64) > 2**31
    corner = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float().cuda() * 4
    boxes = torch.cat([corner, corner + 3], dim=1)
    boxes[-1] = boxes[0]
    scores = torch.linspace(1, 0, count, dtype=torch.float64).cuda()
    kept = ops.nms(boxes, scores, 0.5)
    assert torch.equal(kept.cpu(), torch.arange(count - 1))
