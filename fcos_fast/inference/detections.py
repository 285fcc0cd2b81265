"""The detections of an image, and the forms in which they are used elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.data.coco_results import coco_detections
from fcos_fast.models.optional import import_optional
from fcos_fast.visualize import draw_boxes, to_pil

if TYPE_CHECKING:
    from PIL import Image


class Detection(NamedTuple):
    """One detected object.

    Attributes:
        name: class name.
        label: class, 0..C-1.
        score: in 0..1.
        box: x1, y1, x2, y2 in pixels.
    """

    name: str
    label: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, highest score first.

    ``len(found)`` is their number. ``found[0]`` and iteration give a :class:`Detection`; a slice, a boolean mask (N,)
    or a list of indices gives ``Detections``.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of ``image``.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 in 0..C-1.
        image: (H, W, 3) RGB, uint8 or float32 in [0, 1], with its EXIF orientation applied.
        categories: the C classes of the model.
        source: path or URL of the image or video; empty for an image in memory.
        frame: number of the frame in its video, from 0 on; None for other images.
        time: seconds from the beginning of the video to the frame; None for other images.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    categories: Categories
    source: str = ""
    frame: int | None = None
    time: float | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, rows: int) -> Detection: ...

    @overload
    def __getitem__(self, rows: slice | np.ndarray | list[int] | list[bool]) -> Detections: ...

    def __getitem__(self, rows: Any) -> Detection | Detections:
        boxes, scores, labels = self.boxes[rows], self.scores[rows], self.labels[rows]
        if labels.ndim:
            return replace(self, boxes=boxes, scores=scores, labels=labels)
        label = int(labels)
        return Detection(self.categories.names[label], label, float(scores), tuple(boxes.tolist()))

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of each of the N detections."""
        return tuple(self.categories.names[label] for label in self.labels.tolist())

    def filter(
        self, classes: str | Iterable[str] | None = None, score: float | Mapping[str, float] = 0.0
    ) -> Detections:
        """The detections of some classes, and from some score on.

        Args:
            classes: class names; None keeps all classes.
            score: lowest score, or class name to lowest score; other classes keep all of theirs.

        Raises:
            ValueError: the model has no such class.
        """
        keep = self.scores >= score_thresholds(score, self.categories)[self.labels]
        if classes is not None:
            wanted = [classes] if isinstance(classes, str) else classes
            keep &= np.isin(self.labels, [self.categories.label_of(name) for name in wanted])
        return self[keep]

    def draw(self) -> Image.Image:
        """Draw the detections on the image."""
        return draw_boxes(self.image, self.boxes, self.labels, self.categories.names, self.scores)

    def crops(self) -> list[Image.Image]:
        """The image inside each box, rounded outward to whole pixels."""
        height, width = self.image.shape[:2]
        low = np.floor(self.boxes[:, :2]).clip(0, (width - 1, height - 1)).astype(int)
        high = np.ceil(self.boxes[:, 2:]).clip(low + 1, (width, height)).astype(int)
        rows = np.hstack((low, high)).tolist()
        return [to_pil(self.image[y1:y2, x1:x2]) for x1, y1, x2, y2 in rows]

    def to_dict(self) -> list[dict[str, Any]]:
        """The detections as plain values, for JSON."""
        return [
            {"class": name, "label": label, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, label, score, box in self
        ]

    def to_coco(self, image_id: int | str) -> list[dict[str, Any]]:
        """The detections as in a COCO results file, which pycocotools reads: category ids, boxes as xywh.

        Args:
            image_id: id of the image in the COCO file of the dataset.
        """
        arrays = {"boxes": self.boxes, "labels": self.labels, "scores": self.scores}
        return coco_detections(image_id, arrays, self.categories)

    def to_yolo(self) -> str:
        """The detections as YOLO's text: a line ``label x y width height score`` each, relative to the image's size.

        ``x y`` is the center of the box.
        """
        height, width = self.image.shape[:2]
        corners = self.boxes.astype(np.float64) / (width, height, width, height)
        rows = np.hstack(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]))
        lines = zip(self.labels.tolist(), rows.tolist(), self.scores.tolist(), strict=True)
        return "".join(
            f"{label} {' '.join(f'{v:.6f}' for v in row)} {score:.4f}\n" for label, row, score in lines
        )

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` with the columns class, label, score, x1, y1, x2, y2."""
        pandas = import_optional("pandas", "to_pandas needs")
        x1, y1, x2, y2 = self.boxes.T
        columns = {"class": self.names, "label": self.labels, "score": self.scores}
        return pandas.DataFrame({**columns, "x1": x1, "y1": y1, "x2": x2, "y2": y2})

    def to_supervision(self) -> Any:
        """The detections as ``supervision.Detections``, with the class names in ``data["class_name"]``."""
        supervision = import_optional("supervision", "to_supervision needs")
        names = np.array(self.names, dtype=str)
        return supervision.Detections(
            xyxy=self.boxes, confidence=self.scores, class_id=self.labels, data={"class_name": names}
        )


def score_thresholds(
    score: float | Mapping[str, float], categories: Categories, default: float = 0.0
) -> np.ndarray:
    """The threshold of each class, (C,) float64.

    Args:
        score: the threshold of all classes, or class name to threshold.
        categories: the C classes.
        default: threshold of the classes that a mapping does not name.

    Raises:
        ValueError: unknown class, or a threshold outside 0..1.
    """
    named = score if isinstance(score, Mapping) else dict.fromkeys(categories.names, score)
    thresholds = np.full(len(categories), default, dtype=np.float64)
    for name, value in named.items():
        thresholds[categories.label_of(name)] = value
    if not ((thresholds >= 0) & (thresholds <= 1)).all():
        raise ValueError(f"score threshold {score!r}; expected numbers from 0 to 1")
    return thresholds
