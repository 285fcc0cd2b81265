"""Every preset against a plain implementation of that project's rules, written from their descriptions.

A class per project; where one project does as another does, it inherits. Numbers are Python's and torch's float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fcos_fast.assignment import GroundTruth
from fcos_fast.models import FCOS, FCOSConfig
from fcos_fast.models.head import HeadOutputs
from fcos_fast.models.presets import FCOS_PRESETS
from fcos_fast.models.transform import ImageBatch

STRIDES = (8, 16, 32, 64, 128)
SIZE = (128, 160)
GRIDS = [(math.ceil(SIZE[0] / s), math.ceil(SIZE[1] / s)) for s in STRIDES]
CLASSES = 3
TOPK, MOST = 40, 25  # for maps of this size


def ltrb(x, y, box):
    return x - box[0], y - box[1], box[2] - x, box[3] - y


def centerness(left, top, right, bottom):
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


def regions(pred, target):
    """Intersection, union and enclosing area of two boxes (N, 4) ltrb around the same points."""
    area = lambda d: (d[:, 0] + d[:, 2]) * (d[:, 1] + d[:, 3])  # noqa: E731
    intersection = area(torch.minimum(pred, target))
    return intersection, area(pred) + area(target) - intersection, area(torch.maximum(pred, target))


class Official:
    """tianzhi0549/FCOS of 2019."""

    levels = 5
    bounds = (-1, 64, 128, 256, 512, 1e8)
    alpha = 0.25
    weighted = True
    topk_of_image = False
    iou_threshold = 0.6
    class_agnostic = False
    pixel = 1  # added to sides by NMS, subtracted from the image size by clipping
    clips_first = True

    # ---- assignment ----

    def place(self, index, stride, image_side, cells):
        return index * stride + stride // 2

    def in_range(self, longest, low, high):
        return low <= longest <= high

    def in_region(self, x, y, box, stride):
        return min(ltrb(x, y, box)) > 0

    def size_order(self, box):
        return (box[2] - box[0]) * (box[3] - box[1])

    def points(self):
        """(x, y, level) of all locations."""
        for level in range(self.levels):
            stride, (rows, columns) = STRIDES[level], GRIDS[level]
            for i in range(rows):
                for j in range(columns):
                    x, y = self.place(j, stride, SIZE[1], columns), self.place(i, stride, SIZE[0], rows)
                    yield x, y, level

    def assign(self, boxes):
        """Index of each location's box, -1 for background."""
        matched = []
        for x, y, level in self.points():
            low, high = self.bounds[level : level + 2]
            found = [
                m
                for m, box in enumerate(boxes)
                if self.in_region(x, y, box, STRIDES[level])
                and self.in_range(max(ltrb(x, y, box)), low, high)
            ]
            matched.append(min(found, key=lambda m: self.size_order(boxes[m]), default=-1))
        return matched

    # ---- regression ----

    def unit(self, stride):
        """Pixels per unit of the head's distances."""
        return 1

    def distance(self, raw, scale):
        return torch.exp(scale * raw)

    # ---- losses ----

    def box_loss(self, pred, target):
        intersection, union, _ = regions(pred, target)
        return -((intersection + 1) / (union + 1)).log()

    def quality(self, pred, target):
        return torch.tensor([centerness(*d) for d in target.tolist()], dtype=torch.float64)

    def divide(self, classes, boxes, qualities, counts, weights):
        """The three losses from each image's sums, number of positive locations and sum of weights."""
        n = max(sum(counts), 1)
        return sum(classes) / n, sum(boxes) / max(sum(weights), 1e-6), sum(qualities) / n

    def losses(self, images, targets):
        sums = []
        for (logits, distances, quality), (boxes, labels) in zip(images, targets, strict=True):
            points, matched = list(self.points()), self.assign(boxes)
            positive = [p for p, m in enumerate(matched) if m >= 0]
            one_hot = torch.zeros_like(logits)
            for p in positive:
                one_hot[p, labels[matched[p]]] = 1
            probability = logits.sigmoid()
            own = -self.alpha * (1 - probability) ** 2 * probability.log() * one_hot
            other = -(1 - self.alpha) * probability**2 * (1 - probability).log() * (1 - one_hot)
            rows = [
                [d / self.unit(STRIDES[points[p][2]]) for d in ltrb(*points[p][:2], boxes[matched[p]])]
                for p in positive
            ]
            target = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
            pred = distances[positive]
            weight = Official.quality(self, pred, target) if self.weighted else torch.ones(len(positive))
            entropy = F.binary_cross_entropy_with_logits(
                quality[positive], self.quality(pred, target), reduction="sum"
            )
            box = (self.box_loss(pred, target) * weight).sum()
            sums.append(((own + other).sum(), box, entropy, len(positive), weight.sum().item()))
        return self.divide(*zip(*sums, strict=True))

    # ---- detections ----

    def scored(self, probabilities, quality):
        """(label, score, rank in the top-k) of a location's candidates."""
        for label, p in enumerate(probabilities):
            if p > 0.05:
                yield label, math.sqrt(p * quality), p * quality

    def clip(self, box):
        height, width = SIZE
        limits = [side - self.pixel for side in (width, height, width, height)]
        return [min(max(side, 0), limit) for side, limit in zip(box, limits, strict=True)]

    def overlap(self, a, b):
        width = min(a[2], b[2]) - max(a[0], b[0]) + self.pixel
        height = min(a[3], b[3]) - max(a[1], b[1]) + self.pixel
        inter = max(width, 0) * max(height, 0)
        area = lambda c: (c[2] - c[0] + self.pixel) * (c[3] - c[1] + self.pixel)  # noqa: E731
        return inter / (area(a) + area(b) - inter)

    def detect(self, logits, distances, quality):
        """(score, label, box) of one image's detections, best first."""
        groups = [[] for _ in STRIDES]
        for p, (x, y, level) in enumerate(self.points()):
            left, top, right, bottom = (distances[p] * self.unit(STRIDES[level])).tolist()
            box = [x - left, y - top, x + right, y + bottom]
            box = self.clip(box) if self.clips_first else box
            for label, score, rank in self.scored(logits[p].sigmoid().tolist(), quality[p].sigmoid().item()):
                groups[level].append((rank, score, label, box))
        if self.topk_of_image:
            groups = [[found for own in groups for found in own]]
        taken = [found for own in groups for found in sorted(own, key=lambda f: -f[0])[:TOPK]]
        kept = []
        for _, score, label, box in sorted(taken, key=lambda f: -f[1]):
            rivals = [b for _, other, b in kept if self.class_agnostic or other == label]
            if all(self.overlap(box, rival) <= self.iou_threshold for rival in rivals):
                kept.append((score, label, box))
        return [(score, label, self.clip(box)) for score, label, box in kept[:MOST]]


