"""RetinaNet: anchors, matching and losses against the published rules, written out here."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from fcos_fast.assignment import BACKGROUND, IGNORED, GroundTruth
from fcos_fast.models.anchors import MAX_LOG_RATIO, decode_boxes, encode_boxes
from fcos_fast.models.presets import RETINANET_PRESETS

STRIDES = (8, 16, 32, 64, 128)
BOXES = [[10.0, 12, 50, 60], [40, 5, 120, 90], [7, 30, 17, 90]]  # no anchor resembles the last


@pytest.fixture
def model(small_model):
    """Builds the preset ``retinanet``."""
    return lambda **overrides: small_model(**({"backbone": "resnet18", "preset": "retinanet"} | overrides))


def packed(model, images, boxes):
    batch = model.transform.batch([model.transform(image) for image in images])
    labels = [torch.arange(len(b)) % 3 for b in boxes]
    return batch, GroundTruth.pack([torch.tensor(b).reshape(-1, 4) for b in boxes], labels)


def iou(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return width * height / (sum(areas) - width * height)


# Anchors


def test_the_tutorials_anchors(model):
    """Around the center of each cell, every shape for every scale."""
    size = (64, 96)
    net = model(preset="retinanet-tutorial")
    for stride, anchors in zip(STRIDES, net.anchors(size, net.feature_sizes(size)), strict=True):
        expected = []
        for i, j in product(range(math.ceil(64 / stride)), range(math.ceil(96 / stride))):
            x, y = (j + 0.5) * stride, (i + 0.5) * stride
            for scale, (w, h) in product((1, 2 ** (1 / 3), 2 ** (2 / 3)), ((1, 1), (1.4, 0.7), (0.7, 1.4))):
                w, h = 4 * stride * scale * w / 2, 4 * stride * scale * h / 2
                expected.append([x - w, y - h, x + w, y + h])
        torch.testing.assert_close(anchors, torch.tensor(expected))


def test_the_papers_anchors_have_its_areas_and_ratios(model):
    net = model()
    for stride, anchors in zip(STRIDES, net.anchors((128, 128), net.feature_sizes((128, 128))), strict=True):
        x1, y1, x2, y2 = anchors[:9].double().unbind(1)
        areas = ((x2 - x1) * (y2 - y1)).sqrt() / (4 * stride)
        torch.testing.assert_close(
            areas, torch.tensor([2 ** (k / 3) for k in (0, 1, 2) for _ in range(3)]).double()
        )
        torch.testing.assert_close((y2 - y1) / (x2 - x1), torch.tensor([0.5, 1, 2] * 3).double())


def test_anchors_are_not_in_the_state_dict(model):
    assert {key.split(".")[0] for key in model().state_dict()} == {"backbone", "head"}


def test_decoding_inverts_encoding():
    generator = torch.Generator().manual_seed(0)
    corners = 100 * torch.rand(2, 50, 2, dtype=torch.float64, generator=generator)
    sides = 1 + 50 * torch.rand(2, 50, 2, dtype=torch.float64, generator=generator)
    boxes, anchors = torch.cat((corners, corners + sides), dim=-1)
    torch.testing.assert_close(decode_boxes(encode_boxes(boxes, anchors), anchors), boxes)
    huge = decode_boxes(torch.tensor([0.0, 0.0, 50.0, 50.0]), torch.tensor([0.0, 0.0, 10.0, 20.0]))
    torch.testing.assert_close(huge[2:] - huge[:2], math.exp(MAX_LOG_RATIO) * torch.tensor([10.0, 20.0]))


# Matching


@pytest.mark.parametrize("allow_low_quality", [False, True])
def test_matched_background_and_ignored_anchors(model, allow_low_quality):
    net = model(match_threshold=0.55, background_threshold=0.35, allow_low_quality=allow_low_quality)
    batch, gt = packed(net, [torch.rand(3, 96, 128)] * 2, [BOXES, []])
    targets = net.assign(batch, gt)
    overlaps = [[iou(anchor, box) for box in BOXES] for anchor in targets.anchors.tolist()]
    best_of_box = [max(column) for column in zip(*overlaps, strict=True)]
    seen = set()
    for row, label, matched in zip(
        overlaps, targets.labels[0].tolist(), targets.matched[0].tolist(), strict=True
    ):
        best = max(row)
        best_for_some = any(o > best_of_box[k] - 1e-6 for k, o in enumerate(row))
        if best >= 0.55 or (allow_low_quality and best_for_some):
            k = row.index(best)
            assert (label, targets.boxes[matched].tolist()) == (k % 3, BOXES[k])
        else:
            assert label == (IGNORED if best >= 0.35 else BACKGROUND)
            assert matched < 0
        seen.add(label)
    # The third box, narrower than every anchor, is unmatched without allow_low_quality.
    assert seen == {0, 1, IGNORED, BACKGROUND} | ({2} if allow_low_quality else set())
    assert (targets.labels[1] == BACKGROUND).all()
    assert targets.totals == (targets.labels >= 0).sum()


# Losses


def expected_losses(net, batch, gt, star: bool, box) -> list[tuple[torch.Tensor, torch.Tensor, int]]:
    """Classification loss, box loss and number of matched anchors of each image."""
    outputs, targets = net.network(batch.tensor), net.assign(batch, gt)
    found = []
    for b, labels in enumerate(targets.labels):
        sums = [torch.zeros((), dtype=torch.float64) for _ in range(2)]
        start = 0
        for logits, deltas in zip(*outputs, strict=True):
            height, width = logits.shape[-2:]
            logits = logits[b].view(9, 3, height, width).permute(2, 3, 0, 1).reshape(-1, 3)
            deltas = deltas[b].view(9, 4, height, width).permute(2, 3, 0, 1).reshape(-1, 4)
            here = slice(start, start + len(logits))
            start += len(logits)
            own = labels[here].long()
            y = torch.where(torch.arange(3) == own[:, None], 1.0, -1.0).double()
            if star:
                loss = -torch.log(torch.sigmoid(3.0 * y * logits + 0.5)) / 3.0
            else:
                p = torch.sigmoid(y * logits)
                loss = -torch.where(y > 0, 0.25, 0.75) * (1 - p) ** 2 * torch.log(p)
            sums[0] = sums[0] + loss[own != IGNORED].sum()
            matched = own >= 0
            sums[1] = sums[1] + box(
                deltas[matched],
                targets.anchors[here][matched],
                targets.boxes[targets.matched[b, here][matched]],
            )
        found.append((*sums, int((labels >= 0).sum())))
    return found


def smooth_l1(deltas, anchors, boxes):
    anchors, boxes = anchors.double(), boxes.double()
    sides, ends = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shifts = ((boxes[:, :2] + boxes[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / sides
    difference = (deltas - torch.cat((shifts, torch.log(ends / sides)), dim=1)).abs()
    return torch.where(difference < 0.2, difference**2 / 0.4, difference - 0.1).sum()


def linear_iou(deltas, anchors, boxes):
    anchors = anchors.double()
    sides = anchors[:, 2:] - anchors[:, :2]
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[:, :2] * sides
    half = deltas[:, 2:].exp() * sides / 2
    predicted = torch.cat((centers - half, centers + half), dim=1)
    return sum(
        (
            1 - torch.tensor(iou(a.tolist(), b.tolist())).double()
            for a, b in zip(predicted, boxes, strict=True)
        ),
        torch.zeros((), dtype=torch.float64),
    )


@pytest.mark.parametrize("normalizer", ["positives", "image"])
@pytest.mark.parametrize("star", [False, True], ids=["focal", "FL*"])
def test_losses_equal_the_papers(model, make_talkative, normalizer, star):
    """The focal loss, and FL* of appendix A, in float64."""
    options = {"classification_loss": "focal_star", "focal_gamma": 3.0, "focal_beta": 0.5} if star else {}
    kind, box = ("smooth_l1", smooth_l1) if star else ("linear_iou", linear_iou)
    net = model(normalizer=normalizer, box_loss=kind, smooth_l1_beta=0.2, norm="group", **options).double()
    make_talkative(net)
    with torch.no_grad():
        net.head.regression_head.bbox_reg.weight *= 0.1  # boxes that overlap
        net.head.regression_head.bbox_reg.bias.zero_()
    batch, gt = packed(net, [torch.rand(3, 96, 128, dtype=torch.float64)] * 3, [BOXES, BOXES[:1], []])
    losses = net.losses(batch.tensor, net.assign(batch, gt))
    parts = expected_losses(net, batch, gt, star, box)
    assert parts[0][2] > parts[1][2] > parts[2][2] == 0
    for k, name in enumerate(net.LOSSES):
        if normalizer == "image":
            expected = sum(part[k] / max(1, part[2]) for part in parts) / 3
        else:
            expected = sum(part[k] for part in parts) / sum(part[2] for part in parts)
        # encoded boxes and number of matches are float32
        torch.testing.assert_close(losses[name], expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("preset", RETINANET_PRESETS)
def test_gradients_reach_every_parameter(model, preset):
    """One box per level, so that each level has a matched anchor."""
    net = model(preset=preset, norm="group")
    boxes = [[10.0, 10, 42, 42], [0, 0, 64, 64], [64, 64, 192, 192], [0, 0, 250, 250], [40, 40, 560, 560]]
    losses = net(
        [torch.rand(3, 256, 256)],
        [{"boxes": torch.tensor(boxes).clamp(max=256), "labels": torch.arange(5) % 3}],
    )
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_ignored_anchors_get_no_gradient(model):
    net = model()
    batch, gt = packed(net, [torch.rand(3, 96, 128)], [BOXES])
    targets = net.assign(batch, gt)
    seen = []
    net.head.register_forward_hook(lambda _module, _inputs, outputs: seen.extend(outputs.cls_logits))
    losses = net.losses(batch.tensor, targets)
    gradients = torch.autograd.grad(losses["classification"], seen)
    by_anchor = torch.cat(
        [g[0].view(9, 3, *g.shape[-2:]).permute(2, 3, 0, 1).reshape(-1, 3) for g in gradients]
    )
    ignored = targets.labels[0] == IGNORED
    assert ignored.any()
    assert ((by_anchor != 0).all(dim=1) == ~ignored).all()
    assert (by_anchor[ignored] == 0).all()


def test_bfloat16_autocast(model, batch):
    net = model(norm="group").to(memory_format=torch.channels_last)
    exact = net(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = net(*batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)
    net.eval()
    with torch.autocast("cpu", torch.bfloat16):
        for found in net(batch[0]):
            assert found["boxes"].dtype == found["scores"].dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("normalizer", ["positives", "image"])
@pytest.mark.parametrize("star", [False, True], ids=["focal", "FL*"])
def test_losses_of_16_bit_outputs_are_summed_in_float32(model, make_talkative, dtype, normalizer, star):
    """Against the same outputs in float64, to exclude the network's rounding."""
    options = {"classification_loss": "focal_star"} if star else {}
    net = model(normalizer=normalizer, norm="group", **options)
    make_talkative(net)
    batch, gt = packed(net, [torch.rand(3, 96, 128)] * 3, [BOXES, BOXES[:1], []])
    targets = net.assign(batch, gt)
    outputs = [[x.detach().to(dtype) for x in maps] for maps in net.network(batch.tensor)]
    net.network = lambda _: outputs
    losses = net.losses(batch.tensor, targets)
    net.network = lambda _: [[x.double() for x in maps] for maps in outputs]
    for name, expected in net.losses(batch.tensor, targets).items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name].double(), expected.double(), rtol=1e-5, atol=0)


