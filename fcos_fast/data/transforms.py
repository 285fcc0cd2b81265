"""Augmentation of images and boxes together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from .dataset import DetectionDataset

_MIN_SIDE = 1.0
_FILL = (124, 116, 104)  # ImageNet's mean colour, which normalisation turns into zero


@dataclass(frozen=True)
class AugmentConfig:
    """How training pictures are varied.

    Attributes:
        size: (height, width) in pixels of every augmented picture: it is scaled to fit, its proportions kept, and
            padded at a random side with a mean colour, so that all pictures of a batch have one size. None keeps
            each picture's size and leaves scaling to the model.
        scale: (least, largest) factor on top of fitting into ``size``, drawn uniformly; what reaches out is cropped
            at random. Needs ``size`` unless it is (1, 1).
        horizontal_flip, vertical_flip: probabilities.
        iou_crop: probability of a random crop that keeps an overlap with some box (SSD, arXiv:1512.02325).
        brightness, contrast, saturation, hue: largest relative change, hue in turns up to 0.5; 0 is none.
    """

    size: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    iou_crop: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    hue: float = 0.0

    def __post_init__(self):
        for name in ("horizontal_flip", "vertical_flip", "iou_crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"AugmentConfig: {name} is {getattr(self, name)}; expected a probability from 0 to 1"
                )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"AugmentConfig: scale is {self.scale}; expected 0 < least <= largest")
        if self.size is None and tuple(self.scale) != (1.0, 1.0):
            raise ValueError(
                f"AugmentConfig: scale is {self.scale} without a size; give size as (height, width)"
            )
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"AugmentConfig: size is {self.size}; expected (height, width) in pixels")


def _build(config: AugmentConfig) -> v2.Compose:
    steps: list[torch.nn.Module] = []
    if config.iou_crop:
        steps.append(v2.RandomApply([v2.RandomIoUCrop()], p=config.iou_crop))
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    if config.size is not None:
        steps.append(v2.ScaleJitter(target_size=config.size, scale_range=config.scale))
        steps.append(v2.RandomCrop(config.size, pad_if_needed=True, fill=_FILL))
    colour = {name: getattr(config, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(colour.values()):
        steps.append(v2.ColorJitter(**colour))
    return v2.Compose(steps)


class AugmentedDataset(Dataset):
    """A data set whose pictures are varied anew in every epoch.

    It is indexed by ``(epoch, index)``, and the result depends on the seed and these two alone: not on the worker that
    makes it, on what was made before, or on torch's own random state, which it leaves as it was. So a resumed run
    continues exactly. Boxes that lost their area are left out together with their labels.
    """

    def __init__(self, dataset: DetectionDataset, config: AugmentConfig, seed: int = 0):
        self.dataset = dataset
        self.config = config
        self.seed = seed
        self._transform = _build(config)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, dict[str, Any]]:
        epoch, index = key
        image, target = self.dataset[index]
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[1:])
        # RandomIoUCrop expects a dictionary with labels and drops rows of tensors named so; rows travel in their place.
        sample = {"image": tv_tensors.Image(image), "boxes": boxes, "labels": torch.arange(len(boxes))}
        with torch.random.fork_rng(devices=[]):
            # The CPU generator alone: torch.manual_seed would also seed every GPU.
            torch.default_generator.manual_seed(
                int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0])
            )
            sample = self._transform(sample)
        boxes = sample["boxes"].as_subclass(Tensor)
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= _MIN_SIDE).all(dim=1)
        rows = sample["labels"][keep]
        return sample["image"].as_subclass(Tensor).contiguous(), {
            "boxes": boxes[keep],
            "labels": target["labels"][rows],
            "ignore": target["ignore"][rows],
            "image_id": target["image_id"],
        }
