"""``fcos-fast demo``: train a small detector on generated images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fcos_fast.cli.options import parse_options
from fcos_fast.cli.train import parse_train_options

OWN_DATA = """
to train on your own images in VOC format (folders JPEGImages, Annotations, ImageSets/Main):
  fcos-fast train --config small --data.root FOLDER --data.train train --data.val val"""


@dataclass(frozen=True)
class DemoOptions:
    """Train a small detector on generated images, evaluate it and draw its detections.

    Attributes:
        images: number of training images; a tenth as many are generated for evaluation.
        epochs: passes over the training images.
        seed: seed of the images and of the training.
        runs: parent of the folder of the demo.
    """

    images: int = 1800
    epochs: int = 4
    seed: int = 0
    runs: str = "runs"

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("epochs", self.epochs)):
            if value < 1:
                raise ValueError(f"--{name} is {value}; it must be 1 or more")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast demo``."""
    options = parse_options(DemoOptions, "demo", arguments)

    from fcos_fast.cli.outcome import in_log_of, present
    from fcos_fast.data import SyntheticConfig, write_voc
    from fcos_fast.engine.run_folder import new_run_folder
    from fcos_fast.engine.train import train

    start = time.perf_counter()
    folder = new_run_folder(options.runs, "demo")
    held_out = max(1, options.images // 10)
    print(f"generating {options.images} training images and {held_out} test images", flush=True)
    root = folder / "images"
    # small and not too crowded, so that a few minutes of training from random weights suffice
    appearance = SyntheticConfig(size=(128, 160), object_size=(20, 110), max_objects=4, min_visible=0.85)
    write_voc(root, {"train": options.images, "test": held_out}, options.seed, appearance)
    config = parse_train_options(["--config", "demo"]).config()
    outcome = train(
        replace(
            config,
            data=replace(config.data, root=str(root)),
            train=replace(config.train, epochs=options.epochs, seed=options.seed, runs=str(folder)),
        )
    )
    with in_log_of(outcome):
        present(outcome)
        print(f"images   {root / 'JPEGImages'}\n{OWN_DATA}\n\n{time.perf_counter() - start:.0f} s in total")
    return 0
