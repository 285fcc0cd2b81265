"""The configuration of augmentation. The command line reads it without importing torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images.

    Attributes:
        size: ``[height, width]`` in pixels of every augmented image. An image is scaled to fit, keeping its aspect
            ratio, and padded on random sides with the mean color of ImageNet. By default the model scales the images.
        scale: ``[smallest, largest]`` random factor by which an image that fits into ``size`` is scaled. What exceeds
            ``size`` is cropped at a random position. Requires ``size``.
        horizontal_flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        iou_crop: probability of a random crop that keeps an overlap with some box (SSD, arXiv:1512.02325).
        brightness: largest relative change of the brightness, 0 to 1.
        contrast: largest relative change of the contrast, 0 to 1.
        saturation: largest relative change of the saturation, 0 to 1.
        hue: largest shift of the hue as a fraction of the color circle, 0 to 0.5.
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

    def __post_init__(self) -> None:
        for name in ("horizontal_flip", "vertical_flip", "iou_crop"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; expected a probability, 0 to 1")
        for name, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; expected 0 to {most}")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"augment.scale is {self.scale}; expected 0 < smallest <= largest")
        if self.size is None and tuple(self.scale) != (1.0, 1.0):
            raise ValueError(f"augment.scale is {self.scale} but size is None; give size as (height, width)")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"augment.size is {self.size}; expected (height, width) in pixels")
