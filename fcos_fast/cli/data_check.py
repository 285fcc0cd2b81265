"""``fcos-fast data check``: faults of images, labels and splits, with advice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fcos_fast.cli.train import TrainOptions, parse_with_model
from fcos_fast.fields import check_fields

COMMON = (
    *(
        "data.root",
        "data.train",
        "data.val",
        "checkpoint",
        "output",
        "json",
        "groups",
        "fail_on",
        "size",
        "preset",
    ),
    *("model.min_size", "model.max_size", "config"),
)
"""Options that the help lists first."""


@dataclass(frozen=True)
class CheckOptions(TrainOptions):
    """Find faults of the images, labels and splits of a dataset, and what does not suit the detector. Accepts all
    options of ``fcos-fast train``.

      fcos-fast data check --data.root FOLDER --data.train train --data.val val --output check.html

    The exit status is 0, or 1 if there are findings of the severity ``fail_on``. An error makes training fail or its
    result wrong; a warning probably costs accuracy; a note is a fact to know.

    Attributes:
        checkpoint: detector that was trained on this dataset; finds missing labels, wrong classes and labels of
            nothing.
        output: HTML file for the findings with their images.
        json: JSON file for the findings.
        groups: file for ``fcos-fast data split --group_file``, which then keeps duplicates in one split. Check the
            split that you divide: ``--data.train "" --data.val ""`` for all images.
        fail_on: severity from which findings make the exit status 1.
    """

    checkpoint: str | None = None
    output: str | None = None
    json: str | None = None
    groups: str | None = None
    fail_on: Literal["error", "warning", "never"] = "error"

    def __post_init__(self) -> None:
        check_fields(self, "--")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast data check``."""
    options = parse_with_model(CheckOptions, "data check", arguments, COMMON)
    if not options.data.root:
        raise ValueError("no dataset; give its folder with --data.root")

    from fcos_fast.engine.files import write_json, write_text
    from fcos_fast.quality.check import check
    from fcos_fast.quality.report import to_html, to_text

    checked = check(options.config(), options.checkpoint)
    print(to_text(checked))
    if options.output is not None:
        write_text(options.output, to_html(checked, options.data.max_pixels))
        print(f"page     {options.output}")
    if options.json is not None:
        write_json(options.json, checked.to_plain())
    if options.groups is not None:
        write_text(options.groups, checked.groups())
    failing = {"error": ("error",), "warning": ("error", "warning"), "never": ()}[options.fail_on]
    return int(any(checked.count(severity) for severity in failing))