def test_the_losses_are_one_graph(model):
    net = model(norm="group", head_norm="none")
    batch, gt = packed(net, [torch.rand(3, 64, 96)] * 2, [BOXES[:1], []])
    targets = net.assign(batch, gt)
    outputs = net.network(batch.tensor)
    net.network = lambda _: outputs  # the network is compiled in test_compile.py
    compiled = torch.compile(net.losses, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(batch.tensor, targets), net.losses(batch.tensor, targets))


# Detections


def test_16_bit_outputs_are_decoded_in_float32(model, make_talkative):
    net = model(inclusive_boxes=False).eval()
    make_talkative(net)
    batch = net.transform.batch([torch.rand(3, 64, 96)])
    with torch.no_grad():
        outputs = [[x.bfloat16() for x in maps] for maps in net.network(batch.tensor)]
        (found,) = net.postprocess(outputs, batch)
        (expected,) = net.postprocess([[x.float() for x in maps] for maps in outputs], batch)
    assert found["boxes"].dtype == torch.float32
    assert torch.equal(found["boxes"], expected["boxes"])


def test_inclusive_boxes_end_at_the_last_pixel(model, make_talkative):
    net = model(inclusive_boxes=True).eval()
    make_talkative(net)
    (found,) = net([torch.rand(3, 64, 96)])
    assert found["boxes"].amax(dim=0).tolist()[2:] == [95, 63]


def test_fewer_anchors_than_candidates_and_no_detection(model, make_talkative):
    """P7 has nine anchors here."""
    net = model(topk_candidates=100).eval()
    assert len(net([torch.rand(3, 64, 96)])[0]["scores"]) == 0
    make_talkative(net)
    (found,) = net([torch.rand(3, 64, 96)])
    assert len(found["scores"]) == 100
    assert (found["scores"].diff() <= 0).all()
