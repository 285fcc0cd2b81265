"""``fcos-fast compare``: runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fcos_fast.cli.options import parse_options
from fcos_fast.fields import check_fields, checked


@dataclass(frozen=True)
class CompareOptions:
    """Compare runs of training or evaluation: options that differ, average precision, errors, time, size.

      fcos-fast compare runs/train runs/train2

    Attributes:
        runs: two or more folders of ``fcos-fast train`` or ``fcos-fast evaluate``.
        output: file for the comparison: a page with curves (``.html``), or all values (``.json``).
    """

    runs: list[str] = field(default_factory=list)
    output: str | None = checked(
        None,
        lambda name: name is None or Path(name).suffix in (".html", ".json"),
        "a file name ending in .html or .json",
    )

    def __post_init__(self) -> None:
        check_fields(self, "--")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast compare``."""
    options = parse_options(
        CompareOptions,
        "compare",
        arguments,
        positional=("runs", "folders of runs"),
        common=("output", "config"),
    )
    if len(options.runs) < 2:
        raise ValueError(f"expected at least two folders of runs, got {len(options.runs)}")

    from fcos_fast.engine.compare import comparison_json, comparison_page, comparison_text, read_run
    from fcos_fast.engine.files import write_json, write_text

    runs = [read_run(folder) for folder in options.runs]
    print(comparison_text(runs))
    if options.output:
        if options.output.endswith(".json"):
            write_json(options.output, comparison_json(runs))
        else:
            write_text(options.output, comparison_page(runs))
        print(f"\ncomparison  {options.output}")
    return 0
