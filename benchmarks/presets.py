"""Trains every preset on blood cell photographs with the same small budget: ``python -m benchmarks.presets``.

All runs use the same backbone, image size, optimizer and number of epochs, from random weights. This compares the rules
for assignment, losses and post-processing, not the published configurations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from fcos_fast.data import AugmentConfig
from fcos_fast.engine.config import Config, DataConfig, TrainConfig
from fcos_fast.engine.optimizer import OptimizerConfig
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.engine.train import train
from fcos_fast.models import PRESETS, build_detector
from fcos_fast.models.cost import cost
from tests.machine import machine

SIZE = (192, 256)
MODEL = {
    "backbone": "resnet18",
    "num_classes": 3,
    "fpn_channels": 128,
    "head_channels": 128,
    "head_convs": 2,
    "min_size": SIZE[0],
    "max_size": SIZE[1],
}


def configuration(preset: str, data: Path, epochs: int, seed: int, runs: Path) -> Config:
    """The configuration of one preset."""
    return Config(
        data=DataConfig(root=str(data), train="trainval", val="test"),
        model=replace(PRESETS[preset], **MODEL),
        augment=AugmentConfig(size=SIZE, scale=(0.8, 1.25), vertical_flip=0.5),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(kind="onecycle"),
        train=TrainConfig(
            epochs=epochs,
            batch_size=8,
            seed=seed,
            evaluate_every=epochs,
            weights="none",
            runs=str(runs),
            name=preset,
        ),
    )


def row(preset: str, config: Config) -> dict[str, float | str]:
    """Train one preset and return its results."""
    result = train(config).result
    with torch.device("meta"):
        *_, total = cost(build_detector(config.model).eval(), SIZE)
    return {
        "preset": preset,
        "ap": result.ap,
        "ap50": result.ap50,
        "ap75": result.ap75,
        **{f"ap_{name}": ap for name, ap in result.per_class.items()},
        "parameters": total.parameters,
        "mult_adds": total.flops // 2,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the presets one after the other, writing the file after each."""
    parser = argparse.ArgumentParser(description="Train every preset with the same small budget.")
    parser.add_argument("data", type=Path, help="folder of BCCD_Dataset's BCCD")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=Path, default=Path("runs/presets"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/presets-bccd.json"))
    options = parser.parse_args(arguments)
    rows = []
    for preset in options.presets:
        config = configuration(preset, options.data, options.epochs, options.seed, options.runs)
        rows.append(row(preset, config))
        about = {"machine": machine(), "epochs": options.epochs, "seed": options.seed, "size": SIZE}
        options.output.write_text(json.dumps({**about, "results": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
