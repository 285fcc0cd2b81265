"""Checkpoints: round trip, atomicity, and a clear error for every invalid file."""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from fcos_fast.data import Categories
from fcos_fast.engine.checkpoint import (
    describe_model,
    load_checkpoint,
    load_weights,
    model_from_checkpoint,
    save_checkpoint,
)
from fcos_fast.engine.evaluate import detect_batches
from fcos_fast.inference import Predictor, load
from fcos_fast.inference.torch_engine import TorchEngine
from fcos_fast.models import FCOS, FCOSConfig, RetinaNet, RetinaNetConfig
from fcos_fast.precision import choose_precision

CATEGORIES = Categories(("cat", "dog"), ids=(18, 17))
CONFIG = FCOSConfig(
    backbone="resnet18", num_classes=2, fpn_channels=32, head_channels=64, head_convs=1, min_size=None
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return FCOS(CONFIG).eval()


@pytest.fixture
def path(model, tmp_path):
    path = tmp_path / "best.pt"
    save_checkpoint(path, {**describe_model(model, CATEGORIES), "model": model.state_dict()})
    return path


def test_round_trip(model, path):
    again, categories = model_from_checkpoint(load_checkpoint(path))
    assert categories == CATEGORIES
    assert again.config == model.config
    assert not again.training
    for x, y in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_retinanet(path, tmp_path):
    """Round trip, new classes, and weights of the other detector."""
    config = RetinaNetConfig(
        backbone="resnet18", num_classes=2, fpn_channels=32, head_channels=64, head_convs=1
    )
    model = RetinaNet(config)
    with pytest.raises(ValueError, match="another architecture: .*detector fcos there, retinanet here"):
        load_weights(model, path, CATEGORIES)
    save_checkpoint(tmp_path / "a.pt", {**describe_model(model, CATEGORIES), "model": model.state_dict()})
    again, _ = model_from_checkpoint(load_checkpoint(tmp_path / "a.pt"))
    assert type(again) is RetinaNet
    assert again.config == config
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    three = RetinaNet(replace(config, num_classes=3))
    own = three.head.classification_head.cls_logits.bias.clone()
    ours, theirs = own.view(9, 3), model.head.classification_head.cls_logits.bias
    with torch.no_grad():
        theirs.copy_(torch.arange(18.0))  # two classes of nine anchors
    save_checkpoint(tmp_path / "a.pt", {**describe_model(model, CATEGORIES), "model": model.state_dict()})
    load_weights(three, tmp_path / "a.pt", Categories(("horse", "dog", "cat")))
    loaded = three.head.classification_head.cls_logits.bias.view(9, 3)
    assert torch.equal(loaded, torch.stack([ours[:, 0], theirs[1::2], theirs[0::2]], dim=1))
    assert torch.equal(three.backbone.body.conv1.weight, model.backbone.body.conv1.weight)


def test_old_checkpoint_without_detector_is_an_fcos(model, tmp_path):
    about = describe_model(model, CATEGORIES)
    del about["model_config"]["detector"]
    save_checkpoint(tmp_path / "old.pt", {**about, "model": model.state_dict()})
    again, _ = model_from_checkpoint(load_checkpoint(tmp_path / "old.pt"))
    assert again.config == model.config


def test_averaged_weights_are_preferred(model, tmp_path):
    average = {k: v + 1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    state = {"model": model.state_dict(), "ema": {"model": average, "updates": 3}}
    save_checkpoint(tmp_path / "last.pt", {**describe_model(model, CATEGORIES), **state})
    again, _ = model_from_checkpoint(load_checkpoint(tmp_path / "last.pt"))
    assert torch.equal(again.state_dict()["head.regression_head.bbox_reg.bias"], torch.ones(4))


def test_a_failed_save_keeps_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def half(state, target):
        target.write(before[:1000])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"model": {}})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_loading_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"format": "fcos_fast checkpoint 1", "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="contains pickled objects other than tensors"):
        load_checkpoint(tmp_path / "evil.pt")


@pytest.mark.parametrize("size", [0, 10, 1000, -1000])
def test_truncated_file(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"best\.pt \(\d+ bytes\) is not a checkpoint, or a truncated one"):
        load_checkpoint(path)


