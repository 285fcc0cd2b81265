"""``--size``, ``--weights`` and how they go together with ``--preset`` and ``--config``."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
import yaml

from fcos_fast.cli.main import main
from fcos_fast.cli.train import DEFAULT_SIZE, OF_A_SIZE, parse_train_options
from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.models import PRESETS, SIZES, DetectorConfig
from fcos_fast.models.recommended import ModelSize


def parse(*arguments: str):
    return parse_train_options(arguments)


@pytest.fixture
def file(tmp_path):
    """Writes values as YAML; returns the option that reads them."""

    def write(**values):
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
        return "--config", str(tmp_path / "mine.yaml")

    return write


def test_the_sizes():
    assert get_args(ModelSize) == tuple(SIZES)
    for name, config in SIZES.items():
        assert parse("--size", name).model == config
        differing = {
            field
            for field in DetectorConfig.__dataclass_fields__ | type(config).__dataclass_fields__
            if getattr(config, field) != getattr(SIZES["nano"], field)
        }
        assert differing <= set(OF_A_SIZE)


def test_the_default(file):
    assert parse().model == SIZES[DEFAULT_SIZE]
    assert parse().train.weights == "auto"
    assert parse("--preset", "torchvision").model == PRESETS["torchvision"]
    assert parse(*file(size="nano")).model == SIZES["nano"]


def test_options_override_a_size(file):
    wider = replace(SIZES["nano"], head_channels=96, max_detections=300)
    given = ("--size", "nano", "--model.head_channels", "96", "--model.max_detections", "300")
    assert parse(*given).model == wider
    assert (
        parse("--size", "nano", *file(model={"max_detections": 300}), "--model.head_channels", "96").model
        == wider
    )
    assert parse(*file(size="nano", model={"max_detections": 300, "head_channels": 96})).model == wider


@pytest.mark.parametrize(
    ("arguments", "values", "message"),
    [
        (["--preset", "official"], {}, "--size nano and --preset official both choose the detector"),
        ([], {"preset": "official"}, "--size nano and --preset official both choose"),
        (
            [],
            {"model": {"backbone": "resnet18", "min_size": 64, "nms_threshold": 0.5}},
            "--size nano and a file with model.backbone, model.min_size both choose the detector; give one of them",
        ),
        (["--config", "bccd"], {}, "--size nano and --preset official-improved both choose"),
    ],
)
def test_contradictions(arguments, values, message, file, capsys):
    assert main(["train", "--size", "nano", *file(**values), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_weights_for_short(file):
    assert parse("--weights", "none").train.weights == "none"
    assert parse("--weights", "null").train.weights == "none"
    assert parse("--weights=a=b.pt", "--config", "bccd").train.weights == "none"  # the later one
    assert parse("--config", "bccd", "--weights=a=b.pt").train.weights == "a=b.pt"


@pytest.mark.parametrize("name", ["small", "bccd", "demo"])
def test_recipes_from_random_weights(name):
    options = parse("--config", name)
    assert (options.train.weights, options.preset) == ("none", "official-improved")


def test_the_configuration_of_an_older_run(file):
    old = {"weights": None, "backbone_weights": "ResNet50_Weights.IMAGENET1K_V1", "new_classes": False}
    assert parse(*file(train=old)).train.weights == "ResNet50_Weights.IMAGENET1K_V1"
    assert parse(*file(train={"backbone_weights": None, "epochs": 3})).train.epochs == 3


def test_a_checkpoint_brings_its_detector(checkpoint, file):
    theirs = DetectorConfig.from_dict(load_checkpoint(checkpoint)["model_config"])
    weights = ("--weights", str(checkpoint))
    assert parse(*weights).model == theirs
    assert parse(*weights, "--model.nms_threshold", "0.4").model == replace(theirs, nms_threshold=0.4)
    assert parse(*file(train={"weights": str(checkpoint)})).model == theirs
    assert parse(*weights, "--size", "nano").model == SIZES["nano"]
    assert parse(*weights, "--preset", "official").model == PRESETS["official"]


def test_a_backbone_s_weights_bring_no_detector(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "a.pth")
    assert parse("--weights", str(tmp_path / "a.pth")).model == SIZES[DEFAULT_SIZE]


def test_fine_tuning_from_the_command_line(checkpoint, voc_root, tmp_path, capsys):
    """From a checkpoint to another list of classes, with nothing but the checkpoint and the data."""
    data = ("--data.root", str(voc_root), "--data.val", "", "--data.workers", "0")
    names = load_checkpoint(checkpoint)["categories"]["names"]
    classes = f"[{names[1]},new,{','.join(n for n in names if n != names[1])}]"
    run = (
        "--train.steps",
        "1",
        "--train.batch_size",
        "2",
        "--train.device",
        "cpu",
        "--train.runs",
        str(tmp_path),
    )
    assert main(["train", "--weights", str(checkpoint), *data, "--data.classes", classes, *run]) == 0
    assert f"classes with their weights: {names[1]}, {names[0]}" in capsys.readouterr().out
    saved = load_checkpoint(tmp_path / "train" / "best.pt")
    assert saved["categories"]["names"][1] == "new"
    assert saved["config"]["train"]["weights"] == str(checkpoint)
