"""Where boxes end and which are dropped: what the presets' own programs learn and write, in pixels of the image.

The oracles are the formulas of maskrcnn-benchmark's BoxList (``x + w - 1`` on the way in, ``x2 - x1 + 1`` on the way
out), of detectron2's ``detector_postprocess`` and of mmdetection's ``min_bbox_size``.
"""

from __future__ import annotations

import math

import pytest
import torch

from fcos_fast.models import BatchPacker, DetectorConfig
from fcos_fast.models.head import HeadOutputs
from fcos_fast.models.presets import FCOS_PRESETS, PRESETS

INCLUSIVE = ("official", "official-improved")
AT_END = ("adelaidet", "adelaidet-iou", "adelaidet-rt", "detectron2")
BEFORE_NMS = ("mmdetection", "mmdetection-tricks")
SIZE = (96, 160)
# The image keeps its size, is enlarged (to 192 x 320), is shrunk (to 48 x 80).
SCALES = {
    1: {"min_size": None},
    2: {"min_size": 192, "max_size": None},
    0.5: {"min_size": 48, "max_size": None},
}


@pytest.fixture
def build(small_model):
    def build(preset, scale=1, **overrides):
        return small_model(backbone="resnet18", preset=preset, **(SCALES[scale] | overrides))

    return build


def test_conventions_of_the_presets():
    assert {name for name, config in PRESETS.items() if config.inclusive_targets} == set(INCLUSIVE)
    drops = {name: config.drop_empty for name, config in PRESETS.items() if config.drop_empty != "never"}
    assert drops == dict.fromkeys(AT_END, "at_end") | dict.fromkeys(BEFORE_NMS, "before_nms")


@pytest.mark.parametrize("preset", ["official", "retinanet"])
def test_checkpoints_without_the_fields_keep_their_meaning(preset):
    values = PRESETS[preset].to_dict()
    del values["inclusive_targets"], values["drop_empty"]
    again = type(PRESETS[preset]).from_dict(values)
    assert isinstance(again, DetectorConfig)
    assert (again.inclusive_targets, again.drop_empty) == (False, "never")


# COCO's x, y, w, h: at the far corner, slightly over one pixel, one pixel, less than one pixel
ANNOTATED = [[10, 20, 30.5, 40], [130, 56, 30, 40], [5, 5, 1.5, 8], [50, 60, 1, 20], [70, 60, 9, 0.4]]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", INCLUSIVE)
def test_targets_end_at_the_last_pixel(build, preset, scale):
    model = build(preset, scale)
    target = {
        "boxes": torch.tensor([[x, y, x + w, y + h] for x, y, w, h in ANNOTATED]),
        "labels": torch.tensor([0, 1, 2, 0, 1]),
    }
    expected = torch.tensor(
        [[x, y, x + max(w - 1, 0), y + max(h - 1, 0)] for x, y, w, h in ANNOTATED if w > 1 and h > 1]
    )
    image = torch.rand(3, *SIZE)
    for gt in (
        model._pack([image], [target])[1],
        BatchPacker(model.config).collate([BatchPacker(model.config).resize(image, target)])[1],
    ):
        count = int(gt.starts[-1])
        torch.testing.assert_close(gt.boxes[:count], expected * scale)
        assert gt.labels[:count].tolist() == [0, 1, 2]
    losses = model([image], [target])
    assert all(loss.isfinite() for loss in losses.values())


def test_ignore_marks_stay_aligned_with_boxes(build):
    """A box of one pixel is dropped with its label and its ignore mark."""
    packer = BatchPacker(build("official").config)
    target = {
        "boxes": torch.tensor([[50.0, 60, 51, 80], [10, 20, 40, 60], [20, 20, 50, 60]]),
        "labels": torch.tensor([0, 1, 2]),
        "ignore": torch.tensor([False, True, False]),
        "image_id": torch.tensor([1, 2, 3]),
    }
    image, resized = packer.resize(torch.rand(3, *SIZE), target)
    assert resized["ignore"].tolist() == [True, False]
    assert resized["image_id"].tolist() == [1, 2, 3]  # not per box
    assert packer.collate([(image, resized)])[1].labels[:1].tolist() == [2]