def test_files_that_are_not_checkpoints(tmp_path):
    (tmp_path / "notes.txt").write_text("hello " * 100)
    with pytest.raises(ValueError, match=r"notes\.txt \(600 bytes\) is not a checkpoint"):
        load_checkpoint(tmp_path / "notes.txt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="not a checkpoint of fcos_fast"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"is a folder; give a file in it, for example .*best\.pt"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"checkpoint .*absent\.pt does not exist"):
        load_checkpoint(tmp_path / "absent.pt")


def test_weights_for_other_classes(path):
    """Classes are matched by name: shared ones keep their rows, new ones get their own."""
    model = FCOS(replace(CONFIG, num_classes=3))
    own, taken = model.state_dict(), load_checkpoint(path)["model"]
    own = {name: value.clone() for name, value in own.items()}
    line = load_weights(model, path, Categories(("dog", "horse", "cat")))
    assert line.endswith("best.pt; classes with their weights: dog, cat; new: horse")
    classifier = {
        name: torch.stack([taken[name][1], own[name][1], taken[name][0]])
        for name in taken
        if "cls_logits" in name
    }
    for name, value in model.state_dict().items():
        assert torch.equal(value, (taken | classifier)[name]), name


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("cat", "dog"), "best.pt; its 2 classes"),
        (("dog", "cat"), "classes with their weights: dog, cat; new: none"),
        (("cat",), "classes with their weights: cat; new: none"),
        (("cow",), "classes with their weights: none; new: cow"),
    ],
)
def test_weights_for_fewer_or_reordered_classes(names, line, path):
    model = FCOS(replace(CONFIG, num_classes=len(names)))
    taken = load_checkpoint(path)["model"]["head.classification_head.cls_logits.weight"]
    assert line in load_weights(model, path, Categories(names))
    loaded = model.head.classification_head.cls_logits.weight
    for row, name in zip(loaded, names, strict=True):
        if name in CATEGORIES.names:
            assert torch.equal(row, taken[CATEGORIES.names.index(name)])


def test_weights_of_another_architecture(path):
    model = FCOS(replace(CONFIG, head_convs=2))
    with pytest.raises(ValueError, match="another architecture: head_convs 1 there, 2 here"):
        load_weights(model, path, CATEGORIES)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint of two megabytes with all kinds of content, and its state."""
    torch.manual_seed(0)
    model = FCOS(replace(CONFIG, backbone="mobilenet_v2"))
    state = {
        **describe_model(model, CATEGORIES),
        "model": {name: value.half() for name, value in model.state_dict().items()},
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0)}},
            "groups": [{"lr": 1e-3, "betas": (0.9, 0.999)}],
        },
        "epoch": 3,
        "rng": torch.get_rng_state(),
    }
    path = tmp_path_factory.mktemp("flips") / "last.pt"
    save_checkpoint(path, state)
    return path, load_checkpoint(path)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return all(key in b and same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("where", ["anywhere", "pickle", "directory"])
def test_flipped_bits_are_detected(small, tmp_path, where):
    """Each of 50 files with one wrong bit is rejected, or its content is what was saved."""
    path, state = small
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        pickle = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
        first, last = {
            "anywhere": (0, len(content)),
            "pickle": (pickle.header_offset, pickle.header_offset + pickle.file_size),
            "directory": (archive.start_dir, len(content)),
        }[where]
    damaged, rng, errors = tmp_path / "damaged.pt", random.Random(0), []
    for _ in range(50):
        position = rng.randrange(first, last)
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        damaged.write_bytes(flipped)
        try:
            loaded = load_checkpoint(damaged)
        except ValueError as error:
            errors.append(str(error))
        else:
            assert same(state, loaded), position
    assert len(errors) > 10
    assert all(str(damaged) in error for error in errors)


@pytest.mark.parametrize("change", ["element", "dtype", "shape", "name", "plain value", "order"])
def test_any_change_of_the_content_is_detected(small, tmp_path, change):
    saved = torch.load(small[0], weights_only=True)
    weights = saved["model"]
    first, second = list(weights)[:2]
    if change == "element":
        weights[first].view(torch.uint8).view(-1)[5] ^= 1
    elif change == "dtype":
        weights[first] = weights[first].view(torch.bfloat16)
    elif change == "shape":
        weights[first] = weights[first].flatten()
    elif change == "name":
        weights["other"] = weights.pop(list(weights)[-1])
    elif change == "plain value":
        saved["optimizer"]["groups"][0]["lr"] = 2e-3
    else:
        weights[first], weights[second] = weights[second], weights[first]
    torch.save(saved, tmp_path / "changed.pt")
    with pytest.raises(ValueError, match=r"changed\.pt is damaged, or was changed outside fcos_fast"):
        load_checkpoint(tmp_path / "changed.pt")


def test_memory_format_does_not_change_the_digest(tmp_path):
    weights = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    model = FCOS(CONFIG)
    save_checkpoint(
        tmp_path / "a.pt", {**describe_model(model, CATEGORIES), "model": {"w": weights, "t": weights[0].T}}
    )
    assert torch.equal(load_checkpoint(tmp_path / "a.pt")["model"]["w"], weights)


def test_a_file_without_a_digest_loads_with_one_line(small, tmp_path, capsys):
    saved = torch.load(small[0], weights_only=True)
    del saved["digest"]
    torch.save(saved, tmp_path / "old.pt")
    assert same(small[1], load_checkpoint(tmp_path / "old.pt"))
    assert capsys.readouterr().out == (
        f"{tmp_path / 'old.pt'}: written by an older version, without a digest, so damage cannot be detected\n"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_config": None}, "no 'model_config'"),
        ({"categories": None}, "no 'categories'"),
        ({"model": None}, "no 'model'"),
        ({"model_config": {"backbone": "resnet17"}}, "resnet17"),
        ({"model_config": {"backbone": 3}}, "backbone=3; expected a string"),
        ({"model_config": {"layers": 3}}, "layers"),
        ({"model_config": [3]}, r"\[3\]; expected a mapping of the fields of DetectorConfig"),
        ({"model_config": {"detector": "yolo"}}, "yolo"),
        ({"categories": {"names": ["cat", "cat"], "ids": [1, 2]}}, "more than once"),
        ({"categories": {"names": 3, "ids": [1, 2]}}, "names=3; expected a list"),
        ({"model": [1]}, "'list' object"),
        ({"ema": {"updates": 3}}, "no 'model'"),
        ({"format": "fcos_fast checkpoint 9"}, "has the format 'fcos_fast checkpoint 9'; expected"),
        ({"format": None}, "has the format None"),
    ],
)
def test_incomplete_files_are_rejected_with_their_name(small, tmp_path, change, message):
    """As written by a bug or by hand: with a correct digest."""
    state = {key: value for key, value in (small[1] | change).items() if value is not None}
    save_checkpoint(tmp_path / "wrong.pt", state)
    if "format" in change:
        torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(tmp_path / "wrong.pt")
    assert "wrong.pt" in str(error.value)


def test_weights_that_do_not_fit_the_configuration(small):
    state = small[1] | {"model": {"a": torch.zeros(3)}}
    with pytest.raises(ValueError, match="do not fit its model_config"):
        model_from_checkpoint(state)


def test_a_full_disk_keeps_the_old_checkpoint(small, tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(small[0].read_bytes())
    code = """
