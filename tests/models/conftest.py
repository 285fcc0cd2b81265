from __future__ import annotations

import pytest
import torch

from fcos_fast.models import Detector, fcos, retinanet
from fcos_fast.models.presets import RETINANET_PRESETS


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def small_model():
    """Build a narrow FCOS, or RetinaNet for its presets, that runs in milliseconds on images of 100 pixels."""

    def build(**overrides) -> Detector:
        settings = {
            "num_classes": 3,
            "fpn_channels": 32,
            "head_channels": 64,
            "head_convs": 1,
            "min_size": None,
        }
        build_model = retinanet if overrides.get("preset") in RETINANET_PRESETS else fcos
        return build_model(**(settings | overrides))

    return build


@pytest.fixture
def make_talkative():
    """Set the last layers of a random head so that it has many different detections with high scores."""

    def make(model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(1)
        last = {"cls_logits": (0.3, -3.0), "bbox_ctrness": (0.3, 2.0), "bbox_reg": (0.3, 1.0)}
        with torch.no_grad():
            for name, module in model.head.named_modules():
                if name.rpartition(".")[2] in last:
                    std, bias = last[name.rpartition(".")[2]]
                    module.weight.normal_(0, std, generator=generator)
                    module.bias.fill_(bias)

    return make


@pytest.fixture
def batch():
    """Three images of different sizes; the second has no boxes."""
    images = [torch.rand(3, 96, 128), torch.rand(3, 128, 100), torch.rand(3, 90, 70)]
    targets = [
        {
            "boxes": torch.tensor([[10.0, 12.0, 50.0, 60.0], [40.0, 5.0, 120.0, 90.0]]),
            "labels": torch.tensor([0, 2]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {"boxes": torch.tensor([[5.5, 8.0, 61.0, 80.0]]), "labels": torch.tensor([1])},
    ]
    return images, targets
