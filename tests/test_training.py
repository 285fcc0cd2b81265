"""``fcos_fast.train``: the options of the command line as arguments."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("jsonargparse")
pytest.importorskip("torchvision")
import fcos_fast
from fcos_fast.cli.train import parse_train_options
from fcos_fast.data import AugmentConfig, SyntheticConfig, write_voc
from fcos_fast.engine.config import Config, OptimizerConfig


@pytest.fixture
def meant(monkeypatch):
    """The configuration with which ``fcos_fast.train`` would train."""

    monkeypatch.setattr("fcos_fast.cli.train_run.run", lambda arguments, config, callbacks: config)
    return fcos_fast.train


def of_command(*arguments: str) -> Config:
    return parse_train_options(arguments).config()


def test_the_same_as_the_command_line(meant):
    by_name = meant("DATA", config="small", epochs=20, lr=0.5, hue=0.1, seed=3, val="", steps=None)
    command = ["--config", "small", "--data.root", "DATA", "--train.epochs", "20", "--optimizer.lr", "0.5"]
    command += ["--augment.hue", "0.1", "--train.seed", "3", "--data.val", "", "--train.steps", "null"]
    assert by_name == of_command(*command)


def test_options_by_full_name_and_as_groups(meant):
    expected = of_command("--optimizer.name", "sgd", "--optimizer.lr", "0.5", "--augment.hue", "0.1")
    assert meant(**{"optimizer.name": "sgd", "optimizer.lr": 0.5, "augment.hue": 0.1}) == expected
    assert meant(optimizer={"name": "sgd", "lr": 0.5}, augment={"hue": 0.1}) == expected
    assert meant(optimizer=OptimizerConfig(name="sgd", lr=0.5), augment=AugmentConfig(hue=0.1)) == expected
    assert meant({"root": "DATA", "val": ""}) == of_command("--data.root", "DATA", "--data.val", "")
    assert meant(preset="retinanet") == of_command("--preset", "retinanet")


def test_options_of_inner_groups_and_of_another_detector(meant):
    assert meant(radius=2.0) == of_command("--model.rule.radius", "2")
    assert meant(preset="retinanet", anchor_size=2.0) == of_command(
        "--preset", "retinanet", "--model.anchor_size", "2"
    )


def test_numbers_of_numpy(meant):
    assert meant(lr=np.float32(0.5), epochs=np.int64(3)) == meant(lr=0.5, epochs=3)


def test_a_configuration_is_the_base(meant):
    base = replace(Config(), optimizer=OptimizerConfig(lr=0.25))
    assert meant(config=base) == base
    assert meant("DATA", config=base, epochs=3) == replace(
        base, data=replace(base.data, root="DATA"), train=replace(base.train, epochs=3)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epoch": 3}, r"epoch.*epochs"),
        ({"optimizer.lrr": 3}, r"--optimizer.lrr.*--optimizer.lr"),
        ({"kindd": 3}, r"kindd"),
        ({"epochs": "many"}, r"--train.epochs cannot be 'many'"),
        ({"config": "smal"}, r"smal.*small"),
        ({"imgsz": 640}, r"unknown option imgsz; did you mean 'model.min_size'"),
        ({"qqqq": 1}, r"unknown option qqqq; fcos-fast train --help all lists the options"),
        ({"scale": 2}, r"scale can mean model.scale or augment.scale"),
        ({"lr": 1j}, r"optimizer.lr cannot be 1j"),
        ({"seed": object}, r"train.seed cannot be <class 'object'>"),
        ({"config": Config(), "resume": "runs/train"}, r"config is a Config.*keeps its own"),
    ],
)
def test_mistakes_are_named(meant, options, message):
    with pytest.raises(ValueError, match=message):
        meant("DATA", **options)


def test_a_run_with_a_callback(tmp_path, capsys):
    appearance = SyntheticConfig(size=(64, 96), object_size=(16, 48), max_objects=3)
    write_voc(tmp_path / "DATA", {"train": 8, "val": 2}, config=appearance)

    class Steps(fcos_fast.Callback):
        def on_step(self, run, row):
            seen.append(row["step"])

    seen: list[float] = []
    result = fcos_fast.train(
        tmp_path / "DATA",
        config="small",
        callbacks=[Steps()],
        epochs=1,
        batch_size=4,
        val="",
        augment={"size": [64, 96]},
        runs=tmp_path,
        device="cpu",
        model={"fpn_channels": 32, "head_channels": 32, "min_size": None, "max_size": None},
    )
    assert seen == [1, 2]
    assert result.folder == tmp_path / "train"
    assert f"detect   fcos-fast detect --checkpoint {result.folder / 'best.pt'}" in capsys.readouterr().out
    again = fcos_fast.train(resume=result.folder, epochs=2)
    assert again.config.train.epochs == 2
