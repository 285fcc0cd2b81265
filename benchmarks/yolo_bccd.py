"""Trains YOLO11n of Ultralytics from random weights on BCCD for a given time, in an environment of its own.

Ultralytics is AGPL: no dependency of this project, and nothing else here imports it.

    python -m benchmarks.yolo_bccd prepare BCCD build/yolo                  # in this project's environment
    build/yolo/venv/bin/python benchmarks/yolo_bccd.py train build/yolo --minutes 5    # pip install ultralytics
    python -m benchmarks.yolo_bccd evaluate BCCD build/yolo                 # adds it to the file of bccd_recipes

``train`` needs no other file of this project.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path


def prepare(data: Path, folder: Path) -> None:
    """Write the dataset in YOLO format, with links to the images."""
    from fcos_fast.data import load_dataset

    train_set = load_dataset(data, "trainval")
    test_set = load_dataset(data, "test", train_set.categories)
    for split, dataset in (("train", train_set), ("test", test_set)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for record in dataset.records:
            width, height = record.size
            lines = [
                f"{label} {(x1 + x2) / 2 / width} {(y1 + y2) / 2 / height} {(x2 - x1) / width} {(y2 - y1) / height}\n"
                for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels.tolist(), strict=True)
            ]
            (folder / "labels" / split / record.name).with_suffix(".txt").write_text("".join(lines))
            link = folder / "images" / split / record.name
            link.unlink(missing_ok=True)
            link.symlink_to(Path(record.image).resolve())
    names = dict(enumerate(train_set.categories.names))
    content = {"path": str(folder.resolve()), "train": "images/train", "val": "images/test", "names": names}
    (folder / "data.yaml").write_text(json.dumps(content))  # JSON is YAML


def train(folder: Path, minutes: float, size: int, batch: int, threads: int) -> None:
    """Train, then detect in the test images: ``detections.json``."""
    os.environ["YOLO_OFFLINE"] = "true"  # it reports to its authors otherwise
    import torch
    from ultralytics import YOLO, __version__

    torch.set_num_threads(threads)
    common = {"imgsz": size, "device": "cpu", "plots": False, "project": str(folder / "runs")}
    model = YOLO("yolo11n.yaml")
    data = str(folder / "data.yaml")
    model.train(data=data, time=minutes / 60, batch=batch, pretrained=False, workers=0, val=False, **common)
    with open(model.trainer.csv) as file:
        last = list(csv.DictReader(file))[-1]
    about = {"version": __version__, "seconds": float(last["time"]), "epoch": int(last["epoch"])}
    found = []
    for image in sorted((folder / "images" / "test").iterdir()):
        (result,) = model.predict(str(image), conf=0.001, iou=0.7, max_det=100, verbose=False, imgsz=size)
        boxes = result.boxes
        values = {
            "boxes": boxes.xyxy.tolist(),
            "labels": boxes.cls.int().tolist(),
            "scores": boxes.conf.tolist(),
        }
        found.append({"name": image.name, **values})
    (folder / "detections.json").write_text(json.dumps(about | {"images": found}))


def evaluate(data: Path, folder: Path, output: Path) -> None:
    """Add COCO's average precision of ``detections.json`` to ``output``, a file of ``bccd_recipes``."""
    import torch

    from benchmarks.report import curve_table, write_json
    from fcos_fast.data import load_dataset
    from fcos_fast.engine.average_precision import average_precision

    dataset = load_dataset(data, "test", load_dataset(data, "trainval").categories)
    about = json.loads((folder / "detections.json").read_text())
    found = {one["name"]: one for one in about["images"]}
    detections = [
        {
            "boxes": torch.tensor(found[record.name]["boxes"]).reshape(-1, 4),
            "labels": torch.tensor(found[record.name]["labels"], dtype=torch.int64),
            "scores": torch.tensor(found[record.name]["scores"]),
        }
        for record in dataset.records
    ]
    result = average_precision(dataset.coco_ground_truth(), detections, dataset.categories)
    content = json.loads(output.read_text())
    point = {"epoch": about["epoch"], "seconds": about["seconds"], "ap": result.ap, "ap50": result.ap50}
    content["curves"][f"YOLO11n of Ultralytics {about['version']}"] = [point]
    write_json(output, content)
    print(curve_table(content["curves"]))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, arguments in (
        ("prepare", ["data", "folder"]),
        ("train", ["folder"]),
        ("evaluate", ["data", "folder"]),
    ):
        command = commands.add_parser(name)
        for argument in arguments:
            command.add_argument(argument, type=Path)
        if name == "evaluate":
            default = Path("benchmarks/results/bccd-recipes.json")
            command.add_argument("--output", type=Path, default=default)
        if name == "train":
            command.add_argument("--minutes", type=float, required=True)
            command.add_argument("--size", type=int, default=320)
            command.add_argument("--batch", type=int, default=8)
            command.add_argument("--threads", type=int, default=2)
    options = vars(parser.parse_args())
    globals()[options.pop("command")](**options)


if __name__ == "__main__":
    main()
