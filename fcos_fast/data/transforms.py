"""Augmentation of images and boxes together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from .augment import AugmentConfig
from .dataset import DetectionDataset

MIN_SIDE = 1.0
"""Boxes whose remaining width or height in pixels is less are dropped."""

_FILL = [124, 116, 104]  # ImageNet's mean color, which normalization maps to zero

Sample = dict[str, tv_tensors.TVTensor]
Target = dict[str, Any]


class _FitInto:
    """Scale an image to fit ``size`` times a random factor, then crop or pad it to ``size`` at a random place."""

    def __init__(self, size: tuple[int, int], scale: tuple[float, float]):
        self.size = size
        self.scale = scale

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample["image"].shape[-2:]
        fit = min(self.size[0] / height, self.size[1] / width)
        factor = fit * (self.scale[0] + (self.scale[1] - self.scale[0]) * torch.rand(()).item())
        scaled = [max(1, round(height * factor)), max(1, round(width * factor))]
        # For y and x: the offset of the scaled image in the result; a negative one crops it.
        places = [
            round((whole - part) * torch.rand(()).item())
            for whole, part in zip(self.size, scaled, strict=True)
        ]
        kept = [min(whole, part) for whole, part in zip(self.size, scaled, strict=True)]
        crop = [*(max(0, -place) for place in places), *kept]
        top, left = (max(0, place) for place in places)
        padding = [left, top, self.size[1] - kept[1] - left, self.size[0] - kept[0] - top]

        def fit_one(x: tv_tensors.TVTensor) -> tv_tensors.TVTensor:
            x = v2.functional.crop(v2.functional.resize(x, scaled, antialias=True), *crop)
            return v2.functional.pad(x, padding, fill=_FILL) if any(padding) else x

        return {name: fit_one(x) for name, x in sample.items()}


def _build(config: AugmentConfig) -> Callable[[Sample], Sample]:
    steps: list[Callable[[Sample], Sample]] = []
    if config.iou_crop:
        steps.append(v2.RandomApply([v2.RandomIoUCrop()], p=config.iou_crop))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    if config.size is not None:
        steps.append(_FitInto(config.size, config.scale))
    color = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(color.values()):
        steps.append(v2.ColorJitter(**color))
    return v2.Compose(steps or [v2.Identity()])


class AugmentedDataset(Dataset[tuple[Tensor, Target]]):
    """A dataset whose images are augmented differently in every epoch.

    It is indexed by ``(epoch, index)``, and a sample depends only on these and the seed: not on the worker, earlier
    samples or torch's random state, which stays unchanged. So a resumed run continues exactly. Boxes that the
    augmentation makes smaller than ``MIN_SIDE`` are dropped.

    ``resize`` is applied last to an image and its target, with the same random state; None does nothing.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        config: AugmentConfig,
        seed: int = 0,
        resize: Callable[[Tensor, Target], tuple[Tensor, Target]] | None = None,
    ):
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self.resize = resize
        self._transform = _build(config)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = key
        image, target = self.dataset[index]
        sample = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[1:]),
        }
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):
            # Transforms draw from the CPU's generator; torch.manual_seed would seed every GPU as well.
            torch.default_generator.manual_seed(seed)
            sample = self._transform(sample)
            boxes = sample["boxes"].as_subclass(Tensor)
            keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1)
            image = sample["image"].as_subclass(Tensor).contiguous()
            target = {
                "boxes": boxes[keep],
                "labels": target["labels"][keep],
                "ignore": target["ignore"][keep],
                "image_id": target["image_id"],
            }
            return (image, target) if self.resize is None else self.resize(image, target)
