"""Average precision compared with pycocotools and with values computed by hand."""

from __future__ import annotations

import contextlib
import io
import math

import pytest
import torch

pytest.importorskip("pycocotools")
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcos_fast.data.categories import Categories
from fcos_fast.data.coco_results import coco_detections
from fcos_fast.engine.average_precision import average_precision

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
NAMES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")


def ground_truth(images, categories):
    """COCO ground truth of ``(boxes xyxy, labels, iscrowd)`` per image; image ids have gaps."""
    annotations = []
    for i, (boxes, labels, crowds) in enumerate(images):
        for (x1, y1, x2, y2), label, crowd in zip(boxes, labels, crowds, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * i + 3,
                    "category_id": categories.ids[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": crowd,
                }
            )
    return {
        "images": [{"id": 10 * i + 3, "width": 640, "height": 480} for i in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in zip(categories.ids, categories.names, strict=True)],
    }


def detection(boxes, labels, scores):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
    }


def pycocotools_summary(truth, detections, categories):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        results = [
            r
            for image, d in zip(truth["images"], detections, strict=True)
            for r in coco_detections(image["id"], d, categories)
        ]
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = [math.nan if v == -1 else v for v in evaluation.stats]
    per_class = {}
    for k, category_id in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, k, 0, 2]
        name = categories.names[categories.ids.index(category_id)]
        per_class[name] = precision[precision > -1].mean() if (precision > -1).any() else math.nan
    return dict(zip(NAMES, values, strict=True)), per_class


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_pycocotools_on_random_images(seed):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator)

    categories = Categories(("cat", "dog", "horse", "never"), ids=(7, 2, 90, 4))  # ids with gaps, unsorted
    images, detections = [], []
    for _ in range(12):
        n = int(random(1) * 9)  # also images without a box
        corner, size = random(n, 2) * 400, random(n, 2) ** 3 * 240 + 2
        boxes = torch.cat([corner, corner + size], dim=1)
        labels = (random(n) * 3).long()
        crowds = (random(n) < 0.15).int().tolist()
        images.append((boxes.tolist(), labels.tolist(), crowds))
        found = random(n) < 0.8
        noisy = (boxes + torch.randn(n, 4, generator=generator) * 0.08 * size.repeat(1, 2))[found]
        wrong = int(random(1) * 5)
        corner, size = random(wrong, 2) * 400, random(wrong, 2) * 100 + 2
        noisy = torch.cat([noisy, torch.cat([corner, corner + size], dim=1)])
        scores = (random(len(noisy)) * 20).round() / 20  # many ties
        all_labels = torch.cat([labels[found], (random(wrong) * 4).long()])
        detections.append({"boxes": noisy, "labels": all_labels, "scores": scores})
    truth = ground_truth(images, categories)
    expected, per_class = pycocotools_summary(truth, detections, categories)
    result = average_precision(truth, detections, categories)
    assert result.summary() == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert result.per_class == pytest.approx(per_class, abs=1e-9, nan_ok=True)
    assert math.isnan(result.per_class["never"])


@pytest.fixture
def one_class():
    return Categories(("thing",), ids=(5,))


def test_perfect_detections_have_ap_1(one_class):
    truth = ground_truth([([[10, 10, 50, 60]], [0], [0]), ([], [], [])], one_class)
    detections = [detection([[10, 10, 50, 60]], [0], [0.9]), detection([], [], [])]
    result = average_precision(truth, detections, one_class)
    assert result.ap == result.ap50 == result.ap75 == result.ar100 == result.ap_medium == 1
    assert math.isnan(result.ap_small)
    assert math.isnan(result.ap_large)


def test_iou_of_06_counts_for_three_of_ten_thresholds(one_class):
    truth = ground_truth([([[0, 0, 100, 100]], [0], [0])], one_class)
    result = average_precision(truth, [detection([[0, 0, 100, 62]], [0], [0.9])], one_class)  # IoU 0.62
    assert result.ap == pytest.approx(0.3)
    assert (result.ap50, result.ap75) == (1, 0)


def test_false_positive_above_the_true_one_halves_precision(one_class):
    truth = ground_truth([([[0, 0, 40, 40]], [0], [0])], one_class)
    wrong_first = detection([[200, 200, 240, 240], [0, 0, 40, 40]], [0, 0], [0.9, 0.8])
    assert average_precision(truth, [wrong_first], one_class).ap50 == pytest.approx(0.5)
    wrong_last = detection([[200, 200, 240, 240], [0, 0, 40, 40]], [0, 0], [0.8, 0.9])
    assert average_precision(truth, [wrong_last], one_class).ap50 == pytest.approx(1)


def test_crowd_is_neither_missed_nor_a_false_positive(one_class):
    truth = ground_truth([([[0, 0, 40, 40], [100, 100, 140, 140]], [0, 0], [0, 1])], one_class)
    missed = [detection([[0, 0, 40, 40]], [0], [0.5])]
    found = [detection([[0, 0, 40, 40], [100, 100, 140, 140]], [0, 0], [0.5, 0.9])]
    assert average_precision(truth, missed, one_class).ap == 1
    assert average_precision(truth, found, one_class).ap == 1


def test_no_detection_at_all_is_zero(one_class):
    truth = ground_truth([([[0, 0, 40, 40]], [0], [0])], one_class)
    result = average_precision(truth, [detection([], [], [])], one_class)
    assert (result.ap, result.ar100) == (0, 0)


def test_no_ground_truth_at_all_is_nan(one_class):
    truth = ground_truth([([], [], [])], one_class)
    result = average_precision(truth, [detection([[0, 0, 9, 9]], [0], [0.9])], one_class)
    assert all(math.isnan(v) for v in result.summary().values())


def test_counts_must_agree(one_class):
    truth = ground_truth([([], [], [])], one_class)
    with pytest.raises(ValueError, match="0 images; expected 1"):
        average_precision(truth, [], one_class)
