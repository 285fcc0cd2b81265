"""Faults that reading the dataset found and counted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import PurePath

from fcos_fast.data.files import LEFTOVER
from fcos_fast.data.paths import composed

from .finding import Example, Finding, Severity, Split
from .image_faults import counted

_KINDS: tuple[tuple[str, Severity, str, tuple[str, ...]], ...] = (
    (
        "annotation for another image size",
        "error",
        "The boxes are in pixels of another image and are used unchanged. Restore the images, or scale the labels. If "
        "the sides are exchanged, the EXIF rotation is the cause, or the images were rotated after labeling.",
        (),
    ),
    (
        "truncated JPEG",
        "warning",
        "The missing part is gray, its objects are labeled all the same. Copy the files again.",
        (),
    ),
    (
        "box partly outside",
        "warning",
        "They are clipped to the image. Often the image was cropped or resized after labeling; check the examples.",
        (),
    ),
    (
        "box",
        "warning",
        "They are skipped, so the objects count as background. Correct them; this option stops at the first.",
        ("--data.strict", "true"),
    ),
    (LEFTOVER, "note", "They are no images of the dataset. Remove them from the lists.", ()),
)
"""Beginning of a fault, its severity, advice and options. The first that fits counts."""


def find_reader_faults(splits: Sequence[Split]) -> Iterator[Finding]:
    """One finding for each kind of fault in the reports of all splits."""
    counts: dict[str, int] = {}
    examples: dict[str, list[Example]] = {}
    for split in splits:
        report = split.dataset.report
        if report is not None:
            for fault, count in report.faults.items():
                counts[fault] = counts.get(fault, 0) + count
                lines = report.examples[fault]
                examples.setdefault(fault, []).extend(_example(split, line) for line in lines)
    for fault, count in counts.items():
        severity, advice, options = next(
            (kind[1:] for kind in _KINDS if fault.startswith(kind[0])),
            ("warning", "The value that the fault names is used. Correct the files.", ()),
        )
        yield Finding(
            "reader_" + "_".join(fault.split(",")[0].split()).lower(),
            severity,
            count,
            sum(len(s.boxes) if fault.startswith("box") else len(s) for s in splits),
            f"{counted(count, 'time')}: {fault}",
            advice,
            options,
            tuple(examples[fault]),
        )


def _example(split: Split, line: str) -> Example:
    """``folder/a.xml: value`` as an example that shows the image."""
    where, _, value = line.partition(": ")
    image = _image_of(split, PurePath(where.rpartition(".json, ")[2]))
    if image is None:
        return Example(f"{split.name}/{PurePath(where).name}", value)
    return split.example(image, split.rows(image), value)


def _image_of(split: Split, label: PurePath) -> int | None:
    """The index of the image that a label file, or a name in a COCO file, is for. Of several with its stem, the one
    with most folders in common."""
    records = split.dataset.records

    def in_common(image: int) -> tuple[bool, int]:
        pairs = zip(label.parts[-2::-1], PurePath(records.files[image]).parts[-2::-1], strict=False)
        folders = takewhile(lambda pair: pair[0] == pair[1], pairs)
        return records.names[image] == str(label), len(list(folders))

    return max(split.by_stem.get(composed(label.stem), ()), key=in_common, default=None)
