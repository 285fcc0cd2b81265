"""``fcos-fast data stats``: how the boxes of a data set suit the levels of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcos_fast.cli.suggest import did_you_mean
from fcos_fast.cli.train import TrainOptions, parse_train_options
from fcos_fast.models import FCOSConfig

SUBVERBS = {
    "stats": "box sizes, boxes per level, boxes that no location gets; suggested level ranges and input size"
}


@dataclass(frozen=True)
class StatsOptions(TrainOptions):
    """How the boxes of the training split suit a detector; takes the options of ``fcos-fast train``.

    Attributes:
        pictures: at most so many are looked at, evenly spaced.
        output: JSON file for all numbers.
    """

    pictures: int = 5000
    output: str | None = None

    def __post_init__(self) -> None:
        if self.pictures < 1:
            raise ValueError(f"--pictures is {self.pictures}; expected 1 or more")


def main(arguments: Sequence[str]) -> int:
    """Run the verb; its exit status."""
    verb, *rest = arguments or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: fcos-fast data stats [options]\n\n  stats  " + SUBVERBS["stats"])
        return 0
    if verb not in SUBVERBS:
        raise ValueError(f"there is no verb 'data {verb}'{did_you_mean(verb, SUBVERBS)}")
    options = parse_train_options(rest, StatsOptions, "data stats")
    if not isinstance(options.model, FCOSConfig):
        raise ValueError("level ranges are what an FCOS has; give --preset with one of its presets")

    from fcos_fast.cli.data_stats import report, statistics
    from fcos_fast.engine.files import write_json

    dataset = options.data.load(options.data.train)
    found = statistics(dataset, options.model, options.pictures)
    print(report(found))
    if options.output is not None:
        write_json(options.output, found)
    return 0
