"""What the engines of exported detectors share: the description in the file, and all but the graph itself.

Needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from fcos_fast import __version__
from fcos_fast.boxes import has_area
from fcos_fast.data.categories import Categories
from fcos_fast.inference.engine import RawDetections
from fcos_fast.inference.preprocess import batch
from fcos_fast.models.config import DetectorConfig
from fcos_fast.models.sizes import Size, batches, detection_size

FORMAT = "fcos_fast detector 1"

INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "labels", "counts")

INTERFACE = {
    "images": "float32 (batch, 3, height, width), RGB in [0, 1], not normalized, each image in the upper left corner; "
    "height and width are multiples of size_divisor",
    "sizes": "int64 (batch, 2), height and width of each image without padding",
    "boxes": "float32 (batch, detections, 4), x1 y1 x2 y2 in pixels of images, padded with 0",
    "scores": "float32 (batch, detections), descending, padded with 0",
    "labels": "int64 (batch, detections), index into names, padded with -1",
    "counts": "int64 (batch), number of detections",
}
"""The inputs and outputs of an exported detector, as its file describes them."""


def describe(config: DetectorConfig, categories: Categories) -> dict[str, str]:
    """The description of a detector that its file contains: names to text, most of it JSON."""
    return {
        "format": FORMAT,
        "version": __version__,
        "names": json.dumps(categories.names, ensure_ascii=False),
        "category_ids": json.dumps(categories.ids),
        "config": json.dumps(config.to_dict()),
        "score_threshold": str(config.score_threshold),
        "iou_threshold": str(config.nms_threshold),
        "max_detections": str(config.max_detections),
        "size_divisor": str(config.size_divisor),
        "interface": json.dumps(INTERFACE),
    }


def read_description(file: object, description: Mapping[str, str]) -> tuple[DetectorConfig, Categories]:
    """Inverse of :func:`describe`.

    Raises:
        ValueError: ``file`` is not an exported detector, or one of a newer version; the message names it.
    """
    if description.get("format") != FORMAT:
        raise ValueError(
            f"{file} has the format {description.get('format')!r} in its metadata; expected {FORMAT!r}, as "
            "`fcos-fast export` writes it"
        )
    try:
        config = DetectorConfig.from_dict(json.loads(description["config"]))
        ids = tuple(json.loads(description["category_ids"]))
        return config, Categories(tuple(json.loads(description["names"])), ids)
    except KeyError as error:
        raise ValueError(f"{file}: its metadata has no {error}; export the detector again") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: invalid metadata ({error}); export the detector again") from error


class ExportedEngine:
    """Base class of the engines of exported detectors.

    Args:
        config: configuration of the detector.
        categories: its classes.
    """

    def __init__(self, config: DetectorConfig, categories: Categories) -> None:
        self.config = config
        self.categories = categories
        self.iou_threshold = config.nms_threshold

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        """The graph: :data:`INPUTS` to :data:`OUTPUTS`, as :data:`INTERFACE` describes them."""
        raise NotImplementedError

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        """As :meth:`Engine.detect <fcos_fast.inference.engine.Engine.detect>`."""
        originals: list[Size] = [image.shape[:2] for image in images]
        sizes = [detection_size(size, self.config) for size in originals]
        found: dict[int, RawDetections] = {}
        for indices in batches(sizes, self.config):
            seen = [sizes[i] for i in indices]
            tensor = batch([images[i] for i in indices], seen, self.config.size_divisor)
            outputs = self.run(tensor, np.array(seen, np.int64))
            for i, boxes, scores, labels, count in zip(indices, *outputs, strict=True):
                detection = RawDetections(boxes[:count], scores[:count], labels[:count].astype(np.int64))
                found[i] = self._finish(detection, sizes[i], originals[i])
        return [found[i] for i in range(len(images))]

    def _finish(self, detection: RawDetections, size: Size, original: Size) -> RawDetections:
        """As ``Detector._finish``: to the original size and its convention of boxes."""
        boxes = detection.boxes
        if size != original:
            down, across = (new / old for new, old in zip(original, size, strict=True))
            boxes = boxes * np.array([across, down, across, down], np.float32)
        if self.config.inclusive_targets:
            edge = np.array(original[::-1], np.float32)
            boxes = np.concatenate((boxes[:, :2], np.minimum(boxes[:, 2:] + 1, edge)), axis=1)
        detection = detection._replace(boxes=boxes)
        if self.config.drop_empty == "at_end":
            kept = has_area(boxes)
            detection = RawDetections(*(values[kept] for values in detection))
        return detection
