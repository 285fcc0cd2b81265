"""Faults of image files: damaged, duplicate, rotated by EXIF, blank, of another size than annotated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain

import numpy as np

from .duplicates import duplicate_groups, is_blank
from .finding import EXAMPLES, Example, Finding, Severity, Split
from .images import ScannedImage

Member = tuple[Split, int]
"""An image: its split, and its index there."""


class Collection:
    """The images of all splits and what scanning found, in the same order."""

    def __init__(self, splits: Sequence[Split], scanned: Sequence[ScannedImage]) -> None:
        self.members: list[Member] = [
            (split, image) for split in splits for image in range(len(split)) if split.path(image)
        ]
        self.scanned = list(scanned)

    def __len__(self) -> int:
        return len(self.members)

    @cached_property
    def groups(self) -> np.ndarray:
        """(I,) int64, the group of each image; see :func:`.duplicates.duplicate_groups`."""
        return duplicate_groups(self.scanned)

    def select(self, rows: Sequence[int] | np.ndarray, details: Sequence[str] = ()) -> tuple[Example, ...]:
        """The first of some images as examples."""
        chosen = [self.members[i] for i in rows[:EXAMPLES]]
        texts = [*details[:EXAMPLES], *[""] * (len(chosen) - len(details[:EXAMPLES]))]
        return tuple(
            split.example(image, (), text) for (split, image), text in zip(chosen, texts, strict=True)
        )


def find_image_faults(images: Collection) -> Iterator[Finding]:
    """All findings about the files themselves."""
    yield from _damaged(images)
    yield from _blank(images)
    yield from _sizes(images)
    yield from _duplicates(images)


def _damaged(images: Collection) -> Iterator[Finding]:
    rows = [i for i, found in enumerate(images.scanned) if found.error]
    if rows:
        examples = tuple(
            Example(images.members[i][0].file(images.members[i][1]), images.scanned[i].error)
            for i in rows[:EXAMPLES]
        )
        yield Finding(
            "unreadable_images",
            "error",
            len(rows),
            len(images),
            f"{counted(len(rows), 'image')} cannot be decoded",
            "Training stops at such an image. Replace the files, or remove them and their labels.",
            examples=examples,
        )


def _blank(images: Collection) -> Iterator[Finding]:
    rows = [i for i, s in enumerate(images.scanned) if s.thumbnail is not None and is_blank(s.thumbnail)]
    if rows:
        yield Finding(
            "blank_images",
            "warning",
            len(rows),
            len(images),
            f"{counted(len(rows), 'image')} of a single color",
            "Nothing can be seen on them. Export them again, or remove them and their labels.",
            examples=images.select(rows),
        )


def _sizes(images: Collection) -> Iterator[Finding]:
    """Images whose stored or upright size is not the annotated one."""
    splits = dict.fromkeys(split for split, _ in images.members)
    reports = [split.dataset.report for split in splits if split.dataset.report is not None]
    # VOC: the sizes in the XML files are only compared with those of the images
    unrotated = set(chain.from_iterable(report.unrotated for report in reports))
    turned: list[int] = []
    wrong: list[int] = []
    rotated: list[int] = []
    for i, ((split, image), found) in enumerate(zip(images.members, images.scanned, strict=True)):
        if found.error:
            continue
        annotated = tuple(split.sizes[image].tolist())
        if annotated != found.upright_size:
            (turned if annotated == found.size else wrong).append(i)
        elif found.orientation != 1:
            (turned if split.dataset.records.files[image] in unrotated else rotated).append(i)
    if turned:
        yield Finding(
            "exif_rotation",
            "error",
            len(turned),
            len(images),
            f"{counted(len(turned), 'image')} rotated by EXIF, but annotated for the stored, unrotated image",
            "Images are read upright, as viewers show them, so these boxes are in wrong places. Remove the EXIF "
            "orientation without rotating the pixels (exiftool -Orientation=1 -n, jhead -norot): then they are read as "
            "they were labeled. Or label the upright images.",
            examples=images.select(turned, [_orientation(images.scanned[i]) for i in turned]),
        )
    if wrong:
        details = [
            "annotated as {}x{}, has {}x{} pixels".format(
                *images.members[i][0].sizes[images.members[i][1]], *images.scanned[i].upright_size
            )
            for i in wrong[:EXAMPLES]
        ]
        yield Finding(
            "image_sizes",
            "error",
            len(wrong),
            len(images),
            f"{counted(len(wrong), 'image')} of another size than annotated",
            "The boxes are for other pixels. Restore the original images, or scale the labels with them.",
            examples=images.select(wrong, details),
        )
    if rotated:
        yield Finding(
            "exif_orientation",
            "note",
            len(rotated),
            len(images),
            f"{counted(len(rotated), 'image')} stored rotated (EXIF orientation) and read upright",
            "Check on these images that the boxes fit: some labeling tools show the unrotated image.",
            examples=tuple(
                split.example(image, split.rows(image), _orientation(images.scanned[i]))
                for i in rotated[:EXAMPLES]
                for split, image in [images.members[i]]
            ),
        )


def _orientation(found: ScannedImage) -> str:
    return f"EXIF orientation {found.orientation}, stored as {found.size[0]}x{found.size[1]}"


def _duplicates(images: Collection) -> Iterator[Finding]:
    groups: dict[int, list[int]] = defaultdict(list)
    for i, number in enumerate(images.groups.tolist()):
        groups[number].append(i)
    several = [members for members in groups.values() if len(members) > 1]
    across = [m for m in several if len({images.members[i][0].name for i in m}) > 1]
    within = [m for m in several if len({images.members[i][0].name for i in m}) == 1]
    if across:
        yield _leak(images, across)
    if within:
        yield _repeated(images, within)


def _leak(images: Collection, groups: list[list[int]]) -> Finding:
    """Groups with images of several splits."""
    reference = images.members[0][0]  # the training split
    pairs = []
    for group in groups:
        known = next((i for i in group if images.members[i][0] is reference), group[0])
        pairs += [(i, known) for i in group if images.members[i][0] is not images.members[known][0]]
    same = sum(images.scanned[i].digest == images.scanned[j].digest for i, j in pairs)
    other = images.members[pairs[0][0]][0].name
    total = sum(split is not reference for split, _ in images.members)
    return Finding(
        "duplicates_across_splits",
        "error",
        len(pairs),
        total,
        f"{counted(len(pairs), 'image')} of {other} {_copies(len(pairs), same)} to images of {reference.name}",
        "The model is evaluated on images that it was trained on, or on other frames of the same scene, so its "
        "precision is overestimated. Remove them from one split, or divide the dataset again with "
        "fcos-fast data split and the file that --groups writes.",
        examples=tuple(_pair(images, i, j) for i, j in pairs[:EXAMPLES]),
    )


def _repeated(images: Collection, groups: list[list[int]]) -> Finding:
    """Groups within one split."""
    surplus = sum(len(group) - 1 for group in groups)
    same = sum(len(group) - len({images.scanned[i].digest for i in group}) for group in groups)
    severity: Severity = "warning" if same or surplus > 0.05 * len(images) else "note"
    return Finding(
        "duplicates",
        severity,
        surplus,
        len(images),
        f"{counted(surplus, 'image')} {_copies(surplus, same)} to others of the split",
        "They count several times in training and in the precision. Keep one of each, with the better labels.",
        examples=tuple([_pair(images, i, group[0]) for group in groups for i in group[1:]][:EXAMPLES]),
    )


def _copies(count: int, same: int) -> str:
    """How ``count`` images, ``same`` of which have equal files, resemble others."""
    if 0 < same < count:
        return f"identical ({same:,}) or nearly identical"
    return "identical" if same else "nearly identical"


def _pair(images: Collection, i: int, j: int) -> Example:
    (split, image), (other, known) = images.members[i], images.members[j]
    kind = "identical to" if images.scanned[i].digest == images.scanned[j].digest else "nearly identical to"
    detail = f"{kind} {other.file(known)}" + ("" if _same_labels(images, i, j) else ", with other labels")
    return Example(split.file(image), detail, split.path(image), other=other.path(known))


def _same_labels(images: Collection, i: int, j: int) -> bool:
    """Whether two images have the same boxes and classes, relative to their sizes and within a hundredth of these."""
    found = []
    for split, image in (images.members[i], images.members[j]):
        rows = list(split.rows(image))
        found.append((split.boxes[rows] / np.tile(split.sizes[image], 2), split.labels[rows]))
    (a, a_labels), (b, b_labels) = found
    near = (np.abs(a[:, None] - b[None]) < 0.01).all(axis=-1) & (a_labels[:, None] == b_labels[None])
    return len(a) == len(b) and bool(near.any(axis=0).all() and near.any(axis=1).all())


def counted(number: int, noun: str) -> str:
    """``1 image``, ``1,200 images``, ``3 boxes``, ``2 classes``."""
    plural = noun + ("es" if noun.endswith(("x", "s")) else "s")
    return f"{number:,} {noun if number == 1 else plural}"
