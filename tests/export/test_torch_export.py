"""``torch.export`` of a whole detector, from a list of images to its detections."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from fcos_fast.detections import BatchDetections
from fcos_fast.models import Detector
from fcos_fast.models.retinanet import by_anchor, postprocess_anchors
from fcos_fast.models.transform import image_size
from tests.export.models import CLASSES, photos, small_detector


def images(*size: int) -> list[Tensor]:
    return [torch.from_numpy(image).permute(2, 0, 1) / 255 for image in photos(size, size)]


def assert_same(found: list[dict[str, Tensor]], model: Detector, of: list[Tensor]) -> None:
    for mine, theirs in zip(found, model(of), strict=True):
        assert len(theirs["labels"]) >= 5
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(("preset", "max_level"), [("official-improved", 5), ("torchvision", 7)])
def test_a_detector_with_dynamic_height_and_width(preset, max_level):
    model = small_detector(preset, max_level=max_level, min_size=None, max_size=None)
    height, width = (32 * Dim(name, min=5, max=60) for name in ("h", "w"))
    with torch.no_grad():
        traced = torch.export.export(
            model, (images(288, 320),), dynamic_shapes=([{1: height, 2: width}] * 2,)
        ).module()
        assert_same(traced(images(288, 320)), model, images(288, 320))
        # 480x352: the grid of torchvision's P6 has steps other than at 288x320
        assert_same(traced(images(480, 352)), model, images(480, 352))


def test_retinanet_with_dynamic_batch_and_image_size():
    class Batch(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_detector("torchvision-retinanet", max_level=5)

        def forward(self, x: Tensor, sizes: Tensor) -> BatchDetections:
            cls_logits, box_regression = self.model.network(x)
            return postprocess_anchors(
                [by_anchor(maps, CLASSES) for maps in cls_logits],
                [by_anchor(maps, 4) for maps in box_regression],
                self.model._anchors(image_size(x)),
                sizes,
                score_threshold=0.05,
                topk_candidates=50,
                iou_threshold=0.5,
                max_detections=20,
            )

    def inputs(batch: int, *size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 3, *size), torch.tensor([size]).repeat(batch, 1)

    module = Batch()
    batch, height, width = Dim("batch", max=64), Dim("height", min=33, max=999), Dim("width", min=33, max=999)
    dynamic = ({0: batch, 2: height, 3: width}, {0: batch})
    with torch.no_grad():
        traced = torch.export.export(module, inputs(2, 128, 160), dynamic_shapes=dynamic).module()
        for given in (inputs(1, 128, 160), inputs(5, 64, 96)):
            for mine, theirs in zip(traced(*given), module(*given), strict=True):
                assert torch.equal(mine, theirs)