import resource, sys, torch
from fcos_fast.engine.checkpoint import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(sys.argv[1], {"model": [torch.zeros(10_000) for _ in range(9)]})
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: cannot be written: File too large; the old file is unchanged\n"
    assert same(small[1], load_checkpoint(path))
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="its folder does not exist"):
        save_checkpoint(tmp_path / "gone" / "last.pt", {"model": {}})


def test_saved_average_detects_what_was_evaluated(whole_run):
    """The model in ``last.pt`` has the detections of the last evaluation."""
    _, outcome = whole_run
    images = [outcome.val_set[i][0] for i in range(4)]
    model, _ = model_from_checkpoint(load_checkpoint(outcome.folder / "last.pt"))
    dtype, _ = choose_precision("auto", torch.device("cpu"))  # as in training
    (found,) = detect_batches(model.to(memory_format=torch.channels_last), [images], dtype)
    for detections, expected in zip(found, outcome.detections, strict=True):
        assert torch.equal(detections["boxes"], expected["boxes"])
        assert torch.equal(detections["scores"], expected["scores"])


def test_a_loaded_model_is_optimized_and_detects_the_same(whole_run):
    _, outcome = whole_run
    detector = load(outcome.folder / "best.pt", device="cpu", precision="float32")
    assert detector.engine.model.inference_dtype == torch.float32
    images = [outcome.val_set[i][0] for i in range(4)]
    model, categories = model_from_checkpoint(load_checkpoint(outcome.folder / "best.pt"))
    plain = Predictor(TorchEngine(model, categories))
    for found, expected in zip(detector.predict(images, 0.0), plain.predict(images, 0.0), strict=True):
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.scores, expected.scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found.boxes[:5], expected.boxes[:5], rtol=0, atol=1e-3)
