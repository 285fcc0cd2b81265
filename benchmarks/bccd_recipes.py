"""Trains torchvision's FCOS and recipes of this project in alternation, and records the accuracy over time.

    OMP_NUM_THREADS=2 python -m benchmarks.bccd_recipes BCCD --epochs 30 --recipes bccd
    python -m benchmarks.bccd_recipes BCCD --recipes bccd --epochs 12 \\
        --options "--weights FILE --model.backbone timm:tf_efficientnet_lite0" --options "--weights none"
    python -m benchmarks.bccd_recipes BCCD --recipes --sizes nano small --torchvision-epochs 0 --epochs 15 \\
        --options "--data.train trainval --data.val test --weights none --optimizer.name adamw --optimizer.lr 0.001"

After every epoch it is the turn of the run that has trained for the least time, so that other programs disturb all
equally. Time is the wall time of training, without evaluation. torchvision's run has the optimizer, schedule,
augmentation, image size and random weights of ``--config bccd``, in float32 as it is shipped.
"""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from benchmarks import accuracy
from benchmarks.report import curve_table, write_json
from fcos_fast.cli.train import parse_train_options
from fcos_fast.data import load_dataset
from fcos_fast.engine.average_precision import AveragePrecision
from fcos_fast.engine.run import Run
from fcos_fast.engine.splits import load_splits, with_absolute_root
from fcos_fast.engine.train import train_epoch
from tests.machine import machine

SIZE = (240, 320)
Evaluate = Callable[[], AveragePrecision]


def theirs(data: Path, epochs: int, seed: int) -> Iterator[Evaluate]:
    """Trains torchvision's FCOS; yields after every epoch."""
    train_set = load_dataset(data, "trainval")
    test_set = load_dataset(data, "test", train_set.categories)
    torch.manual_seed(seed)
    model = accuracy.build(len(train_set.categories), SIZE)
    for _ in accuracy.train(model, train_set, seed, epochs, SIZE):
        yield lambda: accuracy.evaluate(model, test_set)


def ours(arguments: Sequence[str], stack: ExitStack) -> Iterator[Evaluate]:
    """Trains as ``fcos-fast train``; yields after every epoch."""
    config = with_absolute_root(parse_train_options(arguments).config())
    run = Run(config, *load_splits(config))
    run.create_folder(stack)
    run.open()
    while run.state.epoch < run.total_epochs:
        train_epoch(run)
        run.state.epoch += 1
        yield lambda: run.evaluate()[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, writing the file after every evaluation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder of BCCD_Dataset's BCCD")
    parser.add_argument("--recipes", nargs="*", default=["bccd"], help="values of --config")
    parser.add_argument("--sizes", nargs="*", default=[], help="values of --size")
    parser.add_argument(
        "--options", action="append", help="options of fcos-fast train; each makes a run per recipe and size"
    )
    parser.add_argument("--epochs", type=int, help="for the recipes; by default each recipe's own")
    parser.add_argument("--torchvision-epochs", type=int, default=30, help="0: without torchvision")
    parser.add_argument("--evaluate-every", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", default="runs/bccd_recipes")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/bccd-recipes.json"))
    options = parser.parse_args(arguments)

    common = [
        "--data.root",
        str(options.data),
        "--train.seed",
        str(options.seed),
        "--train.runs",
        options.runs,
    ]
    common += ["--train.epochs", str(options.epochs)] if options.epochs else []
    with ExitStack() as stack:
        runs: dict[str, Iterator[Evaluate]] = {}
        if options.torchvision_epochs:
            runs["torchvision"] = theirs(options.data, options.torchvision_epochs, options.seed)
        detectors = [["--config", name] for name in options.recipes]
        detectors += [["--size", name] for name in options.sizes]
        for detector in detectors:
            for given in options.options or [""]:
                words = [*detector, *common, *shlex.split(given)]
                runs[" ".join([*detector, given]).strip()] = ours(words, stack)
        curves = alternate(runs, options.evaluate_every, lambda curves: save(options.output, curves))
    print(curve_table(curves))


def alternate(
    runs: dict[str, Iterator[Evaluate]], evaluate_every: int, save: Callable[[dict], None]
) -> dict[str, list[dict[str, float]]]:
    """Give each turn to the run with the least time, until all have ended.

    Returns:
        For each run its evaluations: ``epoch``, ``seconds`` of training, ``ap``, ``ap50``.
    """
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    seconds, epochs = dict.fromkeys(runs, 0.0), dict.fromkeys(runs, 0)
    latest: dict[str, Evaluate] = {}
    unfinished = dict(runs)

    def evaluate(name: str) -> None:
        result = latest.pop(name)()
        point = {"epoch": epochs[name], "seconds": seconds[name], "ap": result.ap, "ap50": result.ap50}
        curves[name].append(point)
        print(f"{name}: {point}", flush=True)
        save(curves)

    while unfinished:
        name = min(unfinished, key=seconds.__getitem__)
        start = time.perf_counter()
        found = next(unfinished[name], None)
        if found is None:  # its last epoch is always evaluated
            del unfinished[name]
            if name in latest:
                evaluate(name)
            continue
        seconds[name] += time.perf_counter() - start
        epochs[name] += 1
        latest[name] = found
        if epochs[name] % evaluate_every == 0:
            evaluate(name)
    return curves


def save(path: Path, curves: dict[str, list[dict[str, float]]]) -> None:
    """Write the curves as JSON."""
    write_json(path, {"machine": machine(), "size": list(SIZE), "curves": curves})


if __name__ == "__main__":
    main()
