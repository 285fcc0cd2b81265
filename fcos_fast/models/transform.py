"""Images of any size to batches for the backbone, and boxes back to the original images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.config import DetectorConfig
from fcos_fast.models.sizes import Size, batch_size, batches, resized


@dataclass(frozen=True)
class ImageBatch:
    """Images padded to one size.

    Attributes:
        tensor: (B, 3, H, W), padded with zeros at the right and bottom. Floating point: normalized. uint8: RGB as
            decoded; :meth:`Transform.normalize` normalizes it on the tensor's device.
        sizes: (height, width) of each image without padding.
        extents: (B, 2) int64, ``sizes`` on the tensor's device; None: copied there when needed.
        of_padded: part of a padded batch. It counts as padded, even if its images are not: a CUDA graph of the step is
            replayed with other batches, in which they are.
    """

    tensor: Tensor
    sizes: list[Size]
    extents: Tensor | None = None
    of_padded: bool = False

    @property
    def padded_size(self) -> Size:
        """(H, W) of the batch."""
        return image_size(self.tensor)

    @property
    def is_padded(self) -> bool:
        """Whether any image is smaller than the batch."""
        return self.of_padded or any(size != self.padded_size for size in self.sizes)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Images and extents; copies the extents to the device if they are not there yet."""
        if self.extents is not None:
            return self.tensor, self.extents
        extents = torch.tensor(self.sizes)
        if self.tensor.is_cuda:
            extents = extents.pin_memory()
        return self.tensor, extents.to(self.tensor.device, non_blocking=True)

    def map(self, function: Callable[[Tensor], Tensor]) -> ImageBatch:
        """``function`` of each tensor."""
        tensor, extents = map(function, self.tensors())
        return replace(self, tensor=tensor, extents=extents)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> ImageBatch:
        """Copy to ``device``."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> ImageBatch:
        """Copy to pinned memory, from which ``to(device, non_blocking=True)`` is asynchronous."""
        return self.map(Tensor.pin_memory)


def image_size(image: Tensor) -> Size:
    """(height, width) of an image or batch (..., H, W)."""
    height, width = image.shape[-2:]
    return height, width


def scale_boxes(boxes: Tensor, from_size: Size, to_size: Size) -> Tensor:
    """Scale xyxy boxes (N, 4) of an image with its size, from ``from_size`` to ``to_size``."""
    if from_size == to_size:
        return boxes
    ratio_y, ratio_x = (new / old for new, old in zip(to_size, from_size, strict=True))
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((x1 * ratio_x, y1 * ratio_y, x2 * ratio_x, y2 * ratio_y), dim=1)


class Transform(nn.Module):
    """Normalize, resize and pad images as ``DetectorConfig`` defines it.

    With the preset ``torchvision``, bit-identical to torchvision's ``GeneralizedRCNNTransform``.
    """

    mean: Tensor  # (3, 1, 1)
    std: Tensor  # (3, 1, 1)

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.reverse_channels = config.channel_order == "bgr"
        self.pixel_range = config.pixel_range
        self.min_sizes = config.min_size if isinstance(config.min_size, tuple) else (config.min_size,)
        self.max_size = config.max_size
        self.config = config
        # Buffers move with the model to its device; not persistent: the values are in the configuration.
        self.register_buffer("mean", torch.tensor(config.image_mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(config.image_std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Normalize and resize one RGB image (3, H, W), float in [0, 1] or uint8, without padding."""
        return self._resize(self._normalize(image), self._draw_size(image_size(image)))

    def resize(self, image: Tensor, scale: float = 1.0) -> Tensor:
        """As :meth:`forward`, but an image that keeps its size is not normalized: the device does that later.

        ``scale`` is a factor of the size.
        """
        height, width = self._draw_size(image_size(image))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return image if size == image_size(image) else self._resize(self._normalize(image), size)

    def pack(self, images: Sequence[Tensor]) -> ImageBatch:
        """Batch outputs of :meth:`resize`: as uint8 if no image was resized, else normalized."""
        if any(image.dtype != torch.uint8 for image in images):
            images = [self._normalize(x) if x.dtype == torch.uint8 else x for x in images]
        return self.batch(images)

    def normalize(self, batch: ImageBatch) -> ImageBatch:
        """Normalize a uint8 batch of :meth:`pack` on its device; a floating-point batch is normalized already.

        The result is bit-identical to :meth:`forward` and :meth:`batch`.
        """
        if batch.tensor.is_floating_point():
            return batch
        tensor = self._normalize(batch.tensor)
        if batch.is_padded:
            _, extents = batch.tensors()
            y, x = (torch.arange(side, device=tensor.device) for side in batch.padded_size)
            padding = (y >= extents[:, :1])[:, :, None] | (x >= extents[:, 1:])[:, None, :]  # (B, H, W)
            tensor.masked_fill_(padding[:, None], 0)
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
        """The size of a batch with images of these ``sizes``."""
        return batch_size(sizes, self.config.size_divisor)

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
        """Indices of the transformed images that are evaluated together, as one list per batch."""
        return batches([image_size(image) for image in images], self.config)
