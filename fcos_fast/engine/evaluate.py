"""Evaluation: run a detector on a dataset and compute its average precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor

from fcos_fast.data import DetectionDataset, eval_loader
from fcos_fast.engine.average_precision import AveragePrecision, average_precision
from fcos_fast.engine.distributed import broadcast, gather, rank, world_size
from fcos_fast.engine.progress import Progress
from fcos_fast.inference import Engine
from fcos_fast.models import Detector
from fcos_fast.precision import autocast


def evaluate(
    model: Detector,
    dataset: DetectionDataset,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    workers: int | None = None,
) -> tuple[AveragePrecision, list[dict[str, Tensor]]]:
    """COCO average precision of ``model`` on ``dataset``, and the detections of each image on the CPU.

    The model runs on its device, in evaluation mode, under autocast to ``dtype``.

    Several processes, each with the same model, share the batches. The batches do not depend on their number, so the
    detections have the same bits as those of one process. All ranks return the result; the detections are empty on all
    but rank 0.
    """
    device = next(model.parameters()).device
    return _evaluate(
        lambda batches: detect_batches(model, batches, dtype), dataset, batch_size, workers, device
    )


def evaluate_engine(
    engine: Engine, dataset: DetectionDataset, batch_size: int = 8, workers: int | None = None
) -> tuple[AveragePrecision, list[dict[str, Tensor]]]:
    """:func:`evaluate` for an engine, such as that of an exported detector."""

    def detect(batches: Iterable[list[Tensor]]) -> Iterator[list[dict[str, Tensor]]]:
        for images in batches:
            found = engine.detect([image.permute(1, 2, 0).numpy() for image in images])
            yield [
                {name: torch.from_numpy(x) for name, x in detection._asdict().items()} for detection in found
            ]

    return _evaluate(detect, dataset, batch_size, workers, torch.device("cpu"))


def _evaluate(
    detect: Callable[[Iterable[list[Tensor]]], Iterator[list[dict[str, Tensor]]]],
    dataset: DetectionDataset,
    batch_size: int,
    workers: int | None,
    device: torch.device,
) -> tuple[AveragePrecision, list[dict[str, Tensor]]]:
    loader = eval_loader(dataset, batch_size, workers, rank=rank(), world_size=world_size(), device=device)
    batches: list[list[dict[str, Tensor]]] = []
    start = time.perf_counter()
    with Progress(len(loader), "evaluate", images=batch_size * world_size()) as progress:
        for batch in detect(images for images, _ in loader):
            batches.append(batch)
            progress.update()
    shares = gather(batches)
    if shares is None:
        return broadcast(None), []
    detections = [found for turn in zip_longest(*shares, fillvalue=[]) for batch in turn for found in batch]
    speed = len(dataset) / max(time.perf_counter() - start, 1e-9)  # the clock can stand still
    result = average_precision(dataset.coco_ground_truth(), detections, dataset.categories)
    return broadcast(replace(result, images_per_second=speed)), detections


def detect_batches(
    model: Detector, batches: Iterable[list[Tensor]], dtype: torch.dtype = torch.float32
) -> Iterator[list[dict[str, Tensor]]]:
    """Yield the detections of each batch of images, on the CPU. The model returns to its mode at the end."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for images in batches:
            with torch.inference_mode(), autocast(dtype, device):
                found = model([image.to(device, non_blocking=True) for image in images])
            yield [{name: tensor.cpu() for name, tensor in detection.items()} for detection in found]
    finally:
        model.train(was_training)
