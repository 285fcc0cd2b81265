"""The data that a run trains and evaluates on."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fcos_fast.data import Categories, DetectionDataset
from fcos_fast.engine.config import Config
from fcos_fast.models.class_weights import balanced


def with_absolute_root(config: Config) -> Config:
    """The configuration with an absolute ``data.root``, so that a resumed run finds it from any working folder."""
    if not config.data.root:
        return config
    root = str(Path(config.data.root).expanduser().absolute())
    return replace(config, data=replace(config.data, root=root))


def load_splits(
    config: Config, categories: Categories | None = None
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The training split, and the validation split unless ``data.val`` is empty.

    Raises:
        ValueError: no ``data.root``, an invalid dataset, or a training split without a box to train on.
    """
    data = config.data
    if not data.root:
        raise ValueError("no dataset; give its folder with --data.root")
    if categories is None and data.classes:
        categories = Categories(data.classes)
    train_set = data.load(data.train, categories)
    report = train_set.report
    if report is not None and report.boxes == report.ignored:
        raise ValueError(
            f"{report.source}: no box to train on ({report.boxes} boxes, all of them difficult or crowds); "
            "label some or correct the flags"
        )
    return train_set, data.load(data.val, train_set.categories) if data.val else None


def with_classes_of(train_set: DetectionDataset, config: Config) -> Config:
    """The configuration with the dataset's number of classes, and its class weights if they are ``balanced``."""
    model = replace(config.model, num_classes=len(train_set.categories))
    if model.class_weights == "balanced":
        labels = np.concatenate([record.labels[~record.ignore] for record in train_set.records])
        counts = np.bincount(labels, minlength=model.num_classes)
        model = replace(model, class_weights=balanced(counts.tolist()))
    return replace(config, model=model)


def fingerprint(dataset: DetectionDataset) -> dict[str, Any]:
    """Number of images and boxes, and a hash of all sizes, boxes and labels; the same in any folder."""
    records = dataset.records
    arrays = [records.sizes, np.diff(records.offsets), records.boxes, records.labels, records.ignore]
    hasher = hashlib.blake2b(digest_size=16)
    for array in arrays:
        hasher.update(array.tobytes())
    return {"images": len(records), "boxes": len(records.boxes), "digest": hasher.hexdigest()}
