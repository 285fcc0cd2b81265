"""Running a detector over a data set, and scoring it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fcos_fast.data import DetectionDataset, eval_loader
from fcos_fast.engine.average_precision import AveragePrecision, average_precision
from fcos_fast.engine.progress import Progress
from fcos_fast.models import FCOS
from fcos_fast.precision import autocast


def evaluate(
    model: FCOS,
    dataset: DetectionDataset,
    dtype: torch.dtype = torch.float32,
    batch_size: int = 8,
    workers: int = 0,
) -> tuple[AveragePrecision, list[dict[str, Tensor]]]:
    """COCO average precision of ``model`` on ``dataset``, and its detections, image by image, on the CPU.

    The model runs where it lies, in evaluation mode, under autocast to ``dtype``.
    """
    loader = eval_loader(dataset, batch_size, workers)
    detections: list[dict[str, Tensor]] = []
    with Progress(len(loader), "evaluate", images=batch_size) as progress:
        for batch in detect_batches(model, (images for images, _ in loader), dtype):
            detections += batch
            progress.update()
    return average_precision(dataset.coco_ground_truth(), detections, dataset.categories), detections


def detect_batches(
    model: FCOS, batches: Iterable[list[Tensor]], dtype: torch.dtype = torch.float32
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
