"""``fcos-fast data split``: new splits of a dataset."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fcos_fast.cli.data_source import SourceConfig
from fcos_fast.cli.options import parse_options
from fcos_fast.fields import at_least, check_fields

COMMON = ("data.root", "output", "fractions", "group", "group_file", "data.split", "seed", "config")
"""Options that the help lists first."""


@dataclass(frozen=True)
class SplitOptions:
    """Divide a dataset into splits that all have their share of every class.

      fcos-fast data split --data.root FOLDER --output FOLDER-split --fractions "{train: 0.7, val: 0.2, test: 0.1}"

    The new folder contains lists of images in the dataset's own format, and links to the dataset, of which nothing is
    changed, moved or copied.

    Attributes:
        output: folder to create; give it to ``fcos-fast train`` as ``--data.root``.
        data: the dataset to divide.
        fractions: name of each split and its share of the images; the sum is 1.
        group: regular expression for the path of an image, relative to the folder of all images. Images for which it
            finds the same text (that of its first group, if it has one) stay in one split: ``"^(patient\\d+)_"``,
            ``"^(.*)/"`` for the frames of a folder.
        group_file: file with a line ``image,group`` for every image, instead of ``group``.
        seed: another seed divides differently.
    """

    output: str
    data: SourceConfig = field(default_factory=SourceConfig)
    fractions: dict[str, float] = field(default_factory=lambda: {"train": 0.8, "val": 0.2})
    group: str | None = None
    group_file: str | None = None
    seed: int = at_least(0, 0)

    def __post_init__(self) -> None:
        check_fields(self, "--")
        for name, share in self.fractions.items():
            if not re.fullmatch(r"[\w.-]*\w", name):
                raise ValueError(
                    f"--fractions: {name!r} is no name of a split; use letters, digits, '-' and '_'"
                )
            if not 0 < share <= 1:
                raise ValueError(
                    f"--fractions: {name} is {share:g}; expected a share of more than 0, at most 1"
                )
        total = math.fsum(self.fractions.values())
        if abs(total - 1) > 1e-6:
            raise ValueError(f"--fractions: the sum of {self.fractions} is {total:g}; expected 1")
        if self.group is not None and self.group_file is not None:
            raise ValueError("--group and --group_file: give only one of them")
        try:
            re.compile(self.group or "")
        except re.error as error:
            raise ValueError(f"--group {self.group!r}: is not a regular expression ({error})") from None


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast data split``."""
    options = parse_options(SplitOptions, "data split", arguments, common=COMMON)

    from fcos_fast.cli.data_split_run import run

    run(options)
    return 0
