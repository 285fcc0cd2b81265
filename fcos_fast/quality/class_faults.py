"""Faults of classes: rare, unbalanced, missing in a split, spelled in two ways."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from fcos_fast.text import printable

from .finding import Example, Finding, Split
from .image_faults import counted

RARE = 10
"""A class with fewer boxes in the training split is rare."""

IMBALANCE = 50
"""Ratio of the boxes of the most and the least frequent class, without rare ones, that calls for balancing."""

REPEATS = 3
"""How many times an epoch shows the images of the least frequent class at most, if that is advised."""


def find_class_faults(splits: Sequence[Split]) -> Iterator[Finding]:
    """All findings about classes. The first split is that of the training."""
    names = splits[0].names
    counts = np.array([np.bincount(s.labels[~s.ignore], minlength=len(names)) for s in splits])  # (splits, C)
    yield from _spelling(names, counts.sum(axis=0))
    train, others = counts[0], counts[1:].sum(axis=0)
    if len(splits) > 1:
        yield from _in_one_split(splits, train, others)
    listed = np.isin(names, splits[0].dataset.categories.names)
    unused = np.flatnonzero(listed & (train == 0) & (others == 0))
    if len(unused):
        yield Finding(
            "unused_classes",
            "warning",
            len(unused),
            len(names),
            f"{counted(len(unused), 'class')} without any box",
            "The model gets outputs that never learn. Remove the classes from the dataset's list, or label them.",
            examples=_named(names, unused, "no box"),
        )
    rare = np.flatnonzero((train > 0) & (train < RARE))
    if len(rare):
        yield Finding(
            "rare_classes",
            "warning",
            len(rare),
            len(names),
            f"{counted(len(rare), 'class')} with fewer than {RARE} boxes in {splits[0].name}",
            "Too few to learn from, and too few to measure. Label more images with them, or merge them into others.",
            examples=tuple(
                Example(printable(names[i]), counted(int(train[i]), "box")) for i in rare.tolist()
            ),
        )
    yield from _imbalance(splits[0], train)


def _spelling(names: Sequence[str], counts: np.ndarray) -> Iterator[Finding]:
    spellings: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        spellings["".join(c for c in name.casefold() if c.isalnum()) or name].append(i)
    several = [group for group in spellings.values() if len(group) > 1]
    if several:
        yield Finding(
            "class_spelling",
            "error",
            len(several),
            len(names),
            f"{counted(len(several), 'class')} written in several ways",
            "Names that differ in case, spaces or punctuation are different classes, which the model must tell apart. "
            "Give them one name in the label files.",
            examples=tuple(
                Example(
                    ", ".join(f"{printable(names[i])!r} ({counted(int(counts[i]), 'box')})" for i in group)
                )
                for group in several
            ),
        )


def _in_one_split(splits: Sequence[Split], train: np.ndarray, others: np.ndarray) -> Iterator[Finding]:
    names, here = splits[0].names, splits[0].name
    there = ", ".join(split.name for split in splits[1:])
    never = np.flatnonzero((train == 0) & (others > 0))
    if len(never):
        yield Finding(
            "classes_never_trained",
            "error",
            len(never),
            len(names),
            f"{counted(len(never), 'class')} in {there} without a box in {here}",
            f"They cannot be learned. Their average precision is 0, or training stops if the classes of {here} do not "
            "include them. Move images with them into the training split.",
            examples=_named(names, never, f"no box in {here}"),
        )
    unmeasured = np.flatnonzero((train > 0) & (others == 0))
    if len(unmeasured):
        yield Finding(
            "classes_never_evaluated",
            "warning",
            len(unmeasured),
            len(names),
            f"{counted(len(unmeasured), 'class')} in {here} without a box in {there}",
            "Nothing tells how well they are detected. Move some images with them into the split for evaluation.",
            examples=_named(names, unmeasured, f"no box in {there}"),
        )


def _named(names: Sequence[str], rows: np.ndarray, detail: str) -> tuple[Example, ...]:
    return tuple(Example(printable(names[i]), detail) for i in rows.tolist())


def _imbalance(split: Split, counts: np.ndarray) -> Iterator[Finding]:
    """Classes with far fewer boxes than the most frequent one. Rare classes are another finding."""
    most = int(counts.argmax())
    few = np.flatnonzero((counts >= RARE) & (counts * IMBALANCE <= counts[most]))
    if not len(few):
        return
    least = int(few[counts[few].argmin()])
    rare, common = (np.unique(split.owner[(split.labels == c) & ~split.ignore]) for c in (least, most))
    name, frequent = printable(split.names[least]), printable(split.names[most])
    if np.isin(rare, common).mean() > 0.5:
        options = ("--model.class_weights", "balanced")
        reason = f"Most images with {name} also have {frequent}, so weights of the classes balance them."
    else:
        fraction = len(rare) / len(split)
        threshold = min(1.0, REPEATS**2 * fraction)
        options = ("--data.repeat_threshold", f"{threshold:.2g}")
        reason = (
            f"Images with {name} are then shown about {(threshold / fraction) ** 0.5:.2g} times per epoch."
        )
    yield Finding(
        "class_imbalance",
        "warning",
        len(few),
        len(split.names),
        f"{counted(len(few), 'class')} with at most 1/{IMBALANCE} of the boxes of {frequent}",
        f"In {split.name}, {frequent} has {counts[most]:,} boxes and {name} {counts[least]:,}. {reason}",
        options,
        tuple(Example(printable(split.names[i]), counted(int(counts[i]), "box")) for i in few.tolist()),
    )
