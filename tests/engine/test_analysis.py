"""Matching, curves, confusion matrix and error types against pycocotools and slow versions of their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from fcos_fast.data import Categories, DetectionDataset
from fcos_fast.data.dataset import Record
from fcos_fast.engine.analysis import analyze, confusion_matrix
from fcos_fast.engine.average_precision import average_precision
from fcos_fast.engine.matching import match_detections, pairwise_iou
from fcos_fast.engine.precision_recall import count as count_curves
from fcos_fast.engine.precision_recall import curves
from fcos_fast.engine.tide import ERRORS

NAMES = ("cat", "dog", "horse", "never")


def found(boxes, labels, scores):
    return {
        "boxes": torch.tensor(np.asarray(boxes, np.float32).reshape(-1, 4)),
        "labels": torch.tensor(np.asarray(labels, np.int64)),
        "scores": torch.tensor(np.asarray(scores, np.float32)),
    }


def dataset_of(*images, names=NAMES):
    """A dataset of ``(boxes, labels, ignore)`` per image."""
    records = [
        Record(
            f"{i}.jpg",
            (320, 240),
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(labels, np.int64),
            np.asarray(ignore, bool),
            np.zeros((3, 240, 320), np.uint8),
        )
        for i, (boxes, labels, ignore) in enumerate(images)
    ]
    return DetectionDataset(records, Categories(names))


def random_case(seed, images=25, ties=False):
    """Crowded images with duplicates, shifted boxes, wrong classes, ignored objects and images without either."""
    rng = np.random.default_rng(seed)
    truth, detections = [], []
    for _ in range(images):
        n = int(rng.integers(0, 9))
        corner, side = rng.random((n, 2)) * 120, rng.random((n, 2)) * 80 + 8
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = rng.integers(0, 3, n)
        truth.append((boxes, labels, rng.random(n) < 0.2))
        copies = rng.integers(0, n, int(rng.integers(0, 4 * n + 1))) if n else np.zeros(0, int)
        near = boxes[copies] + rng.normal(0, 0.1, (len(copies), 4)) * np.tile(side[copies], 2)
        wrong = int(rng.integers(0, 5))
        corner = rng.random((wrong, 2)) * 150
        near = np.concatenate([near, np.concatenate([corner, corner + 30], axis=1)])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        kinds = np.where(rng.random(len(copies)) < 0.7, labels[copies], rng.integers(0, 4, len(copies)))
        scores = rng.random(len(near))
        scores = np.round(scores * 20) / 20 if ties else scores
        detections.append(found(near, np.concatenate([kinds, rng.integers(0, 4, wrong)]), scores))
    return dataset_of(*truth), detections


def slow_iou(a, b, ignored):
    """IoU of two boxes; of an ignored one, the share of ``a`` inside it."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    area = (a[2] - a[0]) * (a[3] - a[1])
    return shared / (area if ignored else area + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_match(record, boxes, labels, scores):
    """COCO's rule, one detection after the other; object of each detection in the order given, or None."""
    free = set(range(len(record.boxes)))
    match = [None] * len(boxes)
    for d in sorted(range(len(boxes)), key=lambda d: -scores[d]):
        best = None
        for g in sorted(free):
            iou = slow_iou(boxes[d], record.boxes[g].tolist(), record.ignore[g])
            if labels[d] == record.labels[g] and iou >= 0.5:
                rank = (not record.ignore[g], iou)
                if best is None or rank >= best[0]:
                    best = (rank, g)
        if best is not None:
            match[d] = best[1]
            if not record.ignore[best[1]]:
                free.remove(best[1])
    return match


def per_image(dataset, detections):
    """Record, boxes, labels and scores of each image, best detection first."""
    for record, detection in zip(dataset.records, detections, strict=True):
        boxes, labels, scores = (detection[k].double().tolist() for k in ("boxes", "labels", "scores"))
        order = sorted(range(len(scores)), key=lambda d: -scores[d])
        yield record, [boxes[d] for d in order], [int(labels[d]) for d in order], [scores[d] for d in order]


def evaluated(dataset, detections):
    result = average_precision(dataset.coco_ground_truth(), detections, dataset.categories)
    return analyze(dataset, detections, result)


@pytest.mark.parametrize("seed", range(4))
def test_ap50_of_each_class_is_that_of_coco(seed):
    dataset, detections = random_case(seed, ties=seed % 2 == 1)
    analysis, _ = evaluated(dataset, detections)
    expected = analysis.average_precision
    found = {name: curve.ap50 for name, curve in analysis.per_class.items()}
    assert found == pytest.approx(expected.per_class50, abs=1e-9, nan_ok=True)
    assert analysis.overall.ap50 == pytest.approx(expected.ap50, abs=1e-9)
    assert math.isnan(found["never"])


@pytest.mark.parametrize("seed", range(4))
def test_precision_recall_curve_is_that_of_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    dataset, detections = random_case(seed)
    truth = coco.COCO()
    truth.dataset = dataset.coco_ground_truth()
    truth.createIndex()
    from fcos_fast.engine.average_precision import coco_results

    evaluation = cocoeval.COCOeval(truth, truth.loadRes([*coco_results(dataset, detections)]), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    analysis, _ = evaluated(dataset, detections)
    for k, name in enumerate(NAMES[:3]):
        expected = evaluation.eval["precision"][0, :, k, 0, 2]
        assert analysis.per_class[name].precisions == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_matches_are_those_of_the_rule(seed):
    dataset, detections = random_case(seed, ties=seed % 2 == 1)
    m = match_detections(dataset.records, detections, 4)
    start, expected = 0, []
    for record, boxes, labels, scores in per_image(dataset, detections):
        expected += [-1 if g is None else g + start for g in slow_match(record, boxes, labels, scores)]
        start += len(record.boxes)
    assert m.match.tolist() == expected
    assert m.ignored.any()
    assert m.true_positive.any()


def test_at_most_100_detections_per_class_count():
    boxes = [[0, 0, 10, 10]] * 3 + [[50, 50, 60, 60]] * 100
    dataset = dataset_of(([[0, 0, 10, 10]], [0], [False]))
    detections = [found(boxes, [0] * 103, [0.1] * 3 + [0.9] * 100)]
    m = match_detections(dataset.records, detections, 4)
    assert len(m.found) == 100
    assert not m.true_positive.any()


@pytest.mark.parametrize("seed", range(4))
def test_best_threshold_has_the_highest_f1_of_all(seed):
    dataset, detections = random_case(seed, ties=True)
    analysis, outcome = evaluated(dataset, detections)
    m = outcome.matching
    for label, name in enumerate(NAMES[:3]):
        rows = (m.found.labels == label) & ~m.ignored
        objects = ((m.objects.labels == label) & ~m.ignore).sum()

        def f1(threshold, rows=rows, objects=objects):
            shown = rows & (m.scores >= threshold)
            return 2 * (shown & m.true_positive).sum() / (shown.sum() + objects)

        curve = analysis.per_class[name]
        assert curve.f1 == pytest.approx(max(f1(t) for t in np.unique(m.scores)))
        assert f1(curve.threshold) == pytest.approx(curve.f1)
        assert curve.f1s[50] == pytest.approx(f1(0.5))
        shown = rows & (m.scores >= curve.threshold)
        assert curve.precision == pytest.approx((shown & m.true_positive).sum() / shown.sum())
        assert curve.recall == pytest.approx((shown & m.true_positive).sum() / objects)


def test_best_threshold_is_in_the_middle_of_its_range():
    counts = count_curves(np.array([0.8, 0.4]), np.array([True, False]), 1)
    assert curves([counts]).threshold == pytest.approx(0.6, abs=0.002)
    assert curves([counts]).f1 == 1


@pytest.mark.parametrize("seed", range(6))
def test_confusion_matrix_by_hand(seed):
    dataset, detections = random_case(seed)
    _, outcome = evaluated(dataset, detections)
    m = outcome.matching
    expected = np.zeros((5, 5), int)
    for image in range(len(dataset)):
        dets = [d for d in np.flatnonzero(m.found.images == image) if outcome.shown[d]]
        objs = [g for g in np.flatnonzero(m.objects.images == image) if not m.ignore[g]]
        for d in [d for d in dets if m.match[d] >= 0]:
            expected[m.objects.labels[m.match[d]], m.found.labels[d]] += 1
            dets.remove(d)
            objs.remove(m.match[d])
        while True:
            pairs = [
                (slow_iou(m.found.boxes[d], m.objects.boxes[g], False), -d, g) for d in dets for g in objs
            ]
            iou, d, g = max(pairs, default=(0, 0, 0))
            if iou < 0.5:
                break
            expected[m.objects.labels[g], m.found.labels[-d]] += 1
            dets.remove(-d)
            objs.remove(g)
        for d in dets:
            expected[4, m.found.labels[d]] += 1
        for g in objs:
            expected[m.objects.labels[g], 4] += 1
    matrix = confusion_matrix(outcome)
    assert matrix.tolist() == expected.tolist()
    assert matrix[:-1].sum() == (~m.ignore).sum()
    assert matrix[:, :-1].sum() == outcome.shown.sum()


def slow_errors(dataset, detections):
    """TIDE by its definitions: error of each detection, and AP50 after the correction of each type."""
    rows, missed = [], {}  # (score, label, match, kind, nearest)
    for image, (record, boxes, labels, scores) in enumerate(per_image(dataset, detections)):
        match = slow_match(record, boxes, labels, scores)
        taken = {g for g in match if g is not None}
        real = [g for g in range(len(record.boxes)) if not record.ignore[g]]
        for d, box in enumerate(boxes):
            iou = {g: slow_iou(box, record.boxes[g].tolist(), False) for g in real}
            own = max((g for g in real if record.labels[g] == labels[d]), key=iou.get, default=None)
            other = max((g for g in real if record.labels[g] != labels[d]), key=iou.get, default=None)
            own_iou, other_iou = iou.get(own, 0), iou.get(other, 0)
            kind = nearest = None
            if match[d] is None:
                if 0.1 <= own_iou < 0.5:
                    kind, nearest = "Loc", own
                elif other_iou >= 0.5:
                    kind, nearest = "Cls", other
                elif own_iou >= 0.5:
                    kind = "Dupe"
                else:
                    kind = "Both" if max(own_iou, other_iou) >= 0.1 else "Bkg"
            target = None if nearest is None or nearest in taken else (image, nearest)
            ignored = match[d] is not None and record.ignore[match[d]]
            rows.append([scores[d], labels[d], match[d] is not None, kind, target, ignored])
        for g in real:
            if g not in taken:
                missed[image, g] = int(record.labels[g])
    return rows, missed


def slow_ap(entries, count):
    """Mean over classes of the mean of the best precision from each of 101 recalls on."""
    values = []
    for label in count:
        hits = [hit for _, kind, hit in sorted(entries, key=lambda e: -e[0]) if kind == label]
        points = [(sum(hits[: i + 1]) / (i + 1), sum(hits[: i + 1]) / count[label]) for i in range(len(hits))]
        best = [max((p for p, r in points if r >= t), default=0) for t in np.linspace(0, 1, 101)]
        values.append(np.mean(best))
    return float(np.mean(values))


@pytest.mark.parametrize("seed", range(6))
def test_tide_by_its_definitions(seed):
    dataset, detections = random_case(seed)
    analysis, outcome = evaluated(dataset, detections)
    rows, missed = slow_errors(dataset, detections)
    kinds = [None if k < 0 else list(ERRORS)[k] for k in outcome.kind.tolist()]
    assert kinds == [row[3] for row in rows]
    assert {"Loc", "Cls", "Dupe", "Both", "Bkg"} <= set(kinds)

    best = {}
    for row in rows:
        if row[4] is not None and row[0] > best.get(row[4], (-1,))[0]:
            best[row[4]] = row
    count = {}
    for record in dataset.records:
        for label in record.labels[~record.ignore].tolist():
            count[label] = count.get(label, 0) + 1
    real = [row for row in rows if not row[5]]
    now = slow_ap([(s, label, hit) for s, label, hit, *_ in real], count)
    for error in list(ERRORS)[:5]:
        entries = []
        for row in real:
            if row[3] != error:
                entries.append((row[0], row[1], row[2]))
            elif row[4] is not None and best[row[4]] is row:
                entries.append((row[0], missed[row[4]], True))
        assert analysis.lost_precision[error] == pytest.approx(
            max(0, slow_ap(entries, count) - now), abs=1e-9
        )
    fewer = dict(count)
    for key, label in missed.items():
        if key not in best:
            fewer[label] -= 1
    entries = [(s, label, hit) for s, label, hit, *_ in real]
    expected = max(0, slow_ap(entries, {k: n for k, n in fewer.items() if n}) - now)
    assert analysis.lost_precision["Miss"] == pytest.approx(expected, abs=1e-9)


def test_groups_count_every_object_once():
    dataset = dataset_of(
        ([[0, 0, 10, 10], [0, 0, 40, 20], [0, 0, 100, 300]], [0, 1, 2], [False, False, True])
    )
    detections = [found([[0, 0, 40, 20]], [1], [0.9])]
    analysis, _ = evaluated(dataset, detections)
    assert [(g.low, g.high, g.objects, g.found) for g in analysis.sizes] == [(0, 16, 1, 0), (16, 32, 1, 1)]
    assert [(g.low, g.objects, g.found) for g in analysis.aspects] == [(0.8, 1, 0), (1.25, 0, 0), (2, 1, 1)]


def test_examples_name_what_is_wrong():
    truth = [[10, 10, 50, 50], [100, 100, 160, 160], [200, 10, 240, 50]]
    dataset = dataset_of((truth, [0, 1, 2], [False] * 3), (truth, [0, 1, 2], [False] * 3))
    perfect = found(truth, [0, 1, 2], [0.9, 0.9, 0.9])
    wrong = found(
        [[10, 10, 50, 50], [100, 100, 160, 160], [10, 100, 60, 150], [200, 10, 240, 32]],
        [0, 0, 1, 2],
        [0.95, 0.9, 0.95, 0.9],
    )
    analysis, _ = evaluated(dataset, [perfect, wrong])
    assert [(e.name, e.text) for e in analysis.missed] == [("1.jpg", "1 of 3 missed; here dog")]
    assert [(e.name, e.text) for e in analysis.false_positives] == [
        ("1.jpg", "dog 0.95: no labeled object is there")
    ]
    assert [(e.name, e.text) for e in analysis.badly_placed] == [
        ("1.jpg", "horse 0.90: IoU 0.55 with its object")
    ]
    assert analysis.badly_placed[0].box == (200, 10, 240, 50)
    assert analysis.confusion[1] == (1, 1, 0, 0, 0)
    assert analysis.errors["Cls"] == 1


@pytest.mark.parametrize("case", ["no detections", "no objects", "neither", "nothing right"])
def test_empty_cases(case):
    box = [[10, 10, 50, 50]]
    objects = ([], [], []) if case in ("no objects", "neither") else (box, [0], [False])
    detections = found([], [], []) if case in ("no detections", "neither") else found(box, [1], [0.9])
    analysis, outcome = evaluated(dataset_of(objects), [detections])
    assert analysis.thresholds == dict.fromkeys(NAMES, 0.5)
    assert sum(map(sum, analysis.confusion)) == {"neither": 0}.get(case, 1)
    assert all(value == 0 for name, value in analysis.lost_precision.items() if name not in ("Cls", "Miss"))
    assert outcome.missed.sum() == (case in ("no detections", "nothing right"))
    assert json.loads(json.dumps(analysis.to_dict(), allow_nan=False))["classes"] == list(NAMES)


def test_iou_of_crowds_and_empty_boxes():
    boxes = np.array([[0.0, 0, 10, 10], [5, 5, 5, 9]])
    others = np.array([[0.0, 0, 10, 20], [0, 0, 100, 100]])
    assert pairwise_iou(boxes, others, np.array([False, True])).tolist() == [[0.5, 1.0], [0.0, 0.0]]
