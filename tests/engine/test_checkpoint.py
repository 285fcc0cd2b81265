"""Checkpoints: round trip, atomicity, and one clear line for every file that is none."""

from __future__ import annotations

from dataclasses import replace

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
from fcos_fast.models import FCOS, FCOSConfig, RetinaNet, RetinaNetConfig

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
    load_weights(three, tmp_path / "a.pt", Categories(("cat", "dog", "horse")), new_classes=True)
    assert torch.equal(three.head.classification_head.cls_logits.bias, own)
    assert torch.equal(three.backbone.body.conv1.weight, model.backbone.body.conv1.weight)


def test_a_checkpoint_from_before_there_were_other_detectors(model, tmp_path):
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


def test_a_save_that_fails_halfway_leaves_the_old_file(path, monkeypatch):
    before = path.read_bytes()

    def half(state, target):
        target.write_bytes(before[:1000])
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(path, {"model": {}})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_opening_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    torch.save({"format": "fcos_fast checkpoint 1", "x": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="is no checkpoint that can be read safely"):
        load_checkpoint(tmp_path / "evil.pt")


@pytest.mark.parametrize("size", [0, 10, 1000, -1000])
def test_cut_off_file(path, size):
    content = path.read_bytes()
    path.write_bytes(content[:size])
    with pytest.raises(ValueError, match=r"best\.pt \(\d+ bytes\) is no checkpoint, or only a part"):
        load_checkpoint(path)


def test_files_that_are_none(tmp_path):
    (tmp_path / "notes.txt").write_text("hello " * 100)
    with pytest.raises(ValueError, match=r"notes\.txt \(600 bytes\) is no checkpoint"):
        load_checkpoint(tmp_path / "notes.txt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no checkpoint of fcos_fast"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"is a folder; name the file in it, as .*best\.pt"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint .*absent\.pt"):
        load_checkpoint(tmp_path / "absent.pt")


def test_weights_for_other_classes(path):
    three = Categories(("cat", "dog", "horse"))
    model = FCOS(replace(CONFIG, num_classes=3))
    with pytest.raises(
        ValueError, match=r"2 classes \(cat, dog\), the data set has 3 .*--train\.new_classes"
    ):
        load_weights(model, path, three)
    own = model.head.classification_head.cls_logits.weight.clone()
    load_weights(model, path, three, new_classes=True)
    assert torch.equal(model.head.classification_head.cls_logits.weight, own)
    taken = load_checkpoint(path)["model"]
    assert torch.equal(
        model.state_dict()["head.classification_head.conv.0.weight"],
        taken["head.classification_head.conv.0.weight"],
    )


def test_weights_in_another_order_of_classes(path):
    with pytest.raises(ValueError, match="cat, dog.*dog, cat"):
        load_weights(FCOS(CONFIG), path, Categories(("dog", "cat")))


def test_weights_of_another_architecture(path):
    model = FCOS(replace(CONFIG, head_convs=2))
    with pytest.raises(ValueError, match="another architecture: head_convs 1 there, 2 here"):
        load_weights(model, path, CATEGORIES)
