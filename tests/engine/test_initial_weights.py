"""``train.weights``: what it accepts, the line that says what a run starts from, and weights that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fcos_fast.data import Categories
from fcos_fast.engine import initial_weights
from fcos_fast.engine.checkpoint import describe_model, save_checkpoint
from fcos_fast.engine.config import Config, TrainConfig, without_old_options
from fcos_fast.engine.initial_weights import load_initial_weights
from fcos_fast.engine.run import initial_state
from fcos_fast.models import SIZES, FCOSConfig, build_backbone, build_detector
from fcos_fast.serialize import from_plain
from tests.engine import ranks
from tests.engine.ranks import run_ranks

CATS = Categories(("cat", "dog"))
SMALL = {"num_classes": 2, "fpn_channels": 32, "head_channels": 32, "head_convs": 1}
NANO = replace(SIZES["nano"], **SMALL)


@pytest.fixture
def published(monkeypatch):
    """The weights of every backbone are ones; returns the names that were asked for."""
    asked = []

    def load(backbone, name):
        asked.append(name)
        for parameter in backbone.parameters():
            torch.nn.init.ones_(parameter)

    monkeypatch.setattr(initial_weights, "load_pretrained", load)
    return asked


def line_of(config, source, capsys, categories=CATS) -> str:
    """What a new model prints when it loads ``source``; random weights are unchanged."""
    torch.manual_seed(0)
    model = build_detector(config)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_initial_weights(model, source, categories)
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    is_random = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert is_random == line.startswith("weights: random")
    return line.rstrip()


def test_auto_loads_the_default_weights(published, capsys):
    assert line_of(NANO, "auto", capsys) == (
        "weights: MobileNet_V2_Weights.IMAGENET1K_V2, for the backbone; --weights none starts from random weights"
    )
    assert published == ["MobileNet_V2_Weights.IMAGENET1K_V2"]


@pytest.mark.parametrize("size", SIZES)
def test_every_size_has_weights_that_fit(size, published, capsys):
    assert line_of(replace(SIZES[size], **SMALL), "auto", capsys).startswith("weights: ")
    assert len(published) == 1


def test_none(published, capsys):
    assert line_of(NANO, "none", capsys) == "weights: random"
    assert not published


def test_random_weights_do_not_suit_frozen_layers(capsys):
    for fields in ({"norm": "frozen"}, {"trainable_stages": 3}):
        assert line_of(replace(NANO, **fields), "none", capsys) == (
            "weights: random; they do not suit frozen layers: give --model.norm batch --model.trainable_stages 5"
        )


def test_without_a_network(torchvision, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert line_of(NANO, "auto", capsys) == (
        "weights: random, because MobileNet_V2_Weights.IMAGENET1K_V2 could not be downloaded (HF_HUB_OFFLINE is set); "
        "on a connected machine, download https://download.pytorch.org/models/mobilenet_v2-7ebf99e0.pth, then give the "
        "file with --weights"
    )
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE is set"):
        line_of(NANO, "MobileNet_V2_Weights.IMAGENET1K_V2", capsys)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"backbone": "darknet19"}, "neither torchvision nor timm has weights of darknet19"),
        (
            {"norm": "group", "backbone": "resnet18"},
            "has batch norms; for it give --model.norm batch or frozen",
        ),
        ({"dcn": "v1", "backbone": "resnet18"}, "has no deformable convolutions"),
        ({"stride_in_1x1": True, "backbone": "resnet50"}, "for it give --model.stride_in_1x1 false"),
        ({"channel_order": "bgr"}, "is for images with --model.channel_order rgb"),
        ({"image_mean": (0.5, 0.5, 0.5)}, '--model.image_mean "[0.485, 0.456, 0.406]"'),
        ({"pixel_range": 255}, "--model.pixel_range 1"),
        (
            {"backbone": "timm:tf_efficientnet_lite0"},
            '--model.image_std "[0.5, 0.5, 0.5]"; give these, or --size',
        ),
    ],
)
def test_weights_that_do_not_fit_are_not_loaded(fields, reason, published, capsys):
    """Presets with BGR images from 0 to 255 must not start from weights for RGB from 0 to 1."""
    if fields.get("backbone", "").startswith("timm:"):
        pytest.importorskip("timm", reason="timm is not installed")
    line = line_of(replace(NANO, **fields), "auto", capsys)
    assert line.startswith("weights: random, because ")
    assert reason in line
    assert not published


@pytest.mark.parametrize(
    "fields",
    [
        {"stride_in_1x1": True, "backbone": "resnet18"},  # has no 1x1 with a stride
        {"pixel_range": 255, "image_mean": (123.675, 116.28, 103.53), "image_std": (58.395, 57.12, 57.375)},
    ],
)
def test_weights_that_fit_in_other_words(fields, published, capsys):
    line_of(replace(NANO, **fields), "auto", capsys)
    assert len(published) == 1


def test_a_name_is_loaded_as_given(published, capsys):
    name = "MobileNet_V2_Weights.IMAGENET1K_V1"
    assert line_of(NANO, name, capsys) == f"weights: {name}, for the backbone"
    assert "; but" in line_of(replace(NANO, channel_order="bgr"), name, capsys)


def test_files_are_told_apart_by_their_content(capsys, tmp_path):
    torch.manual_seed(1)  # not the model's
    torch.save(build_backbone("mobilenet_v2").state_dict(), tmp_path / "backbone.pth")
    assert line_of(NANO, str(tmp_path / "backbone.pth"), capsys).endswith("backbone.pth, for the backbone")
    torch.manual_seed(1)
    model = build_detector(NANO)
    save_checkpoint(tmp_path / "best.pt", {**describe_model(model, CATS), "model": model.state_dict()})
    assert line_of(NANO, str(tmp_path / "best.pt"), capsys).endswith("best.pt; its 2 classes")
    assert line_of(NANO, str(tmp_path / "best.pt"), capsys, Categories(("cow", "cat"))).endswith(
        "best.pt; classes with their weights: cat; new: cow"
    )


def test_a_typing_error(capsys):
    with pytest.raises(
        FileNotFoundError, match=r"train\.weights nome: no such file; expected auto, none, a check"
    ):
        line_of(NANO, "nome", capsys)
    with pytest.raises(ValueError, match=r"train\.weights is empty"):
        TrainConfig(weights="")


def test_none_is_none():
    assert TrainConfig(weights=None) == TrainConfig(weights="none")


def test_random_numbers_after_loading_do_not_depend_on_the_weights(published):
    config = Config(model=NANO, train=TrainConfig(weights="auto", device="cpu"))
    drawn = []
    for weights in ("auto", "none"):
        initial_state(
            replace(config, train=replace(config.train, weights=weights)), CATS, torch.device("cpu"), True
        )
        drawn.append(torch.rand(1))
    assert drawn[0] == drawn[1]


def test_several_processes_download_once(tmp_path):
    config = Config(model=NANO, train=TrainConfig(weights="auto", device="cpu"))
    ended = run_ranks(tmp_path, 2, ranks.initial_model, config, CATS, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended
    assert [e.out.count("weights: Mobile") for e in ended] == [1, 0]
    assert (tmp_path / "asked").read_text() == "0\n"
    a, b = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert (a["backbone.body.features.0.0.weight"] == 1).all()
    assert all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.parametrize(
    ("old", "weights"),
    [
        ({"weights": None, "backbone_weights": None, "new_classes": False}, "none"),
        ({"weights": None, "backbone_weights": "a.pth", "new_classes": False}, "a.pth"),
        ({"weights": "best.pt", "backbone_weights": None, "new_classes": True}, "best.pt"),
        ({"backbone_weights": "timm"}, "timm"),
        ({"weights": "none"}, "none"),
        ({"epochs": 3}, "auto"),
    ],
)
def test_options_of_older_versions(old, weights):
    values = {"train": old, "optimizer": {"lr": 0.1}}
    config = from_plain(Config, without_old_options(values))
    assert (config.train.weights, config.optimizer.lr) == (weights, 0.1)


def test_python_s_default_downloads_nothing_for_a_preset(published, capsys):
    """The default configuration is an FCOS for Caffe's weights."""
    assert line_of(FCOSConfig(backbone="resnet18", **SMALL), Config().train.weights, capsys).startswith(
        "weights: random, because ResNet18_Weights.IMAGENET1K_V1 is for images with"
    )
    assert not published
