"""``fcos-fast data``: runs the subcommand for datasets that its next word names."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from fcos_fast.cli.suggest import did_you_mean

SUBCOMMANDS = {
    "stats": "show box sizes and boxes per level of the pyramid; suggest level ranges and an input size",
    "check": "find faults of images, labels and splits; writes an HTML page",
    "show": "draw images with their labels, as training sees them, on one sheet",
    "split": "divide a dataset into splits, balanced by class and by group",
    "convert": "write a dataset in another format: VOC, COCO, YOLO",
}
"""Name -> its help. The subcommand ``stats`` is ``main`` in the module ``data_stats`` beside this file."""


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast data``."""
    subcommand, *rest = arguments or ["--help"]
    if subcommand in ("-h", "--help"):
        print(_usage())
        return 0
    if subcommand.startswith("-"):
        raise ValueError(
            f"unknown option {subcommand}; options follow the subcommand: {', '.join(SUBCOMMANDS)}"
        )
    if subcommand not in SUBCOMMANDS:
        raise ValueError(f"unknown subcommand {subcommand!r}{did_you_mean(subcommand, SUBCOMMANDS)}")
    status: int = import_module(f"fcos_fast.cli.data_{subcommand}").main(rest)
    return status


def _usage() -> str:
    width = max(map(len, SUBCOMMANDS))
    subcommands = "\n".join(f"  {subcommand:{width}}  {what}" for subcommand, what in SUBCOMMANDS.items())
    more = "fcos-fast data SUBCOMMAND --help lists the options."
    return f"usage: fcos-fast data SUBCOMMAND [options]\n\n{subcommands}\n\n{more}"
