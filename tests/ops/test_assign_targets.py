import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcos_fast import ops, reference
from fcos_fast.assignment import RULES, AssignmentRule, GroundTruth, Level
from tests.ops.opcheck import assert_compiles, opcheck

SIZES = [(40, 60), (20, 30), (10, 15), (5, 8), (3, 4)]
IMAGE = (320, 480)
SAMPLINGS = ["box", "center_clipped", "center", "circle"]
RANGE_TESTS = ["closed", "open", "left_open"]


def random_boxes(count, image=IMAGE, snap=None):
    """Boxes of all sizes; with ``snap``, on a grid, to provoke boundary cases and ties."""
    height, width = image
    corner = torch.rand(count, 2) * torch.tensor([width - 4.0, height - 4.0])
    size = 4 + torch.rand(count, 2) ** 3 * torch.tensor([width * 1.2, height * 1.2])
    boxes = torch.cat([corner, corner + size], dim=1)
    if snap:
        boxes = (boxes / snap).round() * snap
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + snap)
    return boxes


def pack(*images, device="cpu"):
    return GroundTruth.pack(list(images), [torch.arange(len(b)) % 7 for b in images]).to(device)


def assert_same(actual, expected):
    for name in ("labels", "matched", "ltrb"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    torch.testing.assert_close(actual.centerness, expected.centerness, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual.totals, expected.totals, rtol=1e-6, atol=1e-6)


def by_hand(boxes, levels, rule):
    """An independent NumPy float32 implementation of the rules, location by location, for one image."""
    f = np.float32
    boxes = boxes.numpy().astype(f)
    matched = []
    for level in levels:
        reach = f(rule.radius * level.stride)
        lower, upper = map(f, level.size_range)
        for i in range(level.height):
            for j in range(level.width):
                y, x = (
                    f(level.offset[0]) + f(level.step[0]) * f(i),
                    f(level.offset[1]) + f(level.step[1]) * f(j),
                )
                found, found_area = -1, None
                for m, (x1, y1, x2, y2) in enumerate(boxes):
                    ltrb = (x - x1, y - y1, x2 - x, y2 - y)
                    cx, cy = (x1 + x2) / f(2), (y1 + y2) / f(2)
                    inside = min(ltrb) > 0
                    if rule.sampling == "center_clipped":
                        inside = (
                            min(
                                x - max(cx - reach, x1),
                                min(cx + reach, x2) - x,
                                y - max(cy - reach, y1),
                                min(cy + reach, y2) - y,
                            )
                            > 0
                        )
                    elif rule.sampling == "center":
                        inside = inside and max(abs(x - cx), abs(y - cy)) < reach
                    elif rule.sampling == "circle":
                        inside = inside and np.sqrt((x - cx) * (x - cx) + (y - cy) * (y - cy)) < reach
                    longest = max(ltrb)
                    in_range = {
                        "closed": lower <= longest <= upper,
                        "open": lower < longest < upper,
                        "left_open": lower < longest <= upper,
                    }[rule.range_test]
                    if not (inside and in_range):
                        continue
                    area = (x2 - x1) * (y2 - y1)
                    if rule.tie_break == "quantized_area":
                        area = -(f(1e8) - area)
                    if found < 0 or area < found_area:
                        found, found_area = m, area
                matched.append(found)
    return np.array(matched)


@pytest.mark.parametrize("snap", [None, 8.0])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_by_hand(name, snap):
    rule = RULES[name]
    sizes, image = [(13, 17), (7, 9), (4, 5), (2, 3), (1, 2)], (104, 136)
    levels = rule.levels(sizes, image)
    boxes = random_boxes(25, image, snap)
    targets = ops.assign_targets(pack(boxes), levels, rule)
    assert (targets.matched[0].numpy() == by_hand(boxes, levels, rule)).all()
    assert targets.num_positive > 0


@pytest.mark.parametrize("snap", [None, 4.0])
@pytest.mark.parametrize("tie_break", ["area", "quantized_area"])
@pytest.mark.parametrize("range_test", RANGE_TESTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_equals_the_reference(sampling, range_test, tie_break, snap, device):
    rule = AssignmentRule(sampling=sampling, range_test=range_test, tie_break=tie_break)
    levels = rule.levels(SIZES, IMAGE)
    gt = pack(
        random_boxes(40, snap=snap),
        torch.zeros(0, 4),
        random_boxes(1),
        random_boxes(300, snap=snap),
        device=device,
    )
    assert_same(ops.assign_targets(gt, levels, rule), reference.assign_targets(gt, levels, rule))


class CapturedMatches(Exception):  # noqa: N818
    pass


def torchvision_matches(detection, boxes, sizes, image):
    """The matches of torchvision's FCOS, intercepted in its compute_loss."""
    model = detection.fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=7)
    model.anchor_generator = detection.anchor_utils.AnchorGenerator(
        ((8,), (16,), (32,), (64,), (128,)), ((1.0,),) * 5
    )
    features = [torch.zeros(len(boxes), 1, *size) for size in sizes]
    images = detection.image_list.ImageList(torch.zeros(len(boxes), 3, *image), [image] * len(boxes))
    anchors = model.anchor_generator(images, features)
    captured = []
    model.head.compute_loss = lambda targets, outputs, anchors, matched: captured.extend(matched)
    targets = [{"boxes": b, "labels": torch.arange(len(b)) % 7} for b in boxes]
    model.compute_loss(targets, {}, anchors, [h * w for h, w in sizes])
    return captured


@pytest.mark.parametrize("snap", [None, 4.0, 16.0])
def test_equals_torchvision(snap, device, torchvision):
    sizes, image = [(25, 34), (13, 17), (7, 9), (4, 5), (2, 3)], (200, 270)
    boxes = [random_boxes(n, image, snap) for n in (60, 1, 200)]
    rule = RULES["torchvision"]
    gt = pack(*boxes, device=device)
    targets = ops.assign_targets(gt, rule.levels(sizes, image), rule)
    for b, expected in enumerate(torchvision_matches(torchvision.models.detection, boxes, sizes, image)):
        actual = targets.matched[b].cpu().long()
        assert torch.equal(torch.where(actual >= 0, actual - int(gt.starts[b]), -1), expected)


def one_level(stride=8.0, size_range=(0.0, 64.0), cells=32):
    return Level(cells, cells, stride, (stride, stride), (stride // 2, stride // 2), size_range)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("official", (True, True)), ("detectron2", (False, False)), ("notebook", (True, False))],
)
def test_a_distance_of_exactly_64(name, expected, device):
    # Location (68, 68) of stride 8 and (72, 72) of stride 16 are exactly 64 pixels from the right side.
    rule = replace(RULES[name], sampling="box")
    found = []
    for stride, size_range in ((8.0, (rule.lowest, 64.0)), (16.0, (64.0, 128.0))):
        x = stride // 2 + 4 * stride
        box = torch.tensor([[x - 10, x - 10, x + 64, x + 10]])
        targets = ops.assign_targets(pack(box, device=device), [one_level(stride, size_range, 16)], rule)
        found.append(bool(targets.matched.reshape(16, 16)[4, 4] == 0))
    assert tuple(found) == expected


def test_equal_areas_go_to_the_first_and_float32_makes_areas_equal(device):
    x = 8 * 4 + 4.0
    boxes = torch.tensor(
        [[x - 20, x - 20, x + 20, x + 20.1], [x - 20, x - 20, x + 20, x + 20]]
    )  # 1604 and 1600
    for order in ([0, 1], [1, 0]):
        gt = pack(boxes[order], device=device)
        picked = {
            tie: int(
                ops.assign_targets(
                    gt, [one_level()], AssignmentRule(sampling="box", tie_break=tie)
                ).matched.reshape(32, 32)[4, 4]
            )
            for tie in ("area", "quantized_area")
        }
        assert picked == {"area": order.index(1), "quantized_area": 0}
    twins = boxes[[1, 1]]
    assert (
        int(ops.assign_targets(pack(twins, device=device), [one_level()], RULES["official"]).matched.max())
        == 0
    )


def test_a_box_of_1e8_square_pixels_is_background(device):
    box = torch.tensor([[0.0, 0.0, 10_000.0, 10_000.0]])
    level = one_level(128.0, (0.0, math.inf), 64)
    for rule in RULES.values():
        assert (
            ops.assign_targets(pack(box, device=device), [level], replace(rule, sampling="box")).labels == -1
        ).all()


@pytest.mark.parametrize("images", [1, 3])
def test_no_boxes(images, device):
    rule = RULES["official"]
    gt = pack(*[torch.zeros(0, 4)] * images, device=device)
    targets = ops.assign_targets(gt, rule.levels(SIZES, IMAGE), rule)
    assert targets.labels.shape == (images, 3202 - 0)
    assert (targets.labels == -1).all()
    assert (targets.matched == -1).all()
    assert not targets.ltrb.any()
    assert not targets.centerness.any()
    assert targets.totals.tolist() == [0.0, 0.0]


def test_contents_of_targets(device):
    rule = RULES["official-improved"]
    gt = pack(random_boxes(30), random_boxes(5), device=device)
    levels = rule.levels(SIZES, IMAGE)
    targets = ops.assign_targets(gt, levels, rule)
    positive = targets.matched >= 0
    matched = targets.matched[positive].long()
    points = torch.cat([level.points(device) for level in levels]).expand(2, -1, 2)[positive]
    boxes = gt.boxes[matched]
    assert torch.equal(targets.labels[positive].long(), gt.labels[matched])
    assert torch.equal(
        targets.ltrb[positive], torch.cat([points - boxes[:, :2], boxes[:, 2:] - points], dim=1)
    )
    assert torch.equal(targets.num_positive, positive.sum().float())
    torch.testing.assert_close(targets.centerness_sum, targets.centerness.sum())
    assert not targets.ltrb[~positive].any()


def test_the_same_bits_each_run_and_for_any_number_of_threads():
    rule = RULES["torchvision"]
    gt = pack(*[random_boxes(50) for _ in range(5)])
    levels = rule.levels(SIZES, IMAGE)
    threads = torch.get_num_threads()
    try:
        totals = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            totals |= {tuple(ops.assign_targets(gt, levels, rule).totals.tolist()) for _ in range(10)}
    finally:
        torch.set_num_threads(threads)
    assert len(totals) == 1


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(sorted(RULES)))
def test_independent_of_the_order_of_boxes_of_different_areas(seed, name):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(12)
    boxes[:, 2:] = boxes[:, :2] + (1 + torch.arange(12.0)[:, None]) * torch.tensor([17.0, 13.0])
    order = torch.randperm(12, generator=generator)
    rule = RULES[name]
    levels = rule.levels(SIZES, IMAGE)
    matched = ops.assign_targets(pack(boxes), levels, rule).matched
    shuffled = ops.assign_targets(pack(boxes[order]), levels, rule).matched.long()
    assert torch.equal(torch.where(shuffled >= 0, order[shuffled], -1), matched.long())


def test_memory_does_not_grow_with_locations_times_boxes():
    rule = RULES["official"]
    levels = rule.levels([(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)], (800, 1344))
    gt = pack(random_boxes(20_000, (800, 1344)))
    # The dense matrices of the reference would be 22,300 x 20,000 x 4 floats: 7 GB.
    targets = ops.assign_targets(gt, levels, rule)
    assert targets.num_positive > 10_000


def test_opcheck_and_compile(device):
    rule = RULES["official-improved"]
    gt = pack(random_boxes(9), random_boxes(2), device=device)
    opcheck(
        "assign_targets",
        gt.boxes,
        gt.labels,
        gt.starts,
        [4, 5],
        [8.0, 8.0, 8.0, 4.0, 4.0, 0.0, 64.0],
        "closed",
        "center_clipped",
        "area",
        1.5,
    )
    levels = rule.levels(SIZES, IMAGE)

    def assign(boxes, labels, starts):
        return ops.assign_targets(GroundTruth(boxes, labels, starts), levels, rule).ltrb

    assert_compiles(assign, gt.boxes, gt.labels, gt.starts)


def test_invalid_values_raise():
    rule = RULES["official"]
    levels = [one_level()]
    good = pack(random_boxes(2))
    for box in ([5.0, 5.0, 5.0, 9.0], [5.0, 5.0, 4.0, 9.0], [float("nan"), 0.0, 9.0, 9.0]):
        with pytest.raises(ValueError, match=r"box 1 is \["):
            ops.assign_targets(pack(torch.tensor([[0.0, 0.0, 9.0, 9.0], box])), levels, rule)
    with pytest.raises(ValueError, match="label -1"):
        ops.assign_targets(replace(good, labels=torch.tensor([0, -1])), levels, rule)
    with pytest.raises(ValueError, match="1 labels for 2 boxes"):
        ops.assign_targets(replace(good, labels=good.labels[:1]), levels, rule)
    with pytest.raises(TypeError, match="boxes has dtype torch.float64"):
        ops.assign_targets(replace(good, boxes=good.boxes.double()), levels, rule)
    with pytest.raises(TypeError, match="starts has dtype torch.int32"):
        ops.assign_targets(replace(good, starts=good.starts.int()), levels, rule)
    with pytest.raises(ValueError, match="starts has 1 entries"):
        ops.assign_targets(replace(good, starts=good.starts[:1]), levels, rule)
    with pytest.raises(ValueError, match="unknown value of sampling 'centr'; did you mean 'center'"):
        AssignmentRule(sampling="centr")
    with pytest.raises(ValueError, match="radius=0; expected a positive"):
        AssignmentRule(radius=0)
    with pytest.raises(ValueError, match="expected increasing numbers"):
        AssignmentRule(sizes_of_interest=(64, 32))
    with pytest.raises(ValueError, match="levels is empty"):
        ops.assign_targets(good, [], rule)
    with pytest.raises(ValueError, match="boxes of 1 images but labels of 2"):
        GroundTruth.pack([torch.zeros(0, 4)], [torch.zeros(0)] * 2)
    with pytest.raises(ValueError, match=r"image 0 has boxes of shape \(4,\)"):
        GroundTruth.pack([torch.zeros(4)], [torch.zeros(1)])
    with pytest.raises(ValueError, match="got 2 feature sizes, 5 strides"):
        rule.levels(SIZES[:2], IMAGE)


def test_unchecked_nonsense_is_never_assigned_or_read_out_of_bounds():
    boxes = torch.tensor([[float("nan")] * 4, [9.0, 9, 3, 3], [-math.inf, 0, math.inf, 9], [0, 0, 30, 30]])
    out = torch.ops.fcos_fast.assign_targets(
        boxes,
        torch.tensor([0, 1, 2, 3]),
        torch.tensor([0, 4]),
        [8, 8],
        [8.0, 8.0, 8.0, 4.0, 4.0, 0.0, 64.0],
        "closed",
        "box",
        "area",
        1.5,
    )
    assert set(out[0].flatten().tolist()) == {-1, 3}
    with pytest.raises(RuntimeError, match="expected non-decreasing starts"):
        torch.ops.fcos_fast.assign_targets(
            boxes,
            torch.arange(4),
            torch.tensor([0, 9]),
            [8, 8],
            [8.0, 8.0, 8.0, 4.0, 4.0, 0.0, 64.0],
            "closed",
            "box",
            "area",
            1.5,
        )
