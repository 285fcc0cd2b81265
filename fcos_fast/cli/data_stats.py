"""``fcos-fast data stats``: how the boxes of a dataset suit the levels of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fcos_fast.cli.train import TrainOptions, parse_with_model
from fcos_fast.fields import check_fields, positive
from fcos_fast.models import FCOSConfig

COMMON = (
    "data.root",
    "data.train",
    "preset",
    "model.min_size",
    "model.max_size",
    "images",
    "output",
    "config",
)
"""Options that the help lists first."""


@dataclass(frozen=True)
class StatsOptions(TrainOptions):
    """Show how the boxes of the training split suit a detector. Accepts all options of ``fcos-fast train``.

      fcos-fast data stats --data.root FOLDER

    Attributes:
        images: maximum number of images to read, evenly spaced over the split.
        output: JSON file for the statistics.
    """

    images: int = positive(5000)
    output: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "--")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast data stats``."""
    options = parse_with_model(StatsOptions, "data stats", arguments, COMMON)
    if not isinstance(options.model, FCOSConfig):
        raise ValueError(
            f"--preset {options.preset} is not an FCOS and has no level ranges; give an FCOS preset"
        )

    if not options.data.root:
        raise ValueError("no dataset; give its folder with --data.root")

    from fcos_fast.cli.data_stats_run import report, statistics
    from fcos_fast.engine.files import write_json

    dataset = options.data.load(options.data.train)
    found = statistics(dataset, options.model, options.images)
    print(report(found))
    if options.output is not None:
        write_json(options.output, found)
    return 0
