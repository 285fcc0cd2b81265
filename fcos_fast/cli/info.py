"""``fcos-fast info``: what is installed, or with ``--model`` the configuration and cost of a detector.

Without options it is :mod:`fcos_fast.info`, which also runs if the rest of the package is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import fcos_fast.info
from fcos_fast.models.recommended import ModelSize

if TYPE_CHECKING:
    from fcos_fast.models import DetectorConfig


@dataclass(frozen=True)
class InfoOptions:
    """Show what is installed and which operators are native.

    With --size or --model: show the configuration of a detector, and the parameters and multiply-adds of its parts.

      fcos-fast info
      fcos-fast info --size small
      fcos-fast info --model official-improved

    Attributes:
        size: a detector by its size; this or ``model`` is needed by the other options.
        model: a preset or the file of a checkpoint.
        backbone: backbone to use instead of the model's own.
        num_classes: number of classes to use instead of the model's own.
        norm: norm of the backbone. Published parameter counts are for frozen norms, which have no parameters.
        image_size: ``[height, width]`` in pixels of the padded image whose multiply-adds are counted; by default the
            largest that the model's ``min_size`` and ``max_size`` allow.
    """

    size: ModelSize | None = None
    model: str = ""
    backbone: str | None = None
    num_classes: int | None = None
    norm: Literal["frozen", "batch", "group"] = "frozen"
    image_size: tuple[int, int] | None = None


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast info``."""
    if not arguments:
        return fcos_fast.info.main()
    # imported late: without options this must run in a broken installation
    from fcos_fast.cli.options import parse_options

    options = parse_options(InfoOptions, "info", arguments)
    if options.image_size and min(options.image_size) < 1:
        given = list(options.image_size)
        raise ValueError(f"--image_size is {given}; expected a positive height and width in pixels")
    print(describe(options))
    return 0


def describe(options: InfoOptions) -> str:
    """The configuration and the cost of a model, as text."""
    import torch

    from fcos_fast.models import build_detector
    from fcos_fast.models.cost import cost, cost_table
    from fcos_fast.models.sizes import largest_size

    config = _config(options)
    with torch.device("meta"):
        model = build_detector(config).eval()
    height, width = options.image_size or largest_size(config) or (800, 1344)
    table = cost_table(cost(model, (height, width)))
    return f"{config}\n\nfor one image of {height}x{width} pixels, as input of the backbone\n{table}"


def _config(options: InfoOptions) -> DetectorConfig:
    from fcos_fast.models import PRESETS, SIZES, DetectorConfig
    from fcos_fast.suggest import unknown_name

    config: DetectorConfig
    if (options.size is None) == (not options.model):
        raise ValueError("give the detector, either with --size or with --model, a preset or a checkpoint")
    if options.size is not None:
        config = SIZES[options.size]
    elif options.model in PRESETS:
        config = PRESETS[options.model]
    elif Path(options.model).is_file():
        from fcos_fast.engine.checkpoint import load_checkpoint

        config = DetectorConfig.from_dict(load_checkpoint(options.model)["model_config"])
    elif Path(options.model).suffix or Path(options.model).name != options.model:
        raise FileNotFoundError(f"checkpoint {options.model} does not exist")
    else:
        raise unknown_name("preset or checkpoint", options.model, PRESETS)
    given: dict[str, Any] = {
        "backbone": options.backbone,
        "num_classes": options.num_classes,
        "norm": options.norm,
    }
    return replace(config, **{name: value for name, value in given.items() if value is not None})