class OfficialImproved(Official):
    """Center sampling, GIoU and distances in strides."""

    def in_region(self, x, y, box, stride):
        cx, cy, reach = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 1.5 * stride
        square = (
            max(cx - reach, box[0]),
            max(cy - reach, box[1]),
            min(cx + reach, box[2]),
            min(cy + reach, box[3]),
        )
        return min(ltrb(x, y, square)) > 0

    def unit(self, stride):
        return stride

    def distance(self, raw, scale):
        return torch.relu(scale * raw)

    def box_loss(self, pred, target):
        intersection, union, enclosing = regions(pred, target)
        return 1 - ((intersection + 1) / (union + 1) - (enclosing - union) / enclosing)


class AdelaiDet(OfficialImproved):
    pixel = 0
    clips_first = False


class AdelaiDetRT(AdelaiDet):
    levels = 3
    bounds = (-1, 64, 128, 1e8)


class AdelaiDetIoU(AdelaiDet):
    weighted = False

    def quality(self, pred, target):
        intersection, union, _ = regions(pred, target)
        return (intersection + 1) / (union + 1)

    def divide(self, classes, boxes, qualities, counts, weights):
        n = max(sum(counts), 1)
        return sum(classes) / n, sum(boxes) / n, sum(qualities) / n


class Torchvision(OfficialImproved):
    bounds = (0, 64, 128, 256, 512, math.inf)
    weighted = False
    pixel = 0

    def place(self, index, stride, image_side, cells):
        return index * (image_side // cells)

    def in_range(self, longest, low, high):
        return low < longest < high

    def in_region(self, x, y, box, stride):
        off = max(abs(x - (box[0] + box[2]) / 2), abs(y - (box[1] + box[3]) / 2))
        return off < 1.5 * stride and min(ltrb(x, y, box)) > 0

    def size_order(self, box):
        return -np.float32(np.float32(1e8) - np.float32(super().size_order(box)))

    def distance(self, raw, scale):
        return torch.relu(raw)

    def box_loss(self, pred, target):
        intersection, union, enclosing = regions(pred, target)
        return 1 - (intersection / union - (enclosing - union) / enclosing)

    def divide(self, classes, boxes, qualities, counts, weights):
        n = max(sum(counts), 1)
        return sum(classes) / n, sum(boxes) / n, sum(qualities) / n

    def scored(self, probabilities, quality):
        for label, p in enumerate(probabilities):
            if math.sqrt(p * quality) > 0.2:
                yield label, math.sqrt(p * quality), p * quality


class Detectron2(Torchvision):
    clips_first = False

    def __init__(self):
        self.average = 300

    def place(self, index, stride, image_side, cells):
        return (index + 0.5) * stride

    def divide(self, classes, boxes, qualities, counts, weights):
        self.average = 0.9 * self.average + 0.1 * max(sum(counts), 1)
        return tuple(sum(part) / self.average for part in (classes, boxes, qualities))


class MMDetection(Official):
    pixel = 0
    iou_threshold = 0.5

    def place(self, index, stride, image_side, cells):
        return (index + 0.5) * stride

    def box_loss(self, pred, target):
        intersection, union, _ = regions(pred, target)
        return -(intersection / union).clamp(min=1e-6).log()

    def scored(self, probabilities, quality):
        for label, p in enumerate(probabilities):
            if p > 0.05:
                yield label, p * quality, p


class MMDetectionTricks(MMDetection):
    iou_threshold = 0.6
    unit = OfficialImproved.unit
    distance = OfficialImproved.distance
    in_region = OfficialImproved.in_region
    box_loss = Torchvision.box_loss


class SimpleAICV(Official):
    """Without its boxes of whole pixels and its clamped probabilities."""

    topk_of_image = True
    class_agnostic = True
    pixel = 0
    clips_first = False

    def place(self, index, stride, image_side, cells):
        return (index + 0.5) * stride

    def in_range(self, longest, low, high):
        return low < longest < high

    def in_region(self, x, y, box, stride):
        off = math.hypot(x - (box[0] + box[2]) / 2, y - (box[1] + box[3]) / 2)
        return off < 1.5 * stride and min(ltrb(x, y, box)) > 0

    def distance(self, raw, scale):
        return torch.exp(raw * math.exp(scale))

    def box_loss(self, pred, target):
        intersection, union, _ = regions(pred, target)
        iou = intersection / union
        largest = torch.maximum(pred, target)
        diagonal = (largest[:, 0] + largest[:, 2]) ** 2 + (largest[:, 1] + largest[:, 3]) ** 2
        off_x = (pred[:, 2] - pred[:, 0] - target[:, 2] + target[:, 0]) / 2
        off_y = (pred[:, 3] - pred[:, 1] - target[:, 3] + target[:, 1]) / 2
        shape = lambda d: torch.atan((d[:, 0] + d[:, 2]) / (d[:, 1] + d[:, 3]))  # noqa: E731
        v = 4 / math.pi**2 * (shape(target) - shape(pred)) ** 2
        return 1 - (iou - (off_x**2 + off_y**2) / diagonal - v / (1 - iou + v) * v)

    def divide(self, classes, boxes, qualities, counts, weights):
        n = max(sum(counts), 1)
        return sum(classes) / n, sum(boxes) / n, sum(qualities) / n

    def scored(self, probabilities, quality):
        p = max(probabilities)
        if math.sqrt(p * quality) > 0.05:
            yield probabilities.index(p), math.sqrt(p * quality), p * quality


class Notebook(Official):
    """VectXmy/FCOS.Pytorch; see the preset for the 1 in its NMS."""

    alpha = 0.75
    weighted = False
    topk_of_image = True
    iou_threshold = 0.2
    clips_first = False

    def in_range(self, longest, low, high):
        return low < longest <= high

    in_region = Torchvision.in_region
    box_loss = Torchvision.box_loss

    def divide(self, classes, boxes, qualities, counts, weights):
        return tuple(
            sum(x / max(n, 1) for x, n in zip(part, counts, strict=True)) / len(counts)
            for part in (classes, boxes, qualities)
        )

    def scored(self, probabilities, quality):
        p = max(probabilities)
        if p * quality >= 0.3:
            yield probabilities.index(p), p * quality, p * quality


PUBLISHED = {
    "official": Official,
    "official-improved": OfficialImproved,
    "adelaidet": AdelaiDet,
    "adelaidet-iou": AdelaiDetIoU,
    "adelaidet-rt": AdelaiDetRT,
    "detectron2": Detectron2,
    "mmdetection": MMDetection,
    "mmdetection-tricks": MMDetectionTricks,
    "torchvision": Torchvision,
    "simpleaicv": SimpleAICV,
    "notebook": Notebook,
}
every_rule = pytest.mark.parametrize("preset", PUBLISHED)


@pytest.fixture
def build(small_model):
    def build(preset, **overrides) -> FCOS:
        settings = {"backbone": "resnet18", "num_classes": CLASSES, "fpn_channels": 32, "head_channels": 32}
        return small_model(preset=preset, **(settings | overrides))

    return build


def random_boxes(count):
    """On a grid of 4 pixels, so that ties and boundaries occur; half of them share a center."""
    corners = 4 * torch.randint(0, 24, (count, 2))
    boxes = torch.cat((corners, corners + 4 * torch.randint(2, 36, (count, 2))), dim=1)
    for box in boxes[::2]:
        half = (box[2:] - box[:2]) // 8 * 4
        box[:2], box[2:] = 68 - half, 68 + half
    return boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)].float()


