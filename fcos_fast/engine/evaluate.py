"""Running a detector over a data set, and scoring it."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

import torch
from torch import Tensor

from fcos_fast.data import DetectionDataset, eval_loader
from fcos_fast.engine.average_precision import AveragePrecision, average_precision
from fcos_fast.engine.distributed import broadcast, gather, rank, world_size
from fcos_fast.engine.progress import Progress
from fcos_fast.models import Detector
from fcos_fast.precision import autocast


def evaluate(
    model: Detector,
    dataset: DetectionDataset,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    workers: int | None = None,
) -> tuple[AveragePrecision, list[dict[str, Tensor]]]:
    """COCO average precision of ``model`` on ``dataset``, and its detections, image by image, on the CPU.

    The model runs where it lies, in evaluation mode, under autocast to ``dtype``.

    Several processes, each with the same model, share the batches. A batch holds the same images whatever their number,
    so the detections have the bits of a single process. All have the result; rank 0 has the detections, the others an
    empty list.
    """
    device = next(model.parameters()).device
    loader = eval_loader(dataset, batch_size, workers, rank(), world_size(), device)
    batches: list[list[dict[str, Tensor]]] = []
    with Progress(len(loader), "evaluate", images=batch_size * world_size()) as progress:
        for batch in detect_batches(model, (images for images, _ in loader), dtype):
            batches.append(batch)
            progress.update()
    shares = gather(batches)
    if shares is None:
        return broadcast(None), []
    detections = [found for turn in zip_longest(*shares, fillvalue=[]) for batch in turn for found in batch]
    result = average_precision(dataset.coco_ground_truth(), detections, dataset.categories)
    return broadcast(result), detections


def detect_batches(
    model: Detector, batches: Iterable[list[Tensor]], dtype: torch.dtype = torch.float32
) -> Iterable[list[dict[str, Tensor]]]:
    """The detections of each batch of images, on the CPU; leaves the model in the mode that it was in."""
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
