"""From images of any size to what the backbone sees, and from its detections back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.config import DetectorConfig

Size = tuple[int, int]
"""(height, width) in pixels."""


@dataclass(frozen=True)
class ImageBatch:
    """Images padded to one size.

    Attributes:
        tensor: (B, 3, H, W); each image stands in the top left corner, zeros beyond. Floating point: normalised.
            uint8: RGB as decoded, which :meth:`Transform.normalize` normalises where the tensor lies.
        sizes: the images' own (height, width).
        extents: (B, 2) int64, ``sizes`` beside the tensor on its device; None: copied there when it is needed.
    """

    tensor: Tensor
    sizes: list[Size]
    extents: Tensor | None = None

    @property
    def padded_size(self) -> Size:
        """(H, W) of the batch."""
        return tuple(self.tensor.shape[-2:])

    @property
    def is_padded(self) -> bool:
        """Is any image smaller than the batch?"""
        return any(size != self.padded_size for size in self.sizes)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images and extents; copies the extents to the device unless they are there."""
        if self.extents is not None:
            return self.tensor, self.extents
        extents = torch.tensor(self.sizes)
        if self.tensor.is_cuda:
            extents = extents.pin_memory()
        return self.tensor, extents.to(self.tensor.device, non_blocking=True)

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageBatch:
        """``function`` of each tensor."""
        tensor, extents = map(function, self.tensors())
        return ImageBatch(tensor, self.sizes, extents)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Copy to ``device``."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ImageBatch:
        """Copy to pinned memory, from which ``to(device, non_blocking=True)`` does not wait."""
        return self.map(Tensor.pin_memory)


def image_size(image: Tensor) -> Size:
    """(height, width) of a (3, H, W) image."""
    return tuple(image.shape[-2:])


def resized(size: Size, min_size: int, max_size: int | None) -> Size:
    """``size`` with its shorter side scaled to ``min_size``, or less where the longer passes ``max_size``."""
    scale = min_size / min(size)
    if max_size is not None:
        scale = min(scale, max_size / max(size))
    return tuple(max(1, math.floor(side * scale)) for side in size)


def padded(size: Size, divisor: int) -> Size:
    """The smallest multiples of ``divisor`` that hold ``size``."""
    return tuple(math.ceil(side / divisor) * divisor for side in size)


def scale_boxes(boxes: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """xyxy boxes (N, 4) of an image of ``from_size`` for the same image at ``to_size``."""
    if from_size == to_size:
        return boxes
    ratio_y, ratio_x = (new / old for new, old in zip(to_size, from_size, strict=True))
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((x1 * ratio_x, y1 * ratio_y, x2 * ratio_x, y2 * ratio_y), dim=1)


def has_area(boxes: Tensor) -> Tensor:
    """(...) bool: which xyxy boxes (..., 4) have width and height; one with a NaN has not."""
    return (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)


class Transform(nn.Module):
    """Pixel values, sizes and padding, as ``DetectorConfig`` defines them.

    Bit for bit torchvision's ``GeneralizedRCNNTransform`` under the preset ``torchvision``.
    """

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.reverse_channels = config.channel_order == "bgr"
        self.pixel_range = config.pixel_range
        self.min_sizes = config.min_size if isinstance(config.min_size, tuple) else (config.min_size,)
        self.max_size = config.max_size
        self.size_divisor = config.size_divisor
        self.batching = config.batching
        # Buffers, so that they follow the model to its device; not persistent: they belong to the
        # configuration.
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """One RGB image (3, H, W), float in [0, 1] or uint8, normalised and resized; not yet padded."""
        return self._resize(self._normalize(image), self._draw_size(image_size(image)))

    def resize(self, image: Tensor) -> Tensor:
        """As :meth:`forward`, but an image that keeps its size is left as it is, to be normalised on the device."""
        size = self._draw_size(image_size(image))
        return image if size == image_size(image) else self._resize(self._normalize(image), size)

    def pack(self, images: Sequence[Tensor]) -> ImageBatch:
        """Batch what :meth:`resize` returned: as uint8 where no image was resized, else normalised."""
        if any(image.dtype != torch.uint8 for image in images):
            images = [self._normalize(x) if x.dtype == torch.uint8 else x for x in images]
        return self.batch(images)

    def normalize(self, batch: ImageBatch) -> ImageBatch:
        """Normalise a uint8 batch of :meth:`pack`, on its device; a floating-point one is so already.

        The bits are those of :meth:`forward` and :meth:`batch`.
        """
        if batch.tensor.is_floating_point():
            return batch
        tensor = self._normalize(batch.tensor)
        if batch.is_padded:
            device = tensor.device
            extents = batch.tensors()[1]
            y, x = (torch.arange(side, device=device) for side in batch.padded_size)
            beyond = (y >= extents[:, :1])[:, :, None] | (x >= extents[:, 1:])[:, None, :]  # (B, H, W)
            tensor.masked_fill_(beyond[:, None], 0)
        return replace(batch, tensor=tensor)

    def _normalize(self, image: Tensor) -> Tensor:
        white = 1 if image.is_floating_point() else 255
        image = image.to(self.mean.dtype)
        if white != self.pixel_range:
            image = image * self.pixel_range if white == 1 else image / white
        if self.reverse_channels:
            image = image.flip(-3)
        return (image - self.mean) / self.std

    def _draw_size(self, size: Size) -> Size:
        min_size = self.min_sizes[-1]
        if self.training and len(self.min_sizes) > 1:
            min_size = self.min_sizes[int(torch.empty(1).uniform_(0, len(self.min_sizes)))]
        return size if min_size is None else resized(size, min_size, self.max_size)

    def _resize(self, image: Tensor, size: Size) -> Tensor:
        if size == image_size(image):
            return image
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]

    def padded_size(self, sizes: Sequence[Size]) -> Size:
        """The smallest multiples of the size divisor that hold all ``sizes``."""
        return padded(tuple(map(max, zip(*sizes, strict=True))), self.size_divisor)

    def batch(self, images: Sequence[Tensor]) -> ImageBatch:
        """Pad transformed images to one size."""
        sizes = [image_size(image) for image in images]
        height, width = self.padded_size(sizes)
        if all(size == (height, width) for size in sizes):
            return ImageBatch(torch.stack(list(images)), sizes)
        tensor = images[0].new_zeros((len(images), 3, height, width))
        for row, image, (h, w) in zip(tensor, images, sizes, strict=True):
            row[:, :h, :w] = image
        return ImageBatch(tensor, sizes)

    def groups(self, images: Sequence[Tensor]) -> list[list[int]]:
        """Which of the transformed images are evaluated together: lists of their indices."""
        if self.batching == "pad":
            return [list(range(len(images)))]
        groups: dict[Size, list[int]] = {}
        for i, image in enumerate(images):
            groups.setdefault(self.padded_size([image_size(image)]), []).append(i)
        return list(groups.values())
