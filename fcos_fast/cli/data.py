"""``fcos-fast data stats``: how the boxes of a data set suit the levels of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcos_fast.cli.suggest import did_you_mean
from fcos_fast.cli.train import TrainOptions, parse_train_options
from fcos_fast.models import FCOSConfig

SUBCOMMANDS = {
    "stats": "box sizes, boxes per level, boxes that no location gets; suggested level ranges and input size"
}


@dataclass(frozen=True)
class StatsOptions(TrainOptions):
    """How the boxes of the training split suit a detector; takes the options of ``fcos-fast train``.

    Attributes:
        images: at most so many are looked at, evenly spaced.
        output: JSON file for all numbers.
    """

    images: int = 5000
    output: str | None = None

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"--images is {self.images}; expected 1 or more")


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand with these arguments and return its exit status."""
    subcommand, *rest = arguments or ["--help"]
    if subcommand in ("-h", "--help"):
        print("usage: fcos-fast data stats [options]\n\n  stats  " + SUBCOMMANDS["stats"])
        return 0
    if subcommand not in SUBCOMMANDS:
        raise ValueError(f"unknown subcommand 'data {subcommand}'{did_you_mean(subcommand, SUBCOMMANDS)}")
    options = parse_train_options(rest, StatsOptions, "data stats")
    if not isinstance(options.model, FCOSConfig):
        raise ValueError("level ranges are what an FCOS has; give --preset with one of its presets")

    from fcos_fast.cli.data_stats import report, statistics
    from fcos_fast.engine.files import write_json

    dataset = options.data.load(options.data.train)
    found = statistics(dataset, options.model, options.images)
    print(report(found))
    if options.output is not None:
        write_json(options.output, found)
    return 0
