"""Boxes drawn on images. Needs no torch; tensors are accepted."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fcos_fast.inference.images import ImageLike, as_array

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from PIL import Image
    from torch import Tensor


def class_color(label: int) -> tuple[int, int, int]:
    """The color of a class. Hues are a golden angle apart, so neighboring classes differ for any number of classes."""
    red, green, blue = colorsys.hsv_to_rgb((0.6 + label * 0.381966) % 1.0, 0.85, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def to_pil(image: ImageLike) -> Image.Image:
    """Any image as an RGB Pillow image; see :data:`~fcos_fast.inference.images.ImageLike`."""
    from PIL import Image

    pixels = as_array(image)
    if pixels.dtype != np.uint8:
        pixels = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(pixels)


def draw_boxes(
    image: ImageLike,
    boxes: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    scores: ArrayLike | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Draw boxes with their class names, and scores in percent, on a copy of an image.

    Args:
        image: any image; an array (H, W, 3) or a tensor (3, H, W), for example.
        boxes: (N, 4) xyxy in the image's pixels. The box with the highest score is drawn last, on top.
        labels: (N,) in 0..len(names)-1.
        names: the class names.
        scores: (N,) in 0..1, or None for ground truth.
        scale: factor by which the image is resized first; the size of lines and text depends on the result.
    """
    from PIL import ImageDraw, ImageFont

    boxes, labels = np.asarray(boxes), np.asarray(labels)
    scores = None if scores is None else np.asarray(scores)
    canvas = to_pil(image)
    canvas = canvas.resize([max(1, round(side * scale)) for side in canvas.size])
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=max(10, min(canvas.size) // 32))
    thickness = max(2, min(canvas.size) // 200)
    order = np.arange(len(boxes)) if scores is None else np.argsort(scores)
    for i in order.tolist():
        label = int(labels[i])
        color = class_color(label)
        x1, y1, x2, y2 = (boxes[i] * scale).tolist()
        draw.rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=color, width=thickness)
        text = names[label] if scores is None else f"{names[label]} {100 * float(scores[i]):.0f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 2, bottom - top + 2
        x = max(0, min(x1, canvas.width - width))
        y = y1 - height if y1 >= height else y1  # above the box, or inside it at the top of the image
        draw.rectangle((x, y, x + width, y + height), fill=color)
        draw.text((x + 1 - left, y + 1 - top), text, fill=(0, 0, 0), font=font)
    return canvas


def sheet(
    images: Sequence[Tensor],
    targets: Sequence[dict[str, Tensor]],
    detections: Sequence[dict[str, Tensor]],
    names: Sequence[str],
    columns: int = 2,
    width: int = 400,
    score_threshold: float = 0.3,
) -> Image.Image:
    """Pairs of images, with ground truth on the left and detections on the right.

    Args:
        images: (3, H, W) tensors.
        targets: ``boxes`` and ``labels`` of each image.
        detections: ``boxes``, ``labels`` and ``scores`` of each image.
        names: the class names.
        columns: pairs per row.
        width: width of each image in pixels. Images taller than twice the width are scaled down to that height.
        score_threshold: detections with a lower score are not drawn.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not images:
        raise ValueError("sheet: got no images")
    pairs = [
        _pair(image, target, detection, names, width, score_threshold)
        for image, target, detection in zip(images, targets, detections, strict=True)
    ]
    gap, header = 8, 28
    columns = min(columns, len(pairs))
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    heights = [max(left.height for left, _ in row) for row in rows]
    stride = 2 * width + 3 * gap  # from one pair to the next
    page = Image.new("RGB", (columns * stride, header + sum(h + gap for h in heights)), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size=16)
    titles = ("ground truth", f"detections (score from {score_threshold:g})")
    for x in range(gap, page.width, stride):
        for place, title in zip((x, x + width + gap), titles, strict=True):
            draw.text((place, 4), title, fill=(0, 0, 0), font=font)
    y = header
    for row, height in zip(rows, heights, strict=True):
        for x, (left, right) in zip(range(gap, page.width, stride), row, strict=False):
            page.paste(left, (x, y))
            page.paste(right, (x + width + gap, y))
        y += height + gap
    return page


def _pair(
    image: Tensor,
    target: dict[str, Tensor],
    detection: dict[str, Tensor],
    names: Sequence[str],
    width: int,
    score_threshold: float,
) -> tuple[Image.Image, Image.Image]:
    """An image with its ground truth and with its detections, scaled to ``width`` or twice that height."""
    scale = min(width / image.shape[-1], 2 * width / image.shape[-2])
    keep = detection["scores"] >= score_threshold
    boxes, labels, scores = (detection[name][keep] for name in ("boxes", "labels", "scores"))
    return (
        draw_boxes(image, target["boxes"], target["labels"], names, scale=scale),
        draw_boxes(image, boxes, labels, names, scores, scale),
    )
