"""The ONNX graphs of the project's operators, against the reference, where rounding and ties decide."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fcos_fast import ops, reference
from fcos_fast.assignment import Level
from fcos_fast.export.graph import DetectionGraph
from fcos_fast.export.onnx_file import to_onnx
from fcos_fast.export.translations import rounded_down
from fcos_fast.models import HeadOutputs
from tests.export.models import CLASSES, small_detector


def in_onnxruntime(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], outputs: list[str], num_classes=CLASSES
):
    """A function that runs ``module`` by ONNX Runtime on NumPy's arrays or tensors."""
    import onnxruntime

    names = [f"input{i}" for i in range(len(inputs))]
    proto = to_onnx(torch.export.export(module, inputs), num_classes, names, outputs)
    session = onnxruntime.InferenceSession(proto.SerializeToString())

    def run(*values: torch.Tensor) -> list[torch.Tensor]:
        fed = {name: value.numpy() for name, value in zip(names, values, strict=True)}
        return [torch.from_numpy(x) for x in session.run(outputs, fed)]

    return run


class Suppress(nn.Module):
    def __init__(self, iou_threshold: float, has_labels: bool) -> None:
        super().__init__()
        self.iou_threshold, self.has_labels = iou_threshold, has_labels

    def forward(self, boxes, scores, labels):
        # both used, or ONNX has no such input
        labels = labels + 0 * (scores == 2).long()
        return ops.nms_padded(boxes, scores, labels if self.has_labels else None, self.iou_threshold, 8)


def crowded(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Boxes, scores and labels with many equal scores, IoUs on the threshold, and padding."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 8, (3, 40, 2), generator=generator).float()
    boxes = torch.cat((corner, corner + torch.randint(0, 9, (3, 40, 2), generator=generator)), dim=2)
    scores = torch.randint(0, 6, (3, 40), generator=generator) / 5
    scores[torch.rand(3, 40, generator=generator) < 0.3] = -torch.inf
    scores[2] = -torch.inf  # an image without candidates
    return boxes, scores, torch.randint(0, CLASSES, (3, 40), generator=generator)


@pytest.mark.parametrize("iou_threshold", [0.5, 0.6])
@pytest.mark.parametrize("has_labels", [True, False])
def test_nms_with_ties(iou_threshold, has_labels):
    module = Suppress(iou_threshold, has_labels)
    run = in_onnxruntime(module, crowded(0), ["indices", "counts"])
    for seed in range(10):
        boxes, scores, labels = crowded(seed)
        expected = reference.nms_padded(boxes, scores, labels if has_labels else None, iou_threshold, 8)
        for mine, theirs in zip(run(boxes, scores, labels), expected, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.6, 0.7, 1 / 3, 1.0])
def test_threshold_in_float32_decides_as_in_float64(threshold):
    exact = np.float32(threshold)
    near = [np.nextafter(exact, np.float32(-1)), exact, np.nextafter(exact, np.float32(2))]
    for iou in near:
        assert (iou > np.float32(rounded_down(threshold))) == (float(iou) > threshold)


class AfterHead(nn.Module):
    """The post-processing of a detector."""

    def __init__(self, graph: DetectionGraph) -> None:
        super().__init__()
        self.graph = (graph,)  # its parameters are not in the traced graph

    def forward(self, cls0, cls1, cls2, box0, box1, box2, ctr0, ctr1, ctr2, images, sizes):
        outputs = HeadOutputs([cls0, cls1, cls2], [box0, box1, box2], [ctr0, ctr1, ctr2])
        (graph,) = self.graph
        return graph._detect_by_locations(graph.model, outputs, images, sizes)


def maps(seed: int) -> list[torch.Tensor]:
    """Outputs of the head for two images of 64x96 with many equal scores, and some NaN."""
    generator = torch.Generator().manual_seed(seed)
    grids = [(8, 12), (4, 6), (2, 3)]
    cls = [torch.randint(-4, 5, (2, CLASSES, *grid), generator=generator).float() for grid in grids]
    box = [torch.randint(0, 4, (2, 4, *grid), generator=generator).float() for grid in grids]
    centerness = [torch.randint(-1, 2, (2, 1, *grid), generator=generator).float() for grid in grids]
    for logits in (*cls, *centerness):
        logits[torch.rand(logits.shape, generator=generator) < 0.02] = torch.nan
    return [*cls, *box, *centerness]


RULES = {
    "official": {},
    "mmdetection": {"topk_by": "classification", "score": "product", "drop_empty": "before_nms"},
    "simpleaicv": {
        **{"multi_label": False, "topk_over": "image", "class_agnostic_nms": True, "clip": "after_nms"},
        **{"threshold_on": "score", "inclusive_boxes": False},
    },
    "by classification over the image": {
        **{"topk_over": "image", "topk_by": "classification", "score": "classification"},
    },
}


@pytest.mark.parametrize("name", RULES)
def test_post_processing_with_ties_and_nan(name):
    model = small_detector("adelaidet-rt", drop_empty="never", clip="before_nms")
    model.config = model.config.__class__(
        **{
            **{field: getattr(model.config, field) for field in model.config.__dataclass_fields__},
            **{"topk_candidates": 20, "max_detections": 30, "score_threshold": 0.3, "inclusive_boxes": True},
            **RULES[name],
        }
    )
    config, strides = model.config, model.config.strides
    images, sizes = torch.zeros(2, 3, 64, 96), torch.tensor([[64, 96], [50, 91]])
    run = in_onnxruntime(
        AfterHead(DetectionGraph(model)), (*maps(0), images, sizes), ["boxes", "scores", "labels", "counts"]
    )
    levels = [Level(64 // s, 96 // s, s, (s, s), (s // 2, s // 2), (0, 1)) for s in strides]
    for seed in range(5):
        values = maps(seed)
        expected = reference.postprocess(
            *(values[:3], values[3:6], values[6:], levels, sizes),
            units=strides,
            score=config.score,
            score_threshold=config.score_threshold,
            threshold_on=config.threshold_on,
            multi_label=config.multi_label,
            topk_candidates=config.topk_candidates,
            topk_over=config.topk_over,
            topk_by=config.topk_by,
            iou_threshold=config.nms_threshold,
            class_agnostic=config.class_agnostic_nms,
            max_detections=config.max_detections,
            inclusive_boxes=config.inclusive_boxes,
            clip=config.clip,
            drop_empty=config.drop_empty == "before_nms",
        )
        boxes, scores, labels, counts = run(*values, images, sizes)
        assert torch.equal(counts, expected.counts)
        assert torch.equal(labels, expected.labels)
        assert torch.equal(boxes, expected.boxes)
        torch.testing.assert_close(scores, expected.scores, atol=1e-6, rtol=0)
        assert counts.min() > 5


@pytest.mark.parametrize("groups", [1, 4])
def test_group_norm_relu(groups):
    class Norm(nn.Module):
        def forward(self, x, weight, bias):
            return (ops.group_norm_relu(x, groups, weight, bias, 1e-3),)

    inputs = torch.randn(2, 8, 5, 3), torch.randn(8), torch.randn(8)
    (found,) = in_onnxruntime(Norm(), inputs, ["y"])(*inputs)
    torch.testing.assert_close(found, reference.group_norm_relu(inputs[0], groups, *inputs[1:], 1e-3))