def test_invalid_boxes_are_still_errors(build):
    packer = BatchPacker(build("official").config)
    for box in ([5.0, 5, 5, 9], [9.0, 5, 5, 9], [5.0, math.nan, 9, 9]):
        target = {"boxes": torch.tensor([box]), "labels": torch.tensor([0])}
        with pytest.raises(ValueError, match=r"targets\[0\]\['boxes'\]\[0\]"):
            packer.collate([packer.resize(torch.rand(3, *SIZE), target)])


def perfect_outputs(model, boxes, labels, size):
    """Outputs of a network that predicts boxes (M, 4) in pixels of the padded ``size``, each at one location."""
    config = model.config
    outputs = HeadOutputs([], [], [])
    for stride in config.strides:
        rows, columns = math.ceil(size[0] / stride), math.ceil(size[1] / stride)
        outputs.cls_logits.append(torch.full((1, config.num_classes, rows, columns), -20.0))
        outputs.box_regression.append(torch.ones(1, 4, rows, columns))
        outputs.centerness.append(torch.full((1, 1, rows, columns), 20.0))
    unit = 8 if config.regression_unit == "stride" else 1
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        i, j = int((y1 + y2) / 2 // 8), int((x1 + x2) / 2 // 8)
        x, y = 8 * j + 4, 8 * i + 4
        distances = torch.tensor([x - x1, y - y1, x2 - x, y2 - y]) / unit
        outputs.cls_logits[0][0, label, i, j] = 20.0
        outputs.box_regression[0][0, :, i, j] = distances
    return outputs


# Small boxes, where one pixel matters most, and one at the far corner.
OBJECTS = [[3, 2, 11, 13], [20, 18, 31, 31], [50, 10, 75, 20], [90, 50, 118, 91], [136, 72, 160, 96]]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", INCLUSIVE)
def test_a_perfect_model_has_an_average_precision_of_1(build, monkeypatch, preset, scale):
    average_precision = pytest.importorskip(
        "fcos_fast.engine.average_precision", exc_type=ImportError
    ).average_precision
    categories = pytest.importorskip("fcos_fast.data.categories").Categories
    model = build(preset, scale).eval()
    learned = [[side * scale for side in (x1, y1, x2 - 1, y2 - 1)] for x1, y1, x2, y2 in OBJECTS]
    labels = [0, 1, 2, 0, 1]

    def network(images):
        return perfect_outputs(model, learned, labels, images.shape[-2:])

    monkeypatch.setattr(model, "network", network)
    (found,) = model([torch.rand(3, *SIZE)])
    # In a shrunk image, an object at the edge ends at the last pixel.
    far = max(1 / scale - 1, 0)
    expected = torch.tensor(OBJECTS, dtype=torch.float32)
    order = found["boxes"][:, 0].argsort()
    torch.testing.assert_close(found["boxes"][order][:-1], expected[:-1], rtol=0, atol=1e-3)
    torch.testing.assert_close(found["boxes"][order][-1], expected[-1] - torch.tensor([0, 0, far, far]))
    truth = {
        "images": [{"id": 1, "width": SIZE[1], "height": SIZE[0]}],
        "annotations": [
            {
                "id": n + 1,
                "image_id": 1,
                "category_id": label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for n, ((x1, y1, x2, y2), label) in enumerate(zip(OBJECTS, labels, strict=True))
        ],
        "categories": [{"id": n, "name": f"{n}"} for n in range(3)],
    }
    if scale >= 1:  # in a shrunk image, the last box is not exact
        assert average_precision(truth, [found], categories(("0", "1", "2"), (0, 1, 2))).ap == 1


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", INCLUSIVE)
def test_detections_equal_the_official_evaluation(build, make_talkative, preset, scale):
    model = build(preset, scale).eval()
    make_talkative(model)
    images = [torch.rand(3, *SIZE)]
    batch = model.transform.batch([model.transform(images[0])])
    ((height, width),) = batch.sizes
    with torch.no_grad():
        (learned,) = model.postprocess(model.network(batch.tensor), batch)
    (found,) = model(images)
    assert learned["boxes"].amax(dim=0).tolist()[2:] == [width - 1, height - 1]
    assert found["boxes"].amax(dim=0).tolist()[2:] == pytest.approx(
        [160, 96] if scale >= 1 else [160 - (1 / scale - 1), 96 - (1 / scale - 1)]
    )
    x1, y1, x2, y2 = (learned["boxes"] / scale).unbind(1)  # prediction.resize, then convert("xywh")
    written = torch.stack((x1, y1, x2 - x1 + 1, y2 - y1 + 1), dim=1)
    ends = torch.minimum(written[:, :2] + written[:, 2:], torch.tensor([160.0, 96.0]))  # clipped to the image
    torch.testing.assert_close(found["boxes"], torch.cat((written[:, :2], ends), dim=1), rtol=1e-5, atol=1e-3)


# Empty boxes


def random_outputs(model, size, empty):
    """Outputs of a head for ``size``; some boxes have no width, some no height, some are outside the image."""
    outputs = HeadOutputs([], [], [])
    for stride in model.config.strides:
        grid = (math.ceil(size[0] / stride), math.ceil(size[1] / stride))
        distances = 3 * torch.rand(1, 4, *grid) * 8 / (1 if model._units[0] == 8 else 1 / 8)
        flat = torch.rand(2, *grid) < empty
        distances[0, ::2] *= ~flat[0]
        distances[0, 1::2] *= ~flat[1]
        outputs.cls_logits.append(torch.randn(1, model.config.num_classes, *grid))
        outputs.box_regression.append(distances)
        outputs.centerness.append(torch.randn(1, 1, *grid) + 2)
    return outputs


def sides(found):
    return (found["boxes"][:, 2:] - found["boxes"][:, :2]).amin(dim=1)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("preset", [name for name in FCOS_PRESETS if name not in INCLUSIVE])
def test_empty_boxes(build, monkeypatch, preset, scale):
    """Some boxes have no area in the network's output; others lose it when they are clipped to the image."""
    options = {"max_detections": 20, "size_divisor": 64}
    model = build(preset, scale, **options).eval()
    keeps = build(preset, scale, **options, drop_empty="never").eval()
    torch.manual_seed(3)
    outputs = random_outputs(model, model.transform.padded_size([(96 * scale, 160 * scale)]), 0.4)
    for net in (model, keeps):
        monkeypatch.setattr(net, "network", lambda _: outputs)
    image = torch.rand(3, *SIZE)
    (found,), (everything,) = model([image]), keeps([image])
    kept = sides(everything) > 0
    assert not kept.all()
    if preset in AT_END:  # among the detections after NMS
        for name, values in everything.items():
            assert torch.equal(found[name], values[kept])
    elif preset in BEFORE_NMS:
        assert (sides(found) > 0).all()
        assert len(found["scores"]) == 20 > int(kept.sum())  # they count towards the maximum
    else:
        assert torch.equal(found["boxes"], everything["boxes"])


@pytest.mark.parametrize("drop_empty", ["never", "before_nms", "at_end"])
def test_empty_boxes_of_a_retinanet(build, make_talkative, monkeypatch, drop_empty):
    """Boxes outside the image lose their area when they are clipped."""
    model = build("retinanet", max_detections=30, size_divisor=128, drop_empty=drop_empty).eval()
    make_talkative(model)
    image = torch.rand(3, 100, 140)
    (found,) = model([image])
    assert (sides(found) > 0).all() == (drop_empty != "never")
    assert (len(found["scores"]) == 30) == (drop_empty != "at_end")
