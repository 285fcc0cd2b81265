"""``fcos-fast info``: what runs here, or with ``--model`` what a detector is and costs.

The former is :mod:`fcos_fast.info`, which also runs when the rest of the package is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import fcos_fast.info


@dataclass(frozen=True)
class InfoOptions:
    """What a detector is and costs: its configuration, and parameters and FLOPs of its parts.

    Attributes:
        model: a preset, or a checkpoint.
        backbone: instead of the preset's.
        num_classes: instead of the preset's.
        norm: of the backbone; published numbers are of frozen norms, which have no parameters.
        size: height and width in pixels of the padded image that is counted for.
    """

    model: str
    backbone: str | None = None
    num_classes: int | None = None
    norm: Literal["frozen", "batch", "group"] = "frozen"
    size: tuple[int, int] = (800, 1344)


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand with these arguments and return its exit status."""
    if not arguments:
        return fcos_fast.info.main()
    from fcos_fast.cli.options import parse_options  # what stands above works when these do not

    options = parse_options(InfoOptions, "info", arguments)
    if min(options.size) < 1:
        raise ValueError(f"--size is {list(options.size)}; expected a positive height and width in pixels")
    print(describe(options))
    return 0


def describe(options: InfoOptions) -> str:
    """The configuration of the model, then its cost."""
    import torch

    from fcos_fast.models import build_detector
    from fcos_fast.models.cost import cost, cost_table

    config = _config(options)
    with torch.device("meta"):
        model = build_detector(config).eval()
    height, width = options.size
    table = cost_table(cost(model, (height, width)))
    return f"{config}\n\nfor one image of {height}x{width} pixels, as the backbone sees it\n{table}"


def _config(options: InfoOptions):
    from pathlib import Path

    from fcos_fast.models import PRESETS, DetectorConfig
    from fcos_fast.suggest import unknown_name

    if options.model in PRESETS:
        config = PRESETS[options.model]
    elif Path(options.model).is_file():
        from fcos_fast.engine.checkpoint import load_checkpoint

        config = DetectorConfig.from_dict(load_checkpoint(options.model)["model_config"])
    else:
        raise unknown_name("preset or checkpoint", options.model, PRESETS)
    given = {"backbone": options.backbone, "num_classes": options.num_classes, "norm": options.norm}
    return replace(config, **{name: value for name, value in given.items() if value is not None})
