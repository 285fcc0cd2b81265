"""All checks of a dataset, from the files to the labels that a trained detector contradicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcos_fast.data import IMAGE_SUFFIXES, Categories, DataError
from fcos_fast.data.files import files_in
from fcos_fast.data.image_names import paths_in_common_folder
from fcos_fast.engine.config import Config, DataConfig
from fcos_fast.engine.progress import Progress
from fcos_fast.inference import load
from fcos_fast.inference.detections import Detections
from fcos_fast.inference.loading import is_exported

from .box_faults import find_box_faults
from .class_faults import find_class_faults
from .finding import ALL, EXAMPLES, Example, Finding, Split, ranked
from .fit import find_misfits
from .image_faults import Collection, counted, find_image_faults
from .images import scan_all
from .reader_faults import find_reader_faults
from .suspicious_labels import find_suspicious_labels

LOWEST_SCORE = 0.05
"""Labels that nothing with this score detects are suspicious. Some detectors have a higher threshold of their own."""


@dataclass(frozen=True, eq=False)
class Checked:
    """A checked dataset.

    Attributes:
        root: its folder.
        splits: the splits that could be loaded.
        findings: what was found, most serious first.
        images: the images of all splits and the groups of duplicates.
    """

    root: str
    splits: list[Split]
    findings: list[Finding]
    images: Collection

    def count(self, severity: str) -> int:
        """The number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    def groups(self) -> str:
        """Lines ``image,group`` for ``fcos-fast data split``, which keeps duplicates in one split with them."""
        paths = [str(split.path(image)) for split, image in self.images.members]
        names = paths_in_common_folder(paths) if paths else []
        lines = zip(names, self.images.groups.tolist(), strict=True)
        return "".join(f"{name},{group}\n" for name, group in lines)

    def to_plain(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        splits = {split.name: {"images": len(split), "boxes": len(split.boxes)} for split in self.splits}
        return {"root": self.root, "splits": splits, "findings": [f.to_plain() for f in self.findings]}


def check(config: Config, checkpoint: str | None = None) -> Checked:
    """Check the splits ``data.train`` and ``data.val`` of a dataset, and how they suit the configuration.

    Every image is decoded once. A split that cannot be loaded is a finding, and its images are decoded all the same.

    Args:
        config: configuration of the training.
        checkpoint: detector that was trained on this dataset, or a file of ``fcos-fast export``; finds suspicious
            labels.

    Raises:
        DataError: the folder does not exist.
    """
    data = config.data
    if not Path(data.root).expanduser().exists():
        raise DataError(f"{data.root}: does not exist; give the folder of a dataset")
    splits, findings = _load(data)
    paths = [path for split in splits for i in range(len(split)) if (path := split.path(i))]
    images = Collection(splits, scan_all(paths, data.max_pixels))
    if findings:
        findings += _damaged_files(data, set(paths))
    if splits:
        findings += [*find_image_faults(images), *find_reader_faults(splits), *find_box_faults(splits)]
    if splits and splits[0].name == (data.train or ALL):  # the others are compared with the training split
        findings += [*find_class_faults(splits), *find_misfits(splits, config)]
    if splits and checkpoint:
        findings += _suspicious(splits, images, checkpoint, config)
    return Checked(data.root, splits, ranked(findings), images)


def _load(data: DataConfig) -> tuple[list[Split], list[Finding]]:
    """The splits that can be loaded, and a finding for each of the others."""
    categories = Categories(data.classes) if data.classes else None
    loaded, findings = {}, []
    for name in dict.fromkeys([data.train, *([data.val] if data.val else [])]):
        try:
            loaded[name] = data.load(name, categories)
        except DataError as error:
            findings.append(
                Finding(
                    "split_not_loaded",
                    "error",
                    1,
                    1,
                    f"Split {name or ALL} cannot be loaded",
                    "Training stops with this message. Correct it and check again: more may follow.",
                    examples=(Example(name or ALL, str(error)),),
                )
            )
    names = list(dict.fromkeys(name for dataset in loaded.values() for name in dataset.categories.names))
    return [Split(name, dataset, names) for name, dataset in loaded.items()], findings


def _damaged_files(data: DataConfig, known: set[Path]) -> Iterator[Finding]:
    """The damaged images of a dataset that cannot be loaded, so that not only the first is named."""
    root = Path(data.root).expanduser()
    folder = root if root.is_dir() else root.parent
    paths = [path for path in files_in(folder, IMAGE_SUFFIXES, recursive=True) if path not in known]
    damaged = [
        (path, found.error)
        for path, found in zip(paths, scan_all(paths, data.max_pixels), strict=True)
        if found.error
    ]
    if damaged:
        yield Finding(
            "unreadable_files",
            "error",
            len(damaged),
            len(paths),
            f"{counted(len(damaged), 'image file')} cannot be decoded",
            "Replace the files, or remove them and their labels.",
            examples=tuple(
                Example(str(path.relative_to(folder)), error) for path, error in damaged[:EXAMPLES]
            ),
        )


def _suspicious(
    splits: list[Split], images: Collection, checkpoint: str, config: Config
) -> Iterator[Finding]:
    options: dict[str, Any] = {}
    if not is_exported(checkpoint):  # which cannot change them
        options["lowest_score"] = LOWEST_SCORE
        enough = 2 * max(int(split.counts.max(initial=0)) for split in splits)
        if enough > config.model.max_detections:
            options["max_detections"] = enough
    predictor = load(checkpoint, config.train.device, **options)
    known = predictor.categories.names
    if not set(known) & set(splits[0].names):
        raise ValueError(
            f"{checkpoint}: its classes are {', '.join(known)}, those of the dataset {', '.join(splits[0].names)}; "
            "give a detector that was trained on it"
        )
    readable = {
        member for member, found in zip(images.members, images.scanned, strict=True) if not found.error
    }

    def detect(paths: list[Path]) -> Iterator[Detections]:
        with Progress(len(paths), "detect") as progress:
            pixels = config.data.max_pixels
            for found in predictor.stream(paths, score_threshold=0.0, max_pixels=pixels) if paths else ():
                yield found
                progress.update()

    yield from find_suspicious_labels(splits, lambda *member: member in readable, detect, known)
