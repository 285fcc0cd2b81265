"""Augmentation of images and boxes together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from .augment import AugmentConfig
from .dataset import DetectionDataset
from .mixing import Sample, copy_paste, fit, mosaic, place, uniform

MIN_SIDE = 1.0
"""Boxes whose remaining width or height in pixels is less are dropped."""

Target = dict[str, Any]


class SampleKey(NamedTuple):
    """What an augmented sample depends on, besides the seed.

    Attributes:
        epoch: epoch of the run.
        image: index of the image.
        repeat: how many times the image came before in the epoch.
        scale: factor of the model's input size, the same for all images of a batch.
    """

    epoch: int
    image: int
    repeat: int = 0
    scale: float = 1.0


def _before(config: AugmentConfig) -> list[v2.Transform]:
    """What is done to each image, also of a mosaic."""
    steps: list[v2.Transform] = []
    if config.iou_crop:
        steps.append(v2.RandomApply([v2.RandomIoUCrop()], p=config.iou_crop))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    return steps


def _after(config: AugmentConfig) -> list[v2.Transform]:
    """What is done to an image of the final size."""
    color = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation", "hue")}
    return [v2.ColorJitter(**color)] if any(color.values()) else []


class AugmentedDataset(Dataset[tuple[Tensor, Target]]):
    """A dataset whose images are augmented differently in every epoch.

    It is indexed by a :class:`SampleKey` or its first values, ``(epoch, index)``. A sample depends only on the key and
    the seed: not on the worker, earlier samples or torch's random state, which stays unchanged. So a resumed run
    continues exactly. Boxes that the augmentation makes smaller than ``MIN_SIDE`` are dropped.

    ``resize`` is applied last to an image, its target and the key's scale, with the same random state; None does
    nothing.

    Attributes:
        mixed_epochs: mosaic and copy-paste end before this epoch.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        config: AugmentConfig,
        seed: int = 0,
        resize: Callable[[Tensor, Target, float], tuple[Tensor, Target]] | None = None,
    ):
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self.resize = resize
        self.mixed_epochs = math.inf
        self._before, self._after = (
            v2.Compose(steps or [v2.Identity()]) for steps in (_before(config), _after(config))
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey | tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        key = SampleKey(*key)
        entropy = [self.seed, key.epoch, key.image, *([key.repeat] if key.repeat else [])]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        with torch.random.fork_rng(devices=[]):
            # Transforms draw from the CPU's generator; torch.manual_seed would seed every GPU as well.
            torch.default_generator.manual_seed(seed)
            sample = self._after(self._mixed(key))
            boxes = sample["boxes"].as_subclass(Tensor)
            keep = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1)
            image = sample["image"].as_subclass(Tensor).contiguous()
            target = {
                "boxes": boxes[keep],
                "labels": sample["labels"][keep],
                "ignore": sample["ignore"][keep],
                "image_id": range(len(self))[key.image],
            }
            return (image, target) if self.resize is None else self.resize(image, target, key.scale)

    def _mixed(self, key: SampleKey) -> Sample:
        """The image of the key in the final size, perhaps with parts of others."""
        config, mixes = self.config, key.epoch < self.mixed_epochs
        sample = self._read(key.image)
        height, width = sample["image"].shape[-2:]
        size = config.size or (height, width)
        if mixes and _happens(config.mosaic) and min(size) > 1:
            sample = mosaic([sample, *(self._read(self._draw()) for _ in range(3))], size, config.scale)
        else:
            sample = self._fitted(sample)
        if mixes and _happens(config.copy_paste):
            sample = copy_paste(sample, self._fitted(self._read(self._draw())))
        return sample

    def _draw(self) -> int:
        """The index of a random image."""
        return int(torch.randint(len(self), ()))

    def _read(self, index: int) -> Sample:
        """An image and its boxes, cropped and flipped."""
        image, target = self.dataset[index]
        sample = {
            "image": tv_tensors.Image(image),
            "boxes": tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[1:]),
            "labels": target["labels"],
            "ignore": target["ignore"],
        }
        result: Sample = self._before(sample)
        return result

    def _fitted(self, sample: Sample) -> Sample:
        """The sample in the size of the configuration, at its random scale."""
        size = self.config.size
        return (
            sample if size is None else place(sample, fit(sample, size) * uniform(*self.config.scale), size)
        )


def _happens(probability: float) -> bool:
    """A random decision; one that is certain draws no number."""
    return probability > 0 and torch.rand(()).item() < probability
