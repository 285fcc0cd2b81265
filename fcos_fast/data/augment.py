"""The configuration of augmentation. The command line reads it without importing torch."""

from __future__ import annotations

from dataclasses import dataclass

from fcos_fast.fields import at_least, between, check_fields, checked


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images.

    Attributes:
        size: ``[height, width]`` in pixels of every augmented image. An image is scaled to fit, keeping its aspect
            ratio, and padded on random sides with the mean color of ImageNet. By default the model scales the images.
        scale: ``[smallest, largest]`` random factor by which an image that fits into ``size`` is scaled. What exceeds
            ``size`` is cropped at a random position. Requires ``size``. Large-scale jitter (arXiv:2012.07177) is
            ``[0.1, 2]``.
        multi_scale: ``[smallest, largest]`` random factor of the model's input size, drawn once per batch. Evaluation
            has factor 1.
        mosaic: probability that an image is put together from four (YOLOv4, arXiv:2004.10934).
        copy_paste: probability that objects of another image are pasted into one, with the rectangles around them.
        close_mosaic: epochs at the end of a run without mosaic and copy-paste.
        horizontal_flip: probability of a horizontal flip.
        vertical_flip: probability of a vertical flip.
        iou_crop: probability of a random crop that keeps an overlap with some box (SSD, arXiv:1512.02325).
        brightness: largest relative change of the brightness, 0 to 1.
        contrast: largest relative change of the contrast, 0 to 1.
        saturation: largest relative change of the saturation, 0 to 1.
        hue: largest shift of the hue as a fraction of the color circle, 0 to 0.5.
    """

    size: tuple[int, int] | None = checked(
        None, lambda size: size is None or min(size) >= 1, "(height, width) in pixels, or None"
    )
    scale: tuple[float, float] = checked(
        (1.0, 1.0), lambda scale: 0 < scale[0] <= scale[1], "0 < smallest <= largest"
    )
    multi_scale: tuple[float, float] = checked(
        (1.0, 1.0), lambda scale: 0 < scale[0] <= scale[1], "0 < smallest <= largest"
    )
    mosaic: float = between(0.0, 0, 1)
    copy_paste: float = between(0.0, 0, 1)
    close_mosaic: int = at_least(10, 0)
    horizontal_flip: float = between(0.5, 0, 1)
    vertical_flip: float = between(0.0, 0, 1)
    iou_crop: float = between(0.0, 0, 1)
    brightness: float = between(0.2, 0, 1)
    contrast: float = between(0.2, 0, 1)
    saturation: float = between(0.2, 0, 1)
    hue: float = between(0.0, 0, 0.5)

    def __post_init__(self) -> None:
        check_fields(self, "augment.")
        if self.size is None and self.scale != (1.0, 1.0):
            raise ValueError(
                f"augment.scale={self.scale} without augment.size; give augment.size as (height, width)"
            )
