"""``fcos-fast demo``: from nothing to a trained detector, on generated images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from fcos_fast.cli.options import parse_options
from fcos_fast.cli.train import parse_train_options

OWN_DATA = """
your own images, in the folders of PASCAL VOC (JPEGImages, Annotations, ImageSets/Main):
  fcos-fast train --config small --data.root FOLDER --data.train train --data.val val"""


@dataclass(frozen=True)
class DemoOptions:
    """Generate images, train a small detector on them, and look at what it learnt.

    Attributes:
        images: number of generated images to train on; a tenth as many are held out for the evaluation.
        epochs: passes over them.
        seed: of the images and of the training.
        runs: folder in which the folder of the demo is made.
    """

    images: int = 1800
    epochs: int = 4
    seed: int = 0
    runs: str = "runs"


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand with these arguments and return its exit status."""
    options = parse_options(DemoOptions, "demo", arguments)

    from fcos_fast.cli.outcome import present
    from fcos_fast.data import SyntheticConfig, write_voc
    from fcos_fast.engine.run_folder import new_run_folder
    from fcos_fast.engine.train import train

    start = time.perf_counter()
    folder = new_run_folder(options.runs, "demo")
    held_out = max(1, options.images // 10)
    print(f"generating {options.images} images to train on and {held_out} to test with", flush=True)
    root = folder / "images"
    # small, and not too crowded: what can be learnt from nothing in a few minutes
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
    present(outcome)
    print(f"images {root / 'JPEGImages'}\n{OWN_DATA}\n\n{time.perf_counter() - start:.0f} s in all")
    return 0
