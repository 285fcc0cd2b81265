"""``fcos-fast info``: the environment, and with ``--model`` the configuration and cost of a preset or a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import fcos_fast
from fcos_fast.cli.main import main


def test_every_environment_variable_is_shown(capsys, monkeypatch):
    sources = Path(fcos_fast.__file__).parent.rglob("*.py")
    read = {
        name
        for source in sources
        for name in re.findall(r"environ\b\W+(?:get\W+)?(FCOS_FAST_\w+)", source.read_text())
    }
    assert {"FCOS_FAST_BACKEND", "FCOS_FAST_DEBUG"} <= read
    monkeypatch.setenv("FCOS_FAST_DEBUG", "0")
    assert main(["info"]) == 0
    shown = dict(re.findall(r"^(FCOS_FAST_\w+) +(\S+)", capsys.readouterr().out, flags=re.MULTILINE))
    assert read <= set(shown)
    assert shown["FCOS_FAST_DEBUG"] == "0"


def test_a_preset_is_printed_with_its_cost(capsys):
    assert main(["info", "--model", "torchvision", "--image_size", "[800, 800]"]) == 0
    printed = capsys.readouterr().out
    assert "threshold_on         score" in printed
    assert printed.splitlines()[-1].split() == ["all", "32.270", "128.207", "100.0%"]


def test_cost_of_retinanet_is_the_one_torchvision_publishes(capsys):
    assert main(["info", "--model", "torchvision-retinanet", "--image_size", "[800, 800]"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["all", "34.015", "151.540", "100.0%"]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["--size", "nano"], "320x320"),
        (["--size", "large"], "800x1344"),
        (["--model", "adelaidet-rt"], "512x736"),
        (["--model", "simpleaicv"], "1024x1024"),
        (["--size", "nano", "--image_size", "[64, 96]"], "64x96"),
    ],
)
def test_the_image_is_the_largest_of_the_model(options, size, capsys):
    assert main(["info", *options]) == 0
    assert f"for one image of {size} pixels" in capsys.readouterr().out


def test_one_detector_is_described(capsys):
    for options in (["--norm", "batch"], ["--size", "nano", "--model", "official"]):
        assert main(["info", *options]) == 2
        assert "give the detector, either with --size or with --model" in capsys.readouterr().err


def test_a_checkpoint_is_printed_with_its_cost(checkpoint, capsys):
    assert main(["info", "--model", str(checkpoint)]) == 0
    assert "backbone.fpn.extra_blocks" in capsys.readouterr().out


def test_unknown_models_and_sizes_are_errors(capsys):
    assert main(["info", "--model", "torchvison"]) == 2
    assert "unknown preset or checkpoint 'torchvison'; did you mean 'torchvision'" in capsys.readouterr().err
    assert main(["info", "--model", "torchvision", "--image_size", "[0, 5]"]) == 2
    assert "--image_size is [0, 5]; expected a positive height and width" in capsys.readouterr().err
