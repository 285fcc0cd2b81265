"""``python -m benchmarks.export_parity``: what exported detectors find, against their originals, on real photographs.

Every preset with a ResNet-18 and random weights that detect something everywhere is exported once. The file runs in
ONNX Runtime and OpenVINO on all photographs of a split, in three sizes and three batch sizes. Needs FCOS_FAST_BCCD, the
folder of BCCD, or ``--data`` with a folder in VOC format.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fcos_fast.data import Categories, load_dataset
from fcos_fast.data.images import read_pixels
from fcos_fast.engine.benchmark import make_talkative
from fcos_fast.engine.files import write_json
from fcos_fast.export import onnx_model
from fcos_fast.export.check import difference
from fcos_fast.inference import Engine, RawDetections
from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.onnx import OnnxEngine
from fcos_fast.inference.openvino import OpenVinoEngine
from fcos_fast.inference.torch_engine import TorchEngine
from fcos_fast.machine import machine
from fcos_fast.models import PRESETS, Detector, build_detector

BATCHES = (1, 3, 8)
CATEGORIES = Categories(("Platelets", "RBC", "WBC"))


def build(preset: str, image: np.ndarray) -> Detector:
    torch.manual_seed(0)
    small = {"num_classes": len(CATEGORIES), "fpn_channels": 64, "head_channels": 64, "head_convs": 2}
    config = replace(PRESETS[preset], backbone="resnet18", min_size=240, max_size=320, **small)
    return make_talkative(build_detector(config), torch.from_numpy(image.copy()).permute(2, 0, 1))


def detect(engine: Engine, images: Sequence[np.ndarray], batch: int) -> Iterator[RawDetections]:
    for start in range(0, len(images), batch):
        yield from engine.detect(images[start : start + batch])


def compare(
    expected: Sequence[RawDetections], found: Sequence[RawDetections], max_detections: int
) -> dict[str, object]:
    """Images with the same detections, those without exchanged equal scores, and the largest differences in these.

    The others are described in words, by the index of the image.
    """
    pairs = list(zip(expected, found, strict=True))
    differences = [difference(a, b, max_detections) for a, b in pairs]
    same = [pair for pair, what in zip(pairs, differences, strict=True) if what is None]
    in_order = [(a, b) for a, b in same if np.abs(a.boxes - b.boxes).max(initial=0) <= 0.1]
    return {
        "images": len(pairs),
        "same": len(same),
        "same_in_order": len(in_order),
        "box_px": max((float(np.abs(a.boxes - b.boxes).max(initial=0)) for a, b in in_order), default=0.0),
        "score": max((float(np.abs(a.scores - b.scores).max(initial=0)) for a, b in in_order), default=0.0),
        "detections": sum(len(a.labels) for a, _ in pairs),
        "different": {i: what for i, what in enumerate(differences) if what is not None},
    }


def measure(
    preset: str, images: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]], folder: Path
) -> Iterator[dict[str, object]]:
    model = build(preset, images[0])
    start = time.perf_counter()
    file = folder / f"{preset}.onnx"
    file.write_bytes(onnx_model(model, CATEGORIES).SerializeToString())
    seconds = time.perf_counter() - start
    engines: list[ExportedEngine] = [OnnxEngine(file, 1), OpenVinoEngine(file, 1)]
    for size in sizes:
        seen = {"min_size": size[0], "max_size": size[1]}
        resizing = build_detector(replace(model.config, **seen)).eval()
        resizing.load_state_dict(model.state_dict())
        expected = list(detect(TorchEngine(resizing, CATEGORIES), images, max(BATCHES)))
        for engine in engines:
            engine.config = replace(engine.config, **seen)
            for batch in BATCHES:
                row = compare(expected, list(detect(engine, images, batch)), model.config.max_detections)
                about = {"preset": preset, "engine": type(engine).__name__, "size": f"{size[0]}x{size[1]}"}
                yield {**about, "batch": batch, "export_s": round(seconds, 1), **row}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("FCOS_FAST_BCCD"), help="folder in VOC format")
    parser.add_argument("--split", default="test")
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=["128x160", "192x256", "240x320"],
        help="min_size x max_size of the model",
    )
    parser.add_argument("--output", help="JSON file for the rows")
    options = parser.parse_args()
    if not options.data:
        parser.error("no data; give --data or set FCOS_FAST_BCCD")
    torch.set_num_threads(1)
    records = load_dataset(options.data, options.split).records
    images = [read_pixels(record.image) for record in records]
    sizes = [(int(low), int(high)) for low, _, high in (size.partition("x") for size in options.sizes)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets:
            for row in measure(preset, images, sizes, Path(folder)):
                rows.append(row)
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    same, total = sum(row["same"] for row in rows), sum(row["images"] for row in rows)
    boxes, scores = (max(row[name] for row in rows) for name in ("box_px", "score"))
    print(f"{same} of {total} the same; boxes within {boxes:.2g} px, scores within {scores:.2g}")
    if options.output:
        write_json(options.output, {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
