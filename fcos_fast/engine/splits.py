"""The data that a run trains and evaluates on."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fcos_fast.data import Categories, DetectionDataset
from fcos_fast.engine.config import Config
from fcos_fast.engine.distributed import broadcast
from fcos_fast.models.class_weights import balanced


def with_options_of_rank_0(config: Config) -> Config:
    """The configuration of rank 0, except for what differs from machine to machine: ``data.root``, ``data.workers``
    and ``train.device``.

    Rank 0 alone may have a checkpoint whose detector is trained.
    """
    main: Config = broadcast(config)
    data = replace(main.data, root=config.data.root, workers=config.data.workers)
    return replace(main, data=data, train=replace(main.train, device=config.train.device))


def with_absolute_root(config: Config) -> Config:
    """The configuration with an absolute ``data.root``, so that a resumed run finds it from any working folder.

    Environment variables such as ``$SCRATCH`` in it are replaced, on each machine by its own.

    Raises:
        ValueError: a variable is not set.
    """
    if not config.data.root:
        return config
    root = os.path.expandvars(config.data.root)
    if "$" in root and not Path(root).exists():
        raise ValueError(
            f"data.root={config.data.root}: an environment variable in it is not set on {os.uname().nodename}"
        )
    root = str(Path(root).expanduser().absolute())
    return replace(config, data=replace(config.data, root=root))


def load_splits(
    config: Config, categories: Categories | None = None
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The training split, and the validation split unless ``data.val`` is empty.

    Raises:
        ValueError: no ``data.root``, an invalid dataset, a training split without a box to train on, or another dataset
            than that of rank 0.
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
    val_set = data.load(data.val, train_set.categories) if data.val else None
    for dataset in (train_set, val_set):
        if dataset is not None:
            _check_same_on_all_ranks(dataset, data.root)
    return train_set, val_set


def _check_same_on_all_ranks(dataset: DetectionDataset, root: str) -> None:
    """Raise a ValueError unless rank 0 has the same images and boxes; their folder may be another."""
    own = fingerprint(dataset)
    main = broadcast(own)
    if own != main:
        raise ValueError(
            f"{root} on {os.uname().nodename} has {own['images']} images with {own['boxes']} boxes, rank 0 "
            f"{main['images']} with {main['boxes']}, or other sizes, boxes or labels; give every process the same data"
        )


def with_classes_of(train_set: DetectionDataset, config: Config) -> Config:
    """The configuration with the dataset's number of classes, and its class weights if they are ``balanced``."""
    model = replace(config.model, num_classes=len(train_set.categories))
    if model.class_weights == "balanced":
        labels = train_set.records.labels[~train_set.records.ignore]
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
