from __future__ import annotations

import contextlib
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fcos_fast.data import Categories, DataError, DetectionDataset, Record, load_voc, read_image

RAMP = np.linspace(0, 255, 20 * 30, dtype=np.uint8).reshape(20, 30)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "1"])
def test_every_png_mode_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(RAMP).convert(mode)
    image.save(tmp_path / "a.png")
    ours = read_image(tmp_path / "a.png")
    assert ours.dtype == torch.uint8
    assert np.array_equal(ours.permute(1, 2, 0), np.asarray(image.convert("RGB")))


def test_png_of_16_bits_is_scaled(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.png")
    ours = read_image(tmp_path / "a.png")
    assert ours.dtype == torch.uint8
    assert np.array_equal(ours[0], RAMP)


UPRIGHT = {  # by EXIF's definition: which side of the scene the first row and the first column show
    1: lambda a: a,  # top, left
    2: lambda a: a[:, ::-1],  # top, right
    3: lambda a: a[::-1, ::-1],  # bottom, right
    4: lambda a: a[::-1],  # bottom, left
    5: lambda a: a.T,  # left, top
    6: lambda a: a.T[:, ::-1],  # right, top
    7: lambda a: a.T[::-1, ::-1],  # right, bottom
    8: lambda a: a.T[::-1],  # left, bottom
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_exif_orientation(make_voc, suffix, orientation):
    root = make_voc({"a": [("cat", (1, 2, 15, 25))]})
    (root / "JPEGImages" / "a.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = root / "JPEGImages" / f"a{suffix}"
    Image.fromarray(RAMP).convert("RGB").save(file, exif=exif, quality=95)
    upright = UPRIGHT[orientation](RAMP).astype(int)
    data = load_voc(root)
    assert data.records[0].size == upright.shape[::-1]
    error = np.abs(data[0][0].numpy() - upright).max()
    assert error <= (0 if suffix == ".png" else 8)  # lossy formats


def test_image_replaced_after_loading_is_noticed(make_voc):
    root = make_voc({"a": [("cat", (1, 2, 30, 20))]})
    data = load_voc(root)
    Image.new("RGB", (80, 60)).save(root / "JPEGImages" / "a.jpg")
    message = r"a\.jpg: decodes to 80x60 pixels, but when the dataset was loaded it had 40x30"
    with pytest.raises(DataError, match=message):
        data[0]


def make_dataset() -> DetectionDataset:
    boxes = np.array([[1, 2, 11, 22], [30, 30, 50, 60], [5, 5, 25, 15]], dtype=np.float32)
    image = np.zeros((3, 64, 64), np.uint8)
    full = Record("x", (64, 64), boxes, np.array([0, 1, 1]), np.array([False, True, False]), image)
    none = Record("y", (64, 64), boxes[:0], np.array([], np.int64), np.array([], bool), image)
    return DetectionDataset([full, none], Categories(("a", "b"), (7, 3)))


def evaluate(truth: dict, detections: list[dict]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


def test_coco_ground_truth_in_pycocotools():
    data = make_dataset()
    truth = data.coco_ground_truth()
    assert truth["images"][1] == {"id": 1, "file_name": "y", "width": 64, "height": 64}
    assert truth["categories"] == [{"id": 7, "name": "a"}, {"id": 3, "name": "b"}]
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in truth["annotations"]
    ]
    assert evaluate(truth, perfect) == pytest.approx(1.0)
    ignored_missed = [d for d in perfect if d["bbox"][0] != 30]
    assert evaluate(truth, ignored_missed) == pytest.approx(1.0)
    assert evaluate(truth, ignored_missed[:1]) == pytest.approx(0.5)


def test_targets_are_copies():
    data = make_dataset()
    image, target = data[0]
    image += 1
    target["boxes"] *= 0
    assert data[0][0].sum() == 0
    assert data[0][1]["boxes"].sum() > 0


def test_pickling():
    data = pickle.loads(pickle.dumps(make_dataset()))
    assert torch.equal(data[0][1]["boxes"], make_dataset()[0][1]["boxes"])
    assert data.categories == make_dataset().categories
