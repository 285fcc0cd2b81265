"""The classes of a dataset, and the numbers that stand for them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from fcos_fast.serialize import from_plain, to_plain
from fcos_fast.suggest import unknown_name
from fcos_fast.text import printable


@dataclass(frozen=True)
class Categories:
    """The classes of a dataset; converts between labels, names and ids.

    A model uses labels 0..C-1, which are indices into ``names``. Files use names, or the dataset's own ids, which may
    start anywhere and have gaps (COCO's 80 classes have ids 1..90).

    Attributes:
        names: the C class names, by label.
        ids: the C ids of the dataset, by label; 1..C if it has none.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise TypeError(
                f"Categories: names is the string {self.names!r}; expected a sequence of class names"
            )
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(
            self, "ids", tuple(int(i) for i in self.ids) or tuple(range(1, len(self.names) + 1))
        )
        if not self.names:
            raise ValueError("Categories: got no classes; a detector needs at least one")
        if len(self.ids) != len(self.names):
            raise ValueError(
                f"Categories: got {len(self.names)} names but {len(self.ids)} ids; expected one id each"
            )
        for what, values in (("name", self.names), ("id", self.ids)):
            repeated = [value for value, count in Counter[int | str](values).items() if count > 1]
            if repeated:
                raise ValueError(
                    f"Categories: the {what} {repeated[0]!r} occurs more than once; make each unique"
                )

    def __len__(self) -> int:
        return len(self.names)

    def label_of(self, name: str) -> int:
        """Label of the class ``name``; an unknown name raises ValueError with the nearest and all known names."""
        if name in self.names:
            return self.names.index(name)
        raise unknown_name("class", name, self.names)

    def label_of_id(self, category_id: int) -> int:
        """Label of the dataset's id; an unknown id raises ValueError with the known ids."""
        if category_id in self.ids:
            return self.ids.index(category_id)
        known = ", ".join(f"{i} ({name})" for i, name in zip(self.ids, self.names, strict=True))
        raise ValueError(f"unknown category id {category_id!r}; known are {known}")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON and checkpoints."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> Categories:
        """Inverse of :meth:`to_dict`."""
        return from_plain(cls, state)

    def __str__(self) -> str:
        names = [printable(name) for name in self.names]
        width = max(map(len, names))
        rows = [
            f"{label:5}  {name:{width}}  {i:10}"
            for label, (name, i) in enumerate(zip(names, self.ids, strict=True))
        ]
        return "\n".join([f"label  {'class':{width}}  dataset id", *rows])


# fmt: off
_COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
_VOC_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on

COCO = Categories(
    _COCO_NAMES, tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
)
"""The 80 classes of COCO's detection task, with its own ids."""

VOC = Categories(_VOC_NAMES)
"""The 20 classes of PASCAL VOC."""
