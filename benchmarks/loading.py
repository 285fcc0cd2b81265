"""Loading a dataset of COCO's size: CPU seconds, memory and number of Python objects.

    python -m benchmarks.loading [--images 118287] [--boxes 826000] [--folder FOLDER]

The set is generated: a JSON file in the form of ``instances_train2017.json`` with short segmentations, and images that
are hard links to one small JPEG file. Loading runs in a process of its own. A folder that is given is kept and reused.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from fcos_fast.data import COCO

LINKS = 50_000
"""Names per image file; ext4 allows 65,000."""


def write_set(root: Path, images: int, boxes: int) -> None:
    """Write a COCO dataset of one split, ``train2017``, whose boxes are inside their images."""
    rng = np.random.default_rng(0)
    width, height = 640, 480
    folder = root / "train2017"
    folder.mkdir(parents=True)
    names = [f"{number:012}.jpg" for number in np.sort(rng.choice(600_000, images, replace=False)).tolist()]
    for i, name in enumerate(names):
        if i % LINKS == 0:
            Image.new("RGB", (width, height), (90, 120, 60)).save(folder / name)
        else:
            os.link(folder / names[i // LINKS * LINKS], folder / name)
    listed = [
        {
            "license": 3,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": height,
            "width": width,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
            "id": int(name[:12]),
        }
        for name in names
    ]
    corners = (rng.random((boxes, 2)) * (width / 2, height / 2)).round(2)
    sides = (1 + rng.random((boxes, 2)) * (width / 2 - 2, height / 2 - 2)).round(2)
    columns = zip(
        rng.integers(images, size=boxes).tolist(),
        rng.integers(len(COCO), size=boxes).tolist(),
        np.concatenate((corners, sides), axis=1).tolist(),
        (rng.random(boxes) < 0.012).tolist(),
        strict=True,
    )
    annotations = [
        {
            "segmentation": [[x, y, x + w, y, x + w, y + h]],
            "area": w * h / 2,
            "iscrowd": int(crowd),
            "image_id": listed[image]["id"],
            "bbox": [x, y, w, h],
            "category_id": COCO.ids[label],
            "id": 900_000 + i,
        }
        for i, (image, label, (x, y, w, h), crowd) in enumerate(columns)
    ]
    categories = [{"id": i, "name": name} for i, name in zip(COCO.ids, COCO.names, strict=True)]
    content = {"info": {}, "images": listed, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


def measure(root: Path) -> None:
    """Load the dataset and print what it cost. Start it in a fresh process."""
    import torch  # noqa: F401  # every process of a training has it; its memory is not the dataset's

    from fcos_fast.data import load_dataset

    load_dataset.__module__  # noqa: B018  # imports the readers
    gc.collect()
    objects, blocks, resident = len(gc.get_objects()), sys.getallocatedblocks(), _resident()
    started, cpu = time.perf_counter(), time.process_time()
    dataset = load_dataset(root, "train2017")
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - started
    gc.collect()
    _release()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    kept = _resident() - resident
    print(dataset.report)
    print(f"{cpu:.1f} CPU seconds ({seconds:.1f} seconds)")
    print(f"peak {peak:.0f} MB, of which {resident:.0f} MB before loading")
    print(f"kept {kept:.0f} MB, {sys.getallocatedblocks() - blocks} allocated blocks, ", end="")
    print(f"{len(gc.get_objects()) - objects} objects that the garbage collector tracks")


def _resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _release() -> None:
    """Return freed memory to the system, so that what is resident is in use."""
    import ctypes

    ctypes.CDLL(None).malloc_trim(0)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--boxes", type=int, default=826_000)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary) / "coco"
        if not root.exists():
            write_set(root, options.images, options.boxes)
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(root,))
        process.start()
        process.join()
    sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
