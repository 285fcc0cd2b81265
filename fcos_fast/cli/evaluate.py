"""``fcos-fast evaluate``: average precision of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from fcos_fast.cli.options import parse_options
from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
from fcos_fast.engine.config import DataConfig, from_plain
from fcos_fast.engine.distributed import own_device, rank
from fcos_fast.engine.evaluate import evaluate
from fcos_fast.engine.files import write_text
from fcos_fast.engine.report import write_report
from fcos_fast.engine.run_folder import new_run_folder
from fcos_fast.precision import Precision, choose_precision


@dataclass(frozen=True)
class EvaluateOptions:
    """Average precision of a checkpoint on a data set.

    Attributes:
        checkpoint: a ``best.pt`` or ``last.pt``.
        root: folder of the data set; by default the one of the training.
        split: of the data set; by default the validation split of the training. An empty name takes all images.
        strict: refuse boxes without an area or outside their image instead of leaving them out.
        batch_size: images that run together; of several processes, each has as many.
        workers: processes that read pictures; 0 reads them in between.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``.
        precision: ``auto`` is bfloat16 where the device is fast at it.
        runs: folder in which the folder of the results is made.
        name: of that folder; a number is added where there is one already.
    """

    checkpoint: str
    root: str | None = None
    split: str | None = None
    strict: bool = False
    batch_size: int = 8
    workers: int = 0
    device: str = "auto"
    precision: Precision = "auto"
    runs: str = "runs"
    name: str = "evaluate"


def main(arguments: Sequence[str]) -> int:
    """Run the verb; its exit status."""
    options = parse_options(EvaluateOptions, "evaluate", arguments)
    saved = load_checkpoint(options.checkpoint)
    trained_on = from_plain(DataConfig, saved["config"]["data"]) if "config" in saved else DataConfig()
    root = options.root or trained_on.root
    if not root:
        raise ValueError(
            f"{options.checkpoint} does not say on which data set to evaluate; name one with --root"
        )
    split = trained_on.val if options.split is None else options.split
    model, categories = model_from_checkpoint(saved)
    dataset = replace(trained_on, root=root, strict=options.strict).load(split, categories)
    device = own_device(options.device)
    dtype, reason = choose_precision(options.precision, device)
    if rank() == 0:
        print(dataset.report)
        print(f"{model.title}; {device}, {dtype} ({reason})".replace("torch.", ""))
    model = model.to(device).optimize_for_inference(options.precision)
    result, detections = evaluate(model, dataset, batch_size=options.batch_size, workers=options.workers)
    if rank() != 0:
        return 0

    folder = new_run_folder(options.runs, options.name)
    write_text(folder / "metrics.json", json.dumps(asdict(result), indent=2))
    title = f"{options.checkpoint} on {root}, split {split}"
    page = write_report(folder, title, dataset, detections, result, {})
    print(f"\n{result.table()}\n\nreport   {page}\nsheet    {folder / 'sheet.png'}")
    return 0
