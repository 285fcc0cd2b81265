"""Labels that a detector contradicts: planted in the labels of generated photos."""

from __future__ import annotations

from functools import partialmethod

import numpy as np
import pytest

from fcos_fast.cli.main import main
from fcos_fast.data import load_dataset
from fcos_fast.inference import Predictor, load
from fcos_fast.inference.detections import Detections
from fcos_fast.quality import check as check_module
from fcos_fast.quality.finding import Split
from fcos_fast.quality.suspicious_labels import find_suspicious_labels
from tests.cli.conftest import checkpoint, voc_root  # noqa: F401  # fixtures
from tests.quality.conftest import SIZE, Photo, write

SCORES = (0.9, 0.7, 0.5)


@pytest.fixture
def truth(clean, tmp_path):
    """The dataset with right labels."""
    return load_dataset(write(tmp_path / "truth", "coco", clean), "train")


def detector(dataset, names, skip=()):
    """A detector that finds all objects but those of ``skip`` (image, box), with scores around 0.7, and noise."""
    by_name = {record.name: (i, record) for i, record in enumerate(dataset.records)}

    def detect(paths):
        for path in paths:
            i, record = by_name[path.name]
            kept = [k for k in range(len(record.boxes)) if (i, k) not in skip]
            boxes = np.concatenate([record.boxes[kept] + 0.5, [[0, 0, 4, 4]]]).astype(np.float32)
            labels = [names.index(dataset.categories.names[label]) for label in record.labels[kept]]
            scores = [SCORES[(i + k) % 3] for k in range(len(kept))]
            order = np.argsort([*(-s for s in scores), -0.1])
            yield Detections(
                boxes[order],
                np.array([*scores, 0.1], np.float32)[order],
                np.array([*labels, 0])[order],
                np.zeros((1, 1, 3), np.uint8),
                dataset.categories,
            )

    return detect


def check(dataset, detect, names):
    split = Split("train", dataset, dataset.categories.names)
    found = find_suspicious_labels([split], lambda split, image: True, detect, names)
    return {finding.kind: finding for finding in found}


def test_true_labels_are_not_suspicious(truth):
    names = truth.categories.names
    assert check(truth, detector(truth, names), names) == {}


def test_planted_faults_are_found(truth, clean, tmp_path):
    names = ["something else", *truth.categories.names[::-1]]  # the detector's own order
    photos = clean["train"]
    confident = [i for i in range(45) if i % 3 == 0 and len(truth.records[i].boxes) > 1]
    forgotten, swapped, invented = confident[:3]
    lost = confident[3]
    wrong = next(n for n in truth.categories.names if n != photos[swapped].boxes[0][0])
    boxes = {i: list(photos[i].boxes) for i in confident}
    del boxes[forgotten][0]
    boxes[swapped][0] = (wrong, boxes[swapped][0][1])
    boxes[invented].append((wrong, (140, 100, 156, 116)))
    doubtful = next(i for i in range(45) if i % 3 == 2)  # swapped too, but the detector is not sure
    boxes[doubtful] = list(photos[doubtful].boxes)
    unlike = next(n for n in truth.categories.names if n != photos[doubtful].boxes[0][0])
    boxes[doubtful][0] = (unlike, boxes[doubtful][0][1])
    for i, changed in boxes.items():
        photos[i] = type(photos[i])(photos[i].name, photos[i].data, tuple(changed))
    labeled = load_dataset(write(tmp_path / "labeled", "coco", clean), "train", truth.categories)
    found = check(labeled, detector(truth, names, skip={(lost, 0)}), names)
    assert {kind: finding.count for kind, finding in found.items()} == {
        "missing_labels": 1,
        "class_disagreements": 1,
        "labels_never_detected": 2,
    }
    missing, disagreement = found["missing_labels"].examples[0], found["class_disagreements"].examples[0]
    assert missing.file == f"train/{photos[forgotten].name}"
    name = truth.categories.names[truth.records[forgotten].labels[0]]
    assert missing.detail == f"{name} with score 0.90, no label"
    assert np.allclose(missing.boxes, truth.records[forgotten].boxes[0] + 0.5)
    assert disagreement.file == f"train/{photos[swapped].name}"
    right = truth.categories.names[truth.records[swapped].labels[0]]
    assert disagreement.detail == f"labeled {wrong}, detected {right} with score 0.90"
    undetected = {example.file for example in found["labels_never_detected"].examples}
    assert undetected == {f"train/{photos[invented].name}", f"train/{photos[lost].name}"}


def test_no_image_can_be_read(truth):
    split = Split("train", truth, truth.categories.names)
    names = truth.categories.names
    assert list(find_suspicious_labels([split], lambda *_: False, detector(truth, names), names)) == []


def test_the_detector_reports_low_scores_and_enough_detections(
    clean,
    checkpoint,  # noqa: F811
    tmp_path,
    capsys,
    monkeypatch,
):
    """A label is only suspicious if the detector could have found it."""
    made = []
    monkeypatch.setattr(check_module, "load", lambda *a, **k: made.append((k, load(*a, **k))) or made[0][1])
    crowd = tuple(("circle", (x, 10, x + 9, 20)) for x in range(0, 150, 2))
    clean["train"][0] = Photo("crowd.jpg", clean["train"][0].data, crowd)
    root = write(tmp_path / "data", "yolo", clean)
    options = ["--train.device", "cpu", "--fail_on", "never", "--data.max_pixels", str(SIZE[0] * SIZE[1])]
    command = ["data", "check", "--data.root", str(root), "--checkpoint", str(checkpoint), *options]
    monkeypatch.setattr(Predictor, "stream", partialmethod(_checked_stream, Predictor.stream))
    assert main(command) == 0
    assert made[0][0] == {"lowest_score": 0.05, "max_detections": 150}


def _checked_stream(predictor, stream, *args, **options):
    assert options == {"score_threshold": 0.0, "max_pixels": SIZE[0] * SIZE[1]}
    return stream(predictor, *args, **options)


def test_with_a_checkpoint(voc_root, checkpoint, tmp_path, capsys, clean):  # noqa: F811
    command = [
        "data",
        "check",
        "--checkpoint",
        str(checkpoint),
        "--train.device",
        "cpu",
        "--fail_on",
        "never",
    ]
    command += ["--model.min_size", "null", "--model.max_size", "null"]
    assert main([*command, "--data.root", str(voc_root)]) == 0
    assert "train: 10 images" in capsys.readouterr().out
    other = {
        "train": [
            photo.__class__(photo.name, photo.data, (("frog", (9, 9, 50, 50)),)) for photo in clean["train"]
        ]
    }
    root = write(tmp_path / "other", "yolo", other)
    assert main([*command, "--data.root", str(root), "--data.val", ""]) == 2
    assert "those of the dataset frog; give a detector that was trained on it" in capsys.readouterr().err
