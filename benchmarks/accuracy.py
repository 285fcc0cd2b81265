"""Trains torchvision's FCOS with and without acceleration, with the same seeds, and compares the accuracy.

    python -m benchmarks.accuracy --data PATH_TO/BCCD_Dataset/BCCD --output benchmarks/results/accuracy.json

The setting is small, so that nine runs take an hour on two cores: ResNet18, pyramid and towers with 128 channels,
images of 96x128 pixels, random initial weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import fcos_fast
from fcos_fast.data import AugmentConfig, DetectionDataset, load_dataset
from fcos_fast.data.loader import collate
from fcos_fast.data.transforms import AugmentedDataset
from fcos_fast.engine.average_precision import AveragePrecision, average_precision

SIZE = (96, 128)
BATCH = 8
LEARNING_RATE = 1e-3
WAYS: dict[str, dict[str, bool] | None] = {
    "torchvision": None,
    "accelerated": {},
    "accelerated, with options": {
        "channels_last": True,
        "fold_frozen_bn": True,
        "fuse_group_norm": True,
        "winograd": True,
    },
}
"""Name -> options of ``accelerate``; None is without it."""


def build(num_classes: int, size: tuple[int, int] = SIZE) -> FCOS:
    """torchvision's FCOS; its labels start at 1."""
    layers = {f"layer{i}": str(i) for i in (2, 3, 4)}
    backbone = BackboneWithFPN(resnet18(weights=None), layers, [128, 256, 512], 128, LastLevelP6P7(128, 128))
    head = FCOSHead(128, 1, num_classes + 1, num_convs=2)
    # A low threshold, since average precision includes uncertain detections.
    return FCOS(backbone, num_classes + 1, head=head, min_size=size[0], max_size=size[1], score_thresh=0.05)


def train(
    model: FCOS, dataset: DetectionDataset, seed: int, epochs: int, size: tuple[int, int] = SIZE
) -> Iterator[float]:
    """Train; yields the mean loss of each epoch. Order and augmentation of the images only depend on the seed."""
    augmented = AugmentedDataset(
        dataset, AugmentConfig(size=size, scale=(0.8, 1.25), vertical_flip=0.5), seed
    )
    steps = len(augmented) // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, epochs * steps)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(augmented), generator=torch.Generator().manual_seed(1000 * seed + epoch))
        total = 0.0
        for rows in order[: steps * BATCH].view(steps, BATCH).tolist():
            images, targets = collate([augmented[epoch, row] for row in rows])
            targets = [{"boxes": t["boxes"], "labels": t["labels"] + 1} for t in targets]
            loss = sum(model([image / 255 for image in images], targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            total += loss.item() / steps
        yield total


@torch.no_grad()
def evaluate(model: FCOS, dataset: DetectionDataset) -> AveragePrecision:
    """Evaluate image by image."""
    model.eval()
    detections = []
    for image, _ in dataset:
        (found,) = model([image / 255])
        detections.append(found | {"labels": found["labels"] - 1})
    return average_precision(dataset.coco_ground_truth(), detections, dataset.categories)


def run(data: Path, seed: int, epochs: int, options: dict[str, bool] | None) -> dict[str, float]:
    """Train from random weights and evaluate."""
    train_set = load_dataset(data, "trainval")
    test_set = load_dataset(data, "test", train_set.categories)
    torch.manual_seed(seed)
    model = build(len(train_set.categories))
    if options is not None:
        fcos_fast.accelerate(model, **options)
    *_, loss = train(model, train_set, seed, epochs)
    result = evaluate(model, test_set)
    return {"ap": result.ap, "ap50": result.ap50, "loss": loss}


def main() -> None:
    """Run every variant with every seed; print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of BCCD_Dataset's BCCD")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()

    results: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for seed in range(options.seeds):
        for name, runs in results.items():
            runs.append(run(options.data, seed, options.epochs, WAYS[name]))
            print(f"seed {seed}, {name}: {runs[-1]}", flush=True)
    for name, runs in results.items():
        values = [r["ap"] for r in runs]
        spread = f" (standard deviation {stdev(values):.3f})" if len(values) > 1 else ""
        print(f"{name}: AP {mean(values):.3f}{spread}, AP50 {mean(r['ap50'] for r in runs):.3f}")
    if options.output:
        options.output.write_text(json.dumps({"epochs": options.epochs, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
