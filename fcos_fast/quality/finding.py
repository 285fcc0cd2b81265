"""What a check reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np

from fcos_fast.data import DetectionDataset
from fcos_fast.data.paths import composed

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""From the most serious on. An error makes training fail or its result wrong; a warning probably costs accuracy; a note
is a fact to know."""

ALL = "all"
"""Name of the split without a name, of all images."""

EXAMPLES = 1000
"""Maximum number of occurrences that a finding describes; it counts the others."""


@dataclass(frozen=True, eq=False)
class Example:
    """One occurrence.

    Attributes:
        file: the image's file, with its split.
        detail: what is wrong there; may be empty.
        image: file to show; None if there is nothing to see.
        boxes: (N, 4) float32 xyxy, the boxes to draw on it.
        texts: the text of each box.
        labels: (M, 4) float32 xyxy, boxes to draw without text.
        other: a second image to show beside it, of a duplicate.
        count: how many occurrences it describes.
    """

    file: str
    detail: str = ""
    image: Path | None = None
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    texts: tuple[str, ...] = ()
    labels: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    other: Path | None = None
    count: int = 1

    def __str__(self) -> str:
        return f"{self.file}: {self.detail}" if self.detail else self.file


@dataclass(frozen=True, eq=False)
class Finding:
    """One kind of fault and all its occurrences.

    Attributes:
        kind: short name, the same in every run: ``duplicates_across_splits``.
        severity: see :data:`SEVERITIES`.
        count: number of occurrences.
        total: number of images, boxes or classes that were checked.
        what: one sentence with the count.
        advice: what to do, and why.
        options: options of ``fcos-fast train`` that follow the advice, as words of a command line.
        examples: the first or worst occurrences, at most :data:`EXAMPLES`.
    """

    kind: str
    severity: Severity
    count: int
    total: int
    what: str
    advice: str
    options: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    def more(self, shown: int) -> int:
        """The number of occurrences that the first ``shown`` examples do not describe."""
        return self.count - sum(example.count for example in self.examples[:shown])

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("kind", "severity", "count", "total", "what", "advice")
        plain: dict[str, Any] = {name: getattr(self, name) for name in names}
        plain["options"] = list(self.options)
        plain["examples"] = [
            {"file": e.file, "detail": e.detail, "boxes": e.boxes.tolist(), "texts": list(e.texts)}
            for e in self.examples
        ]
        return plain


def ranked(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, most serious first; equally serious ones by the share of what was checked."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), -f.count / max(1, f.total)))


class Split:
    """A split of the checked dataset, with all its boxes in one array each.

    Args:
        name: name of the split; may be empty.
        dataset: its images.
        names: the classes of all splits together.

    Attributes:
        names: the classes of all splits; ``labels`` are their indices.
        boxes: (N, 4) float32 xyxy in pixels.
        labels: (N,) int64.
        ignore: (N,) bool.
        owner: (N,) int64, the index of each box's image.
        offsets: (I + 1,) int64, the index of each image's first box, and the number of boxes.
        counts: (I,) int64, the number of boxes of each image.
        sizes: (I, 2) int64, (width, height) of each image.
        by_stem: stem of a file -> the indices of the images that have it.
    """

    def __init__(self, name: str, dataset: DetectionDataset, names: Sequence[str]) -> None:
        self.name, self.dataset, self.names = name or ALL, dataset, tuple(names)
        records = dataset.records
        self.sizes, self.boxes, self.ignore = records.sizes, records.boxes, records.ignore
        self.offsets = records.offsets
        self.counts = np.diff(self.offsets)
        self.owner = np.repeat(np.arange(len(records)), self.counts)
        self.by_stem: dict[str, list[int]] = {}
        for i, file_name in enumerate(records.names):
            self.by_stem.setdefault(composed(PurePath(file_name).stem), []).append(i)
        self.labels = np.array([names.index(name) for name in dataset.categories.names])[records.labels]

    def __len__(self) -> int:
        return len(self.sizes)

    def file(self, image: int) -> str:
        """The name of an image, with its split."""
        return f"{self.name}/{self.dataset.records.names[image]}"

    def path(self, image: int) -> Path | None:
        """The file of an image; None for a generated one."""
        path = self.dataset.records.files[image]
        return Path(path) if path else None

    def rows(self, image: int) -> range:
        """The indices of an image's boxes."""
        return range(*self.offsets[image : image + 2].tolist())

    def example(
        self, image: int, boxes: Sequence[int] | np.ndarray = (), detail: str = "", count: int = 1
    ) -> Example:
        """An image with some of its boxes, given by their indices among all boxes."""
        rows = list(boxes)
        texts = tuple(self.names[label] for label in self.labels[rows])
        return Example(self.file(image), detail, self.path(image), self.boxes[rows], texts, count=count)

    def examples(self, boxes: np.ndarray, detail: Callable[[int], str] = lambda box: "") -> list[Example]:
        """An example for each image that has some of ``boxes`` (indices), in their order; ``detail`` of the first."""
        by_image: dict[int, list[int]] = {}
        for box in boxes.tolist():
            by_image.setdefault(int(self.owner[box]), []).append(box)
        chosen = list(by_image.items())[:EXAMPLES]
        return [self.example(image, rows, detail(rows[0]), len(rows)) for image, rows in chosen]
