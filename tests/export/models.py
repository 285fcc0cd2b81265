"""Small detectors whose export takes seconds."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fcos_fast.data import Categories, SyntheticConfig
from fcos_fast.data.synthetic import synthetic_image
from fcos_fast.engine.benchmark import make_talkative
from fcos_fast.models import PRESETS, Detector, FCOSConfig, build_detector

CATEGORIES = Categories(("cell", 'größe, "x"', "platelet"), ids=(7, 3, 90))
CLASSES = len(CATEGORIES)


class Body(nn.Module):
    """One convolution per stage, with the channels of ResNet-18."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 16, 64, 128, 256, 512)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, 2, padding=1), nn.BatchNorm2d(o))
            for i, o in itertools.pairwise(channels)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        stages = []
        for conv in self.convs:
            x = conv(x).relu()
            stages.append(x)
        return stages[1:]


def small_detector(preset: str, candidates: int = 300, **overrides) -> Detector:
    """A detector of ``preset`` with random weights that detects something everywhere."""
    torch.manual_seed(0)
    small = {"fpn_channels": 32, "head_channels": 32, "head_convs": 1, "num_classes": CLASSES}
    sizes = {"min_size": 96, "max_size": 160}
    config = PRESETS[preset]
    if isinstance(config, FCOSConfig):
        bounds = config.rule.sizes_of_interest[
            : overrides.get("max_level", config.max_level) - config.min_level
        ]
        overrides["rule"] = replace(config.rule, sizes_of_interest=bounds)
    config = replace(config, backbone="resnet18", **{**small, **sizes, **overrides})
    model = build_detector(config)
    model.backbone.body = Body()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)  # or folding it would change nothing
        norm.running_var.uniform_(0.5, 2)
    image = torch.from_numpy(photos((96, 128))[0]).permute(2, 0, 1)
    model = make_talkative(model.eval(), image, candidates)
    if isinstance(config, FCOSConfig):
        layer = model.head.regression_head.bbox_reg
        layer.weight.data *= 10  # boxes of many sizes
        if config.regression == "exp":
            layer.bias.data.fill_(math.log(12))  # small ones, of which many fit into the image
    return model


def photos(*sizes: tuple[int, int]) -> list[np.ndarray]:
    """Images (H, W, 3) of these sizes."""
    images = []
    for i, size in enumerate(sizes):
        appearance = SyntheticConfig(size, object_size=(16, 60), max_objects=4)
        images.append(np.ascontiguousarray(synthetic_image(1, i, appearance).image.transpose(1, 2, 0)))
    return images


def save_photos(folder: Path, *sizes: tuple[int, int]) -> list[Path]:
    """Files of images of these sizes."""
    paths = []
    for i, image in enumerate(photos(*sizes)):
        paths.append(folder / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    return paths