def random_outputs(preset, batch=3):
    """Outputs of a head with distances as large as boxes."""
    exp = FCOS_PRESETS[preset].regression == "exp"
    outputs = HeadOutputs([], [], [])
    for rows, columns in GRIDS[: PUBLISHED[preset].levels]:
        outputs.cls_logits.append(torch.randn(batch, CLASSES, rows, columns) * 1.5 - 0.5)
        spread = torch.randn(batch, 4, rows, columns)
        outputs.box_regression.append(torch.exp(spread / 2 + 3) if exp else torch.exp(spread / 2 + 0.7))
        outputs.centerness.append(torch.randn(batch, 1, rows, columns) + 1)
    return outputs


def by_image(outputs):
    """(P, C), (P, 4) and (P,) float64 for each image."""
    flat = [torch.cat([x.flatten(2) for x in maps], dim=2).mT.double() for maps in outputs]
    return [(logits, distances, quality[:, 0]) for logits, distances, quality in zip(*flat, strict=True)]


def whole_images(count):
    return ImageBatch(torch.zeros(count, 3, *SIZE), [SIZE] * count)


@every_rule
def test_locations_find_their_boxes(build, preset):
    model, project = build(preset), PUBLISHED[preset]()
    for _ in range(3):
        boxes = random_boxes(25)
        targets = model.assign(whole_images(1), GroundTruth.pack([boxes], [torch.zeros(len(boxes)).long()]))
        expected = project.assign(boxes.tolist())
        assert len(set(expected)) > 5
        assert targets.matched[0].tolist() == expected


