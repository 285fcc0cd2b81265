"""Detections of a dataset and their score."""

from __future__ import annotations

import pytest
import torch

from fcos_fast.data import load_dataset
from fcos_fast.engine.evaluate import detect_batches, evaluate


class Perfect(torch.nn.Module):
    """Returns given detections, regardless of the images."""

    def __init__(self, answers):
        super().__init__()
        self.answers = list(answers)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = 0

    def forward(self, images):
        assert not self.training
        found = self.answers[self.seen : self.seen + len(images)]
        self.seen += len(images)
        return found


def test_detections_and_images_stay_in_order(voc_root):
    dataset = load_dataset(voc_root, "val")
    targets = [dataset[i][1] for i in range(len(dataset))]
    answers = [
        {"boxes": t["boxes"], "labels": t["labels"], "scores": torch.ones(len(t["boxes"]))} for t in targets
    ]
    result, detections = evaluate(Perfect(answers), dataset, batch_size=3)
    assert result.ap == result.ap50 == 1
    assert result.images_per_second > 0
    assert "images_per_second" not in result.summary()  # metrics.csv has that of training
    for detection, target in zip(detections, targets, strict=True):
        assert torch.equal(detection["boxes"], target["boxes"])


def test_model_returns_to_its_mode():
    model = Perfect([{"boxes": torch.zeros(0, 4)}]).train()
    list(detect_batches(model, [[torch.zeros(3, 8, 8)]], torch.float32))
    assert model.training


def test_does_not_depend_on_the_batch_size(whole_run):
    _, outcome = whole_run
    results = [evaluate(outcome.model, outcome.val_set, batch_size=n)[0].summary() for n in (1, 4)]
    assert results[0] == pytest.approx(results[1], abs=1e-3, nan_ok=True)
