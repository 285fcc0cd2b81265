"""``fcos-fast evaluate``: average precision of a checkpoint on a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from fcos_fast.cli.options import parse_options
from fcos_fast.data.categories import Categories
from fcos_fast.engine.config import DataConfig
from fcos_fast.fields import check_fields, positive
from fcos_fast.precision import Precision
from fcos_fast.serialize import from_plain
from fcos_fast.text import printable

OLD_NAMES = {f"--{name}": f"--data.{name}" for name in ("root", "split", "strict", "workers")}
"""Old option -> the name that ``fcos-fast train`` uses too. Both are accepted."""

COMMON = (
    *("checkpoint", "data.root", "data.split", "batch_size", "device", "precision", "output", "runs", "name"),
    "config",
)
"""Options that the help lists first."""


@dataclass(frozen=True)
class EvaluateDataConfig:
    """The dataset to evaluate on.

    Attributes:
        root: folder of the dataset; by default that of the training.
        split: split to evaluate on; by default the validation split of the training; empty uses all images.
        strict: make invalid boxes (zero area, outside the image, NaN) errors instead of skipping them.
        allow_outside: accept paths in COCO and YOLO files that lead outside ``root``; by default as in the training.
        max_pixels: images with more pixels are rejected; by default as in the training.
        workers: processes that read images; 0 reads in the main process. By default 0 without a GPU; with one, the
            number of available CPU cores, at most 8.
    """

    root: str | None = None
    split: str | None = None
    strict: bool = False
    allow_outside: bool | None = None
    max_pixels: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class EvaluateOptions:
    """Measure the average precision of a checkpoint on a dataset.

      fcos-fast evaluate --checkpoint runs/train/best.pt

    Attributes:
        checkpoint: ``best.pt`` or ``last.pt`` of a run, a checkpoint that ``fcos-fast convert`` reads, or a file of
            ``fcos-fast export``.
        data: the dataset to evaluate on.
        batch_size: images per batch of each process.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``auto`` is bfloat16 on devices with fast bfloat16, otherwise float32.
        output: JSON file for the detections in COCO's result format, which pycocotools reads; by default
            ``results.json`` in the folder of the results.
        runs: parent of the folder of the results.
        name: name of the folder of the results; a number is appended if it exists.
    """

    checkpoint: str
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    batch_size: int = positive(8)
    device: str = "auto"
    precision: Precision = "auto"
    output: str | None = None
    runs: str = "runs"
    name: str = "evaluate"

    def __post_init__(self) -> None:
        check_fields(self, "--")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast evaluate``."""
    options = parse_options(
        EvaluateOptions, "evaluate", [_current_name(word) for word in arguments], common=COMMON
    )

    from fcos_fast.cli.outcome import present_evaluation
    from fcos_fast.engine.checkpoint import load_checkpoint
    from fcos_fast.engine.distributed import is_main
    from fcos_fast.engine.run_folder import new_run_folder
    from fcos_fast.inference.loading import is_exported

    saved = {} if is_exported(options.checkpoint) else load_checkpoint(options.checkpoint)
    data = data_config(options.checkpoint, options.data, saved)
    evaluate, categories, about = _model(options, saved) if saved else _exported(options)
    dataset = data.load(data.val, categories)
    if is_main():
        print(printable(str(dataset.report)))
        print(about)
        # what cannot be written fails before the evaluation, not after
        output = _create_parent(options.output)
        folder = new_run_folder(options.runs, options.name)
    result, detections = evaluate(dataset, batch_size=options.batch_size, workers=options.data.workers)
    if is_main():
        part = f"split {data.val}" if data.val else "all images"
        title = f"{options.checkpoint} on {data.root}, {part}"
        present_evaluation(
            folder, title, dataset, detections, result, output or folder / "results.json", about
        )
    return 0


def _model(options: EvaluateOptions, saved: dict[str, Any]) -> tuple[Callable[..., Any], Categories, str]:
    """The evaluation of a checkpoint, its classes, and what runs, in words."""
    from fcos_fast.engine.checkpoint import model_from_checkpoint
    from fcos_fast.engine.distributed import own_device
    from fcos_fast.engine.evaluate import evaluate
    from fcos_fast.precision import choose_precision

    model, categories = model_from_checkpoint(saved)
    device = own_device(options.device)
    dtype, reason = choose_precision(options.precision, device)
    about = f"{model.title}; {device}, {dtype} ({reason})".replace("torch.", "")
    model = model.to(device).optimize_for_inference(options.precision)
    return partial(evaluate, model), categories, about


def _exported(options: EvaluateOptions) -> tuple[Callable[..., Any], Categories, str]:
    """:func:`_model` of an exported detector."""
    from fcos_fast.engine.evaluate import evaluate_engine
    from fcos_fast.inference import load

    engine = load(options.checkpoint, options.device, options.precision).engine
    about = f"{options.checkpoint}; {type(engine).__name__} on the CPU, float32"
    return partial(evaluate_engine, engine), engine.categories, about


def data_config(checkpoint: str, options: EvaluateDataConfig, saved: dict[str, Any]) -> DataConfig:
    """The data of the training with what the options replace; ``val`` is the split to evaluate on."""
    trained_on = from_plain(DataConfig, saved["config"]["data"]) if "config" in saved else DataConfig()
    given = asdict(options)
    changes = {name: given[name] for name in ("root", "strict", "allow_outside", "max_pixels")}
    changes["val"] = given["split"]
    data = replace(trained_on, **{name: value for name, value in changes.items() if value is not None})
    if not data.root:
        raise ValueError(
            f"{checkpoint} does not name the dataset it was trained on; give one with --data.root"
        )
    return data


def _create_parent(output: str | None) -> Path | None:
    """The file that ``--output`` names, in a folder that exists."""
    if output is None:
        return None
    try:
        Path(output).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output={output}: its folder cannot be created: {error.strerror}") from error
    return Path(output)


def _current_name(word: str) -> str:
    name, equals, value = word.partition("=")
    return OLD_NAMES.get(name, name) + equals + value