@pytest.mark.parametrize(
    ("preset", "on_p3", "on_p4"),
    [
        *((name, True, True) for name in ("official", "official-improved", "adelaidet", "adelaidet-rt")),
        *((name, True, True) for name in ("adelaidet-iou", "mmdetection", "mmdetection-tricks")),
        *((name, False, False) for name in ("detectron2", "torchvision", "simpleaicv")),
        ("notebook", True, False),
    ],
)
def test_a_distance_of_exactly_64_pixels(build, preset, on_p3, on_p4):
    model = build(preset)
    at = 0 if preset == "torchvision" else 4
    for level, expected in ((0, on_p3), (1, on_p4)):
        stride = STRIDES[level]
        x = 4 * stride + at * stride // 8  # the fifth location of the row
        box = torch.tensor([[x - 60.0, x - 60.0, x + 64.0, x + 60.0]])
        targets = model.assign(whole_images(1), GroundTruth.pack([box], [torch.tensor([0])]))
        first = sum(rows * columns for rows, columns in GRIDS[:level])
        assert (targets.matched[0, first + 4 * GRIDS[level][1] + 4].item() == 0) == expected


@every_rule
def test_losses(build, preset, monkeypatch):
    # There is no padding here.
    model, project = build(preset), PUBLISHED[preset]()
    boxes = [random_boxes(6), random_boxes(2), torch.zeros(0, 4)]
    labels = [torch.randint(0, CLASSES, (len(b),)) for b in boxes]
    targets = model.assign(whole_images(3), GroundTruth.pack(boxes, labels))
    assert targets.num_positive > 10
    listed = [(b.tolist(), c.tolist()) for b, c in zip(boxes, labels, strict=True)]
    for _ in range(3):  # for the moving average
        outputs = random_outputs(preset)
        monkeypatch.setattr(model, "network", lambda _, outputs=outputs: outputs)
        losses = model.losses(torch.zeros(3, 3, *SIZE), targets)
        expected = project.losses(by_image(outputs), listed)
        for loss, value in zip(losses.values(), expected, strict=True):
            assert loss.item() == pytest.approx(float(value), rel=1e-5)


