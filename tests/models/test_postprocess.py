from __future__ import annotations

import math

import pytest
import torch

from fcos_fast.assignment import RULES
from fcos_fast.models import STRIDES
from fcos_fast.models.postprocess import postprocess

SIZE = (64, 96)
SIZES = [(64, 96), (50, 70)]
FEATURE_SIZES = [(math.ceil(SIZE[0] / s), math.ceil(SIZE[1] / s)) for s in STRIDES]


def _outputs(seed: int):
    generator = torch.Generator().manual_seed(seed)
    random = lambda k, size: torch.randn(2, k, *size, generator=generator)  # noqa: E731
    return (
        [random(3, size) - 1 for size in FEATURE_SIZES],
        [(random(4, size) + 1.5).relu() for size in FEATURE_SIZES],
        [random(1, size) + 1 for size in FEATURE_SIZES],
    )


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _overlap(a, b, pixel) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + pixel
    height = min(a[3], b[3]) - max(a[1], b[1]) + pixel
    if width <= 0 or height <= 0:
        return 0.0
    area = lambda box: (box[2] - box[0] + pixel) * (box[3] - box[1] + pixel)  # noqa: E731
    return width * height / (area(a) + area(b) - width * height)


def _expected(outputs, b, levels, units, *, threshold, threshold_on, topk, iou, most, inclusive):
    """All the rules, one candidate at a time: (score, label, box), best first."""
    height, width = SIZES[b]
    pixel = 1 if inclusive else 0
    candidates = []
    for i, (level, unit) in enumerate(zip(levels, units, strict=True)):
        own = []
        for y in range(level.height):
            for x in range(level.width):
                for c in range(3):
                    probability = _sigmoid(outputs[0][i][b, c, y, x].item())
                    score = math.sqrt(probability * _sigmoid(outputs[2][i][b, 0, y, x].item()))
                    if (score if threshold_on == "score" else probability) <= threshold:
                        continue
                    left, top, right, bottom = (d * unit for d in outputs[1][i][b, :, y, x].tolist())
                    at_y, at_x = level.offset[0] + y * level.step[0], level.offset[1] + x * level.step[1]
                    box = [
                        min(max(at_x - left, 0), width - pixel),
                        min(max(at_y - top, 0), height - pixel),
                        min(max(at_x + right, 0), width - pixel),
                        min(max(at_y + bottom, 0), height - pixel),
                    ]
                    own.append((score, c, box))
        candidates += sorted(own, key=lambda found: -found[0])[:topk]
    kept = []
    for score, label, box in sorted(candidates, key=lambda found: -found[0]):
        if all(label != other or _overlap(box, taken, pixel) <= iou for _, other, taken in kept):
            kept.append((score, label, box))
    return kept[:most]


@pytest.mark.parametrize(
    ("rule", "inclusive", "memory_format"),
    [("official-improved", True, torch.channels_last), ("torchvision", False, torch.contiguous_format)],
)
@pytest.mark.parametrize(
    ("threshold_on", "threshold"), [("score", 0.2), ("classification", 0.3), ("score", 0.0)]
)
@pytest.mark.parametrize(("topk", "most"), [(1000, 100), (20, 1000)])
def test_every_rule(rule, inclusive, memory_format, threshold_on, threshold, topk, most):
    levels = RULES[rule].levels(FEATURE_SIZES, SIZE)
    outputs = _outputs(seed=topk)
    detections = postprocess(
        *([x.contiguous(memory_format=memory_format) for x in maps] for maps in outputs),
        levels,
        SIZES,
        units=STRIDES,
        score_threshold=threshold,
        threshold_on=threshold_on,
        topk_candidates=topk,
        nms_threshold=0.6,
        max_detections=most,
        inclusive_boxes=inclusive,
    )
    settings = {"threshold": threshold, "threshold_on": threshold_on, "topk": topk, "iou": 0.6, "most": most}
    for b, found in enumerate(detections):
        scores, labels, boxes = zip(
            *_expected(outputs, b, levels, STRIDES, inclusive=inclusive, **settings), strict=True
        )
        assert len(scores) > 20
        torch.testing.assert_close(found["scores"], torch.tensor(scores))
        assert found["labels"].tolist() == list(labels)
        torch.testing.assert_close(found["boxes"], torch.tensor(boxes), rtol=1e-5, atol=1e-4)
        assert found["labels"].dtype == torch.int64


def test_of_equal_scores_the_first_locations_are_kept():
    levels = RULES["official-improved"].levels(FEATURE_SIZES, SIZE)
    cls_logits, box_regression, centerness = (
        [torch.zeros(1, k, *size) for size in FEATURE_SIZES] for k in (2, 4, 1)
    )
    (found,) = postprocess(
        cls_logits,
        [x + 0.25 for x in box_regression],
        centerness,
        levels,
        [SIZE],
        units=STRIDES,
        topk_candidates=5,
    )
    first = torch.stack((found["boxes"][:, 0], found["labels"]), dim=1)[:5]
    assert first.tolist() == [[2, 0], [2, 1], [10, 0], [10, 1], [18, 0]]


def test_nothing_found():
    levels = RULES["torchvision"].levels(FEATURE_SIZES, SIZE)
    cls_logits, box_regression, centerness = _outputs(0)
    cls_logits = [x - 100 for x in cls_logits]
    for found in postprocess(cls_logits, box_regression, centerness, levels, SIZES, units=STRIDES):
        assert found["boxes"].shape == (0, 4)
        assert found["scores"].shape == found["labels"].shape == (0,)
