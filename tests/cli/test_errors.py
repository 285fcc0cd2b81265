"""Every mistake of a user is reported in one line on stderr, with the remedy and a nonzero exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fcos_fast.cli.main import main
from fcos_fast.engine.launch import ProcessLostError

MISTAKES = {
    "subcommand": (["trian"], "unknown subcommand 'trian'; did you mean 'train'?"),
    "far subcommand": (
        ["xyzzy"],
        "unknown subcommand 'xyzzy'; choices: train, evaluate, compare, detect, export, serve, convert, data, "
        "benchmark, demo, info",
    ),
    "option first": (
        ["--data.root", "x"],
        "fcos-fast: unknown option --data.root; options follow the subcommand",
    ),
    "option": (["train", "--data.rot", "x"], "unknown option --data.rot; did you mean '--data.root'?"),
    "option=": (["train", "--train.epoch=3"], "unknown option --train.epoch; did you mean '--train.epochs'?"),
    "no such option": (["train", "--qqqqqq"], "unknown option --qqqqqq; --help lists the choices"),
    "last part": (["train", "--lr", "1"], "unknown option --lr; did you mean '--optimizer.lr'?"),
    "dashes": (["train", "--batch-size", "1"], "--batch-size; did you mean '--train.batch_size'?"),
    "two of that name": (["train", "--name", "x"], "did you mean '--optimizer.name' or '--train.name'?"),
    "other word": (["train", "--imgsz=640"], "unknown option --imgsz; did you mean '--model.min_size'?"),
    "other word of few": (
        ["evaluate", "--batch", "2"],
        "unknown option --batch; did you mean '--batch_size'?",
    ),
    "short": (["detect", "-c", "x.pt"], "unknown option -c"),
    "group": (["train", "--data", "x.yaml"], "unknown option --data; did you mean '--data.root'?"),
    "without dashes": (
        ["train", "epochs=3"],
        "names of options start with --; did you mean '--train.epochs'?",
    ),
    "help": (
        ["train", "--help", "optimzer"],
        "--help optimzer: is no group and no option of fcos-fast train; did",
    ),
    "type": (["train", "--train.epochs", "many"], "--train.epochs cannot be 'many'; expected int"),
    "type of several": (
        ["train", "--data.workers", "x"],
        "--data.workers cannot be 'x'; expected int | null",
    ),
    "choice": (["train", "--preset", "torchvison"], "cannot be 'torchvison'; did you mean 'torchvision'?"),
    "nested choice": (["train", "--schedule.kind", "cosin"], "--schedule.kind cannot be 'cosin'; did you"),
    "backbone": (["train", "--model.backbone", "resnet17"], "did you mean 'resnet18'"),
    "value": (["train", "--train.epochs", "0"], "train.epochs=0; expected a positive integer"),
    "recipe": (["train", "--config", "bcdc"], "--config bcdc: the file does not exist; did you mean 'bccd'?"),
    "no data": (["train"], "no dataset; give its folder with --data.root"),
    "data": (["train", "--data.root", "/nowhere"], "/nowhere: does not exist; give the folder of a dataset"),
    "resume nothing": (
        ["train", "--resume", "/nowhere"],
        "run /nowhere does not exist; give the folder of a run",
    ),
    "required": (["evaluate"], "missing options: --checkpoint"),
    "argument": (
        ["info", "torchvision"],
        "unexpected argument 'torchvision'; the names of options start with --",
    ),
    "nothing to describe": (
        ["info", "--norm", "batch"],
        "give the detector, either with --size or with --model",
    ),
    "no such checkpoint": (["info", "--model", "a/best.pt"], "checkpoint a/best.pt does not exist"),
    "pair": (["train", "--augment.size", "64"], "--augment.size cannot be '64'; expected [int, int] | null"),
    "list": (["benchmark", "--batch_sizes", "x"], "--batch_sizes cannot be 'x'; expected [int, ...]"),
    "no data for statistics": (["data", "stats"], "no dataset; give its folder with --data.root"),
    "no demo": (["demo", "--images", "0"], "--images is 0; it must be 1 or more"),
    "two required": (["convert"], "missing options: --checkpoint, --output"),
    "int8 without OpenVINO": (
        ["export", "--checkpoint", "x", "--precision", "int8"],
        "--precision int8 needs --format openvino",
    ),
    "AP of float32": (
        ["export", "--checkpoint", "x", "--max_ap_drop", "1"],
        "--max_ap_drop is for --precision int8; omit it, or add --precision int8",
    ),
    "data of float32": (
        ["export", "--checkpoint", "x", "--data.root", "y"],
        "--data is for --precision int8; omit it, or add --precision int8",
    ),
    "no checkpoint": (["evaluate", "--checkpoint", "/nowhere.pt"], "checkpoint /nowhere.pt does not exist"),
    "no image": (
        ["detect", "--checkpoint", "x.pt"],
        "nothing to detect objects in; name images, videos, folders",
    ),
    "image": (
        ["detect", "--checkpoint", "x.pt", "/nowhere.jpg"],
        "/nowhere.jpg does not exist; name an image",
    ),
    "size": (["benchmark", "--sizes", "[800x]"], "--sizes has '800x'; expected HEIGHTxWIDTH"),
    "no batch": (
        ["benchmark", "--batch_sizes", "[]"],
        "--batch_sizes=[]; expected at least one positive integer",
    ),
    "variant": (["benchmark", "--variants", "[optimize]"], "'optimize'"),
    "no image file": (
        ["benchmark", "--images", "/nowhere"],
        "/nowhere does not exist; name an image",
    ),
    "device": (["train", "--train.device", "gpu"], "device 'gpu' is not available here"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistake(arguments, message, capsys, tmp_path, monkeypatch, voc_root):
    monkeypatch.chdir(tmp_path)
    if "--train.device" in arguments:
        arguments = [*arguments, "--data.root", str(voc_root), "--train.batch_size", "1"]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert error.startswith("fcos-fast")
    assert list(tmp_path.iterdir()) == []  # no run was started


def test_wrong_yaml(capsys, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text("train:\n  epoch: 3\n")
    assert main(["train", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "epoch" in error
    assert len(error.splitlines()) == 1


def test_broken_yaml(capsys, tmp_path):
    config = tmp_path / "my.yaml"
    config.write_text("train: [\n")
    assert main(["train", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert f"{config}: is not valid YAML" in error
    assert "line 2" in error
    assert len(error.splitlines()) == 1


def test_a_misspelled_split_is_an_error_before_training(capsys, tmp_path, monkeypatch, voc_root):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--data.root", str(voc_root), "--data.val", "vall"]) == 2
    assert "val" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_class_of_another_dataset(capsys, tmp_path, monkeypatch, checkpoint, voc_root):
    monkeypatch.chdir(tmp_path)
    for folder in ("Annotations", "JPEGImages"):
        (tmp_path / "pets" / folder).mkdir(parents=True)
    file = next((voc_root / "JPEGImages").iterdir())
    (tmp_path / "pets" / "JPEGImages" / file.name).write_bytes(file.read_bytes())
    xml = (voc_root / "Annotations" / f"{file.stem}.xml").read_text()
    names = ("circle", "cross", "ring", "square", "star", "triangle")
    for name in names:
        xml = xml.replace(f"<name>{name}</name>", "<name>poodle</name>")
    (tmp_path / "pets" / "Annotations" / f"{file.stem}.xml").write_text(xml)
    arguments = ["evaluate", "--checkpoint", str(checkpoint), "--data.root", str(tmp_path / "pets")]
    assert main([*arguments, "--data.split", ""]) == 2
    assert "unknown class 'poodle'" in capsys.readouterr().err


def test_model_weights_cannot_be_resumed(capsys, checkpoint):
    assert main(["train", "--resume", str(checkpoint)]) == 2
    assert "contains only model weights and cannot be resumed; resume from" in capsys.readouterr().err


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("FCOS_FAST_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown option --data.rot"):
        main(["train", "--data.rot", "x"])


def test_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    for name in [name for name in sys.modules if name.startswith("fcos_fast.cli.")]:
        if name != "fcos_fast.cli.main":
            monkeypatch.delitem(sys.modules, name)
    assert main(["train"]) == 2
    error = capsys.readouterr().err
    assert "needs jsonargparse, which is not installed; pip install 'fcos_fast[train]'" in error


def test_usage_and_version(capsys):
    assert main([]) == 0
    assert "evaluate" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip()


def test_as_a_process():
    """``python -m fcos_fast.cli`` is the same command."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "fcos_fast.cli", "trian"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "fcos-fast: unknown subcommand 'trian'; did you mean 'train'?\n"


@pytest.mark.parametrize("repeated", [False, True])
def test_sigterm_after_a_process_was_lost_does_not_hide_that(repeated, monkeypatch, capsys):
    """torchrun sends it while the process group is destroyed."""

    def train(_: list[str]) -> int:
        try:
            raise ProcessLostError("rank 0 ends: rank 1 was killed; continue with ...", repeated)
        finally:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("fcos_fast.cli.train.main", train)
    assert main(["train"]) == 1
    expected = "" if repeated else "fcos-fast train: rank 0 ends: rank 1 was killed; continue with ...\n"
    assert capsys.readouterr().err == expected
