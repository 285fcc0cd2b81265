"""NMS in NumPy, held against the operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fcos_fast import ops
from fcos_fast.inference import RawDetections
from fcos_fast.inference.merging import batched_nms, merged


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_the_same_boxes_as_the_operator(count, threshold):
    rng = np.random.default_rng(count)
    boxes = rng.integers(0, 40, (count, 4)).astype(np.float32)  # equal boxes, IoUs on the threshold, no area
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
    boxes[::3] += rng.random((len(boxes[::3]), 4), dtype=np.float32)
    scores = (rng.integers(0, 20, count) / 20).astype(np.float32)  # equal scores
    labels = rng.integers(0, 3, count)
    expected = ops.batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), threshold)
    assert np.array_equal(batched_nms(boxes, scores, labels, threshold), expected.numpy())


def test_thousands_of_boxes_of_very_different_sizes():
    rng = np.random.default_rng(0)
    sides = 2 ** rng.uniform(2, 11, (5000, 2))
    corners = rng.uniform(-50, 2000, (5000, 2))
    boxes = np.hstack((corners, corners + sides)).astype(np.float32)
    scores = rng.random(5000, dtype=np.float32)
    labels = rng.integers(0, 2, 5000)
    expected = ops.batched_nms(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels), 0.3)
    assert 1000 < len(expected) < 4000
    assert np.array_equal(batched_nms(boxes, scores, labels, 0.3), expected.numpy())


@pytest.mark.parametrize(("threshold", "kept"), [(0.6, [0]), (np.nextafter(0.6, 1), [0]), (0.61, [0, 1])])
def test_iou_on_the_threshold(threshold, kept):
    """60 / 100 rounded to float32 is greater than 0.6."""
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6]], np.float32)
    found = batched_nms(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, int), float(threshold))
    assert found.tolist() == kept


def view(*rows):
    """Detections from rows x1, y1, x2, y2, score, label."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return RawDetections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_views_become_one_list_in_order():
    found = merged(
        [
            view((0, 0, 10, 10, 0.6, 0), (50, 50, 60, 60, 0.2, 1)),
            view(),
            view((0, 0, 10, 11, 0.9, 0), (0, 0, 10, 10, 0.5, 1)),
        ],
        iou_threshold=0.5,
    )
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert found.labels.tolist() == [0, 1, 1]
    assert found.boxes[0].tolist() == [0, 0, 10, 11]
    assert found.boxes.dtype == np.float32


def test_average_of_the_boxes_of_an_object():
    views = [
        view((0, 0, 10, 10, 0.75, 0), (5, 5, 5, 9, 0.3, 0)),
        view((1, 2, 10, 10, 0.25, 0), (0, 0, 10, 10, 0.5, 1), (0, 0, 2, 2, 0.1, 0)),
    ]
    found = merged(views, 0.5, average=True)
    assert found.scores.tolist() == pytest.approx([0.75, 0.5, 0.3, 0.1])
    expected = [[0.25, 0.5, 10, 10], [0, 0, 10, 10], [5, 5, 5, 9], [0, 0, 2, 2]]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-6)
    assert found.boxes.dtype == np.float32
    assert merged(views, 0.5).boxes[0].tolist() == [0, 0, 10, 10]