@every_rule
def test_losses_of_a_batch_without_a_box(build, preset, monkeypatch):
    model, project = build(preset), PUBLISHED[preset]()
    nothing = GroundTruth.pack([torch.zeros(0, 4)] * 3, [torch.zeros(0).long()] * 3)
    outputs = random_outputs(preset)
    monkeypatch.setattr(model, "network", lambda _: outputs)
    losses = model.losses(torch.zeros(3, 3, *SIZE), model.assign(whole_images(3), nothing))
    expected = project.losses(by_image(outputs), [([], [])] * 3)
    for loss, value in zip(losses.values(), expected, strict=True):
        assert loss.item() == pytest.approx(float(value), rel=1e-5)


@every_rule
def test_detections(build, preset):
    model, project = build(preset, topk_candidates=TOPK, max_detections=MOST), PUBLISHED[preset]()
    outputs = random_outputs(preset, batch=2)
    detections = model.postprocess(outputs, whole_images(2))
    for found, image in zip(detections, by_image(outputs), strict=True):
        scores, labels, boxes = zip(*project.detect(*image), strict=True)
        assert len(scores) >= 5
        assert found["labels"].tolist() == list(labels)
        torch.testing.assert_close(found["scores"], torch.tensor(scores), rtol=1e-5, atol=0)
        torch.testing.assert_close(found["boxes"], torch.tensor(boxes), rtol=1e-5, atol=1e-3)


@every_rule
def test_distances(build, preset):
    model, project = build(preset, head_convs=0), PUBLISHED[preset]()
    head = model.head.regression_head
    assert (head.scales is None) == isinstance(project, Torchvision)
    scales = [0.5, 0.8, 1.0, 1.2, 1.5]
    with torch.no_grad():
        if head.scales is not None:
            assert head.scales.tolist() == [1.0] * project.levels
            head.scales.copy_(torch.tensor(scales[: project.levels]))
        head.bbox_reg.weight.normal_()
        features = [torch.rand(1, 32, *grid) / 8 for grid in GRIDS[: project.levels]]
        raw = [head.bbox_reg(x) for x in features]
        distances = model.head(features).box_regression
    for x, found, scale in zip(raw, distances, scales[: project.levels], strict=True):
        torch.testing.assert_close(found, project.distance(x, scale))
    assert model._units == tuple(project.unit(stride) for stride in STRIDES[: project.levels])


CAFFE2, DETECTRON = (102.9801, 115.9465, 122.7717), (103.53, 116.28, 123.675)  # blue, green, red
PIXEL = (0.2, 0.4, 0.6)  # red, green, blue
SEEN = {
    **dict.fromkeys(("official", "official-improved", "mmdetection"), CAFFE2),
    **dict.fromkeys(("adelaidet", "adelaidet-iou", "adelaidet-rt"), DETECTRON),
    **dict.fromkeys(("detectron2", "mmdetection-tricks"), DETECTRON),
}


@pytest.mark.parametrize("preset", FCOS_PRESETS)
def test_pixel_values_of_the_backbone(build, preset):
    red, green, blue = PIXEL
    if preset in SEEN:  # 0 to 255, std 1
        expected = [255 * x - mean for x, mean in zip((blue, green, red), SEEN[preset], strict=True)]
    elif preset == "simpleaicv":
        expected = [red, green, blue]
    else:
        expected = [(red - 0.485) / 0.229, (green - 0.456) / 0.224, (blue - 0.406) / 0.225]
    image = torch.tensor(PIXEL)[:, None, None].expand(3, 4, 4)
    seen = build(preset).transform(image)
    torch.testing.assert_close(seen[:, 2, 3], torch.tensor(expected), rtol=1e-6, atol=1e-4)


# stride_in_1x1, centerness_on, head_bias, num_classes
PARTS = {
    "official": (1, "classification", True, 80),
    "official-improved": (1, "regression", True, 80),
    "adelaidet": (1, "regression", True, 80),
    "adelaidet-iou": (1, "regression", True, 80),
    "adelaidet-rt": (1, "regression", True, 80),
    "detectron2": (1, "regression", True, 80),
    "mmdetection": (1, "classification", False, 80),
    "mmdetection-tricks": (1, "regression", True, 80),
    "torchvision": (3, "regression", True, 91),
    "simpleaicv": (3, "regression", False, 80),
    "notebook": (3, "classification", True, 20),
}


@pytest.mark.parametrize("preset", FCOS_PRESETS)
def test_parts(build, preset):
    kernel, tower, bias, classes = PARTS[preset]
    model = build(preset, backbone="resnet50", num_classes=FCOS_PRESETS[preset].num_classes, head_convs=2)
    block = model.backbone.body.layer2[0]
    assert [conv.stride[0] for conv in (block.conv1, block.conv2)] == ([2, 1] if kernel == 1 else [1, 2])
    assert [name for name, _ in model.named_modules() if name.endswith("ctrness")] == [
        f"head.{tower}_head.bbox_ctrness"
    ]
    for head in (model.head.classification_head, model.head.regression_head):
        assert (head.conv[0].bias is not None) == (head.conv[3].bias is not None) == bias
    assert model.head.classification_head.cls_logits.out_channels == classes
    assert model.head.classification_head.cls_logits.bias.sigmoid().tolist() == pytest.approx(
        [0.01] * classes
    )


def test_numbers():
    counts = {"notebook": (150, 150)}
    sizes = {"adelaidet-rt": (512, 736), "simpleaicv": (1024, 1024), "notebook": (800, 1024)}
    of_one_process = ("detectron2", "torchvision", "simpleaicv", "notebook")
    for name, config in FCOS_PRESETS.items():
        assert (config.topk_candidates, config.max_detections) == counts.get(name, (1000, 100))
        assert (config.min_size, config.max_size) == sizes.get(name, (800, 1333))
        assert (config.focal_gamma, config.prior, config.p6_from) == (2.0, 0.01, "p5")
        assert config.average_totals == (name not in of_one_process)
        assert config.ignore_padding == (name == "official-improved")
        assert config.fpn_upsampling == ("bilinear" if name == "simpleaicv" else "nearest")


@pytest.mark.parametrize("preset", FCOS_PRESETS)
def test_every_preset_trains_a_step_and_detects(build, make_talkative, batch, preset):
    model = build(preset)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, targets = batch  # one has no boxes
    losses = model(images, targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    optimizer.step()
    model.eval()
    make_talkative(model)
    fast = model.optimize_for_inference(precision="float32")
    for found, again in zip(model(images), fast(images), strict=True):
        assert len(found["scores"]) > 0
        assert abs(len(found["scores"]) - len(again["scores"])) <= 2
    assert FCOSConfig.from_dict(model.config.to_dict()) == model.config
    assert {line.split()[0] for line in str(model.config).splitlines()} == set(model.config.to_dict())


def test_the_moving_average_is_not_saved_and_compiles(build, monkeypatch):
    model = build("detectron2")
    assert not any("mean_num" in key for key in model.state_dict())
    targets = model.assign(whole_images(1), GroundTruth.pack([random_boxes(8)], [torch.zeros(8).long()]))
    outputs = random_outputs("detectron2", batch=1)
    monkeypatch.setattr(model, "network", lambda _: outputs)
    compiled = torch.compile(model.losses, backend="aot_eager", fullgraph=True)
    average, sums = 300, []
    for function in (compiled, model.losses, compiled):
        losses = function(torch.zeros(1, 3, *SIZE), targets)
        average = 0.9 * average + 0.1 * targets.num_positive.item()
        assert model.mean_num_positive.item() == pytest.approx(average)
        sums.append([loss.item() * average for loss in losses.values()])
    assert sums[1] == pytest.approx(sums[0])
    assert sums[2] == pytest.approx(sums[0])
