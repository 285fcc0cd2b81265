"""The subcommands on real files."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from fcos_fast.cli.main import main
from fcos_fast.cli.train import RECIPES, parse_train_options
from fcos_fast.engine.progress import Progress
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.models import PRESETS

SMALL = ["--model.backbone", "resnet18", "--model.fpn_channels", "32", "--model.head_channels", "64"]
SMALL += ["--model.head_convs", "1", "--model.min_size", "null"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_evaluate_detect(tmp_path, voc_root, capsys):
    """Each subcommand uses the files and the output of the one before."""
    run = ["train", "--data.root", str(voc_root), "--train.epochs", "1", "--train.batch_size", "5", *SMALL]
    assert main([*run, "--train.precision", "float32"]) == 0
    output = capsys.readouterr().out
    assert "fcos-fast detect --checkpoint runs/train/best.pt" in output
    left = {path.name for path in (tmp_path / "runs" / "train").iterdir()}
    assert left == {
        *("best.pt", "last.pt", "metrics.csv", "config.yaml"),
        *("report.html", "analysis.json", "curves.png", "sheet.png", "train.log"),
    }
    assert main(["evaluate", "--checkpoint", "runs/train/best.pt", "--precision", "float32"]) == 0
    result = json.loads((tmp_path / "runs" / "evaluate" / "metrics.json").read_text())
    row = read_metrics(tmp_path / "runs" / "train" / "metrics.csv")[-1]
    assert result["ap"] == pytest.approx(row["ap"], abs=1e-6)
    report = (tmp_path / "runs" / "evaluate" / "report.html").read_text()
    assert "images/s, reading included" in report
    assert "FCOS on resnet18; cpu, float32" in report
    assert main(["compare", "runs/train", "runs/evaluate"]) == 0
    assert main(["detect", "--checkpoint", "runs/train/best.pt", str(voc_root / "JPEGImages")]) == 0
    assert len(json.loads((tmp_path / "runs" / "detect" / "detections.json").read_text())) == 12
    assert main(["train", "--resume", "runs/train"]) == 0  # a finished run is evaluated again


def test_train_evaluate_detect_retinanet(tmp_path, voc_root, capsys):
    """The preset is in a YAML file. The run's config.yaml and checkpoints work for other commands."""
    Path("my.yaml").write_text("preset: retinanet\nmodel:\n  anchor_size: 2.0\n")
    run = ["train", "--config", "my.yaml", "--data.root", str(voc_root), "--train.epochs", "1", *SMALL]
    assert main([*run, "--train.batch_size", "5", "--train.precision", "float32"]) == 0
    output = capsys.readouterr().out
    assert "RetinaNet on resnet18; cpu" in output
    assert re.search(r"epoch 1/1  loss [\d.]+ \(classification [\d.]+, bbox_regression [\d.]+\)", output)
    (row,) = read_metrics(tmp_path / "runs" / "train" / "metrics.csv")
    assert row["loss"] == pytest.approx(row["loss_classification"] + row["loss_bbox_regression"], rel=1e-4)
    assert "RetinaNet on" in (tmp_path / "runs" / "train" / "report.html").read_text()
    assert parse_train_options(["--config", "runs/train/config.yaml"]).model.anchor_size == 2.0

    assert main(["evaluate", "--checkpoint", "runs/train/best.pt", "--precision", "float32"]) == 0
    result = json.loads((tmp_path / "runs" / "evaluate" / "metrics.json").read_text())
    assert result["ap"] == pytest.approx(row["ap"], abs=1e-6)
    assert main(["detect", "--checkpoint", "runs/train/best.pt", str(voc_root / "JPEGImages")]) == 0
    assert len(json.loads((tmp_path / "runs" / "detect" / "detections.json").read_text())) == 12
    assert main(["train", "--resume", "runs/train"]) == 0


def test_evaluate_writes_where_it_is_told_or_fails_at_once(
    tmp_path, voc_root, checkpoint, capsys, monkeypatch
):
    evaluate = ["evaluate", "--checkpoint", str(checkpoint), "--data.root", str(voc_root), "--output"]
    assert main([*evaluate, "new/folder/mine.json", "--data.split", "val"]) == 0
    results = json.loads((tmp_path / "new" / "folder" / "mine.json").read_text())
    assert {result["image_id"] for result in results} == {0, 1}
    assert set(results[0]) == {"image_id", "category_id", "bbox", "score"}

    monkeypatch.setattr("fcos_fast.engine.evaluate.evaluate", pytest.fail)  # not reached
    Path("file").touch()
    assert main([*evaluate, "file/mine.json"]) == 2
    assert "--output=file/mine.json: its folder cannot be created: File exists" in capsys.readouterr().err


def test_options_are_those_of_the_presets_detector(capsys):
    assert main(["train", "--model.anchor_size", "3"]) == 2
    assert "unknown option --model.anchor_size" in capsys.readouterr().err
    assert main(["train", "--preset", "retinanet", "--model.rule.radius", "3"]) == 2
    assert "unknown option --model.rule.radius" in capsys.readouterr().err
    options = parse_train_options(["--preset=retinanet-tutorial", "--model.num_classes", "3"])
    assert options.config().model == replace(PRESETS["retinanet-tutorial"], num_classes=3)
    with pytest.raises(SystemExit):
        main(["train", "--preset", "torchvision-retinanet", "--help", "all"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--model.anchor_size" in text
    assert "default: torchvision)" in text  # of the anchors' rule
    assert "--model.rule" not in text


def test_detect_reports_unreadable_files_and_continues(tmp_path, voc_root, checkpoint, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    good = sorted((voc_root / "JPEGImages").iterdir())[:2]
    (folder / "a.jpg").write_bytes(good[0].read_bytes())
    (folder / "b.jpg").write_bytes(good[0].read_bytes()[:100])
    (folder / "c.png").write_bytes(b"")
    (folder / "notes.txt").write_text("not an image")
    images = ["mine", str(good[1]), str(folder / "a.jpg")]
    assert main(["detect", "--checkpoint", str(checkpoint), "--score_threshold", "0.1", *images]) == 1
    captured = capsys.readouterr()
    assert "b.jpg" in captured.err
    assert "c.png" in captured.err
    results = json.loads((tmp_path / "runs" / "detect" / "detections.json").read_text())
    assert [result["image"] for result in results] == ["mine/a.jpg", str(good[1]), str(folder / "a.jpg")]
    drawn = [result["drawn"] for result in results]
    assert drawn == ["a.jpg", good[1].name, "a_2.jpg"]
    for result, name in zip(results, drawn, strict=True):
        assert Image.open(tmp_path / "runs" / "detect" / name).size == (96, 64)
        assert (result["width"], result["height"]) == (96, 64)
        for detection in result["detections"]:
            x1, y1, x2, y2 = detection["box"]
            assert 0 <= x1 <= x2 <= 96
            assert 0 <= y1 <= y2 <= 64
            assert 0.1 <= detection["score"] <= 1
            assert detection["class"] in ("circle", "cross", "ring", "square", "star", "triangle")
    assert sum(len(result["detections"]) for result in results) > 0


def test_progress_of_detect_counts_unreadable_files(tmp_path, voc_root, checkpoint, monkeypatch):
    (tmp_path / "empty.png").touch()
    image = next((voc_root / "JPEGImages").iterdir())
    steps, update = [], Progress.update
    monkeypatch.setattr(Progress, "update", lambda bar: (update(bar), steps.append((bar.step, bar.total))))
    assert main(["detect", "--checkpoint", str(checkpoint), "empty.png", str(image)]) == 1
    assert steps == [(1, 2), (2, 2)]


def test_folder_without_an_image(tmp_path, checkpoint, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["detect", "--checkpoint", str(checkpoint), "empty"]) == 2
    assert "empty contains no image or video" in capsys.readouterr().err


def test_benchmark_of_a_checkpoint(tmp_path, voc_root, checkpoint, capsys):
    run = ["benchmark", "--checkpoint", str(checkpoint), "--images", str(voc_root / "JPEGImages")]
    run += [
        "--batch_sizes",
        "[1, 3]",
        "--precisions",
        "[float32, bfloat16]",
        "--repeats",
        "2",
        "--warmup",
        "1",
    ]
    assert main([*run, "--threads", "1", "--output", "times.json"]) == 0
    output = capsys.readouterr().out
    report = json.loads((tmp_path / "times.json").read_text())
    assert report["machine"]["threads"] == 1
    assert report["machine"]["torch"] == torch.__version__
    assert {name: str(value) in output for name, value in report["machine"].items()} == dict.fromkeys(
        report["machine"], True
    )
    cases = [(row["batch_size"], row["precision"], row["variant"]) for row in report["rows"]]
    assert cases == list(product([1, 3], ["float32", "bfloat16"], ["plain", "optimized"]))
    lines = output.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("images"))
    for row, line in zip(report["rows"], lines[start + 1 :], strict=False):
        assert line.split()[:5] == [
            *("JPEGImages", "64x96", str(row["batch_size"])),
            *(row["precision"], row["variant"]),
        ]
        assert set(row["stages_p50_ms"]) == {"decode", "pre-process", "network", "post-process"}
        assert min(row["stages_p50_ms"].values()) > 0
        assert row["samples"] == 2
        assert 0 < row["detections_per_image"] <= 100
    assert report["rows"][0]["detections_per_image"] == report["rows"][1]["detections_per_image"]


def test_benchmark_of_random_weights(capsys, monkeypatch):
    """Generated images of two sizes, on which the detector finds some objects."""
    small = {"fpn_channels": 32, "head_channels": 64, "head_convs": 1, "min_size": None}
    monkeypatch.setitem(PRESETS, "official-improved", replace(PRESETS["official-improved"], **small))
    run = [
        "benchmark",
        "--backbone",
        "resnet18",
        "--sizes",
        "[64x80, 100x130]",
        "--repeats",
        "1",
        "--warmup",
        "0",
    ]
    assert main([*run, "--variants", "[optimized]", "--precisions", "[float32]"]) == 0
    output = capsys.readouterr().out
    assert "random weights; its last layers are set" in output
    rows = [line.split() for line in output.splitlines() if "float32" in line]
    assert [row[:5] for row in rows] == [
        ["64x80", "64x96", "1", "float32", "optimized"],
        ["100x130", "128x160", "1", "float32", "optimized"],
    ]
    assert all(5 < float(row[-1]) <= 100 for row in rows)


def test_demo(tmp_path, capsys):
    assert main(["demo", "--images", "20", "--epochs", "1"]) == 0
    output = capsys.readouterr().out
    assert "fcos-fast train --config small --data.root" in output
    log = (tmp_path / "runs" / "demo" / "train" / "train.log").read_text()
    assert log.endswith(output[output.index("report   ") :])
    assert (tmp_path / "runs" / "demo" / "train" / "sheet.png").is_file()
    assert (tmp_path / "runs" / "demo" / "train" / "report.html").is_file()
    assert len(list((tmp_path / "runs" / "demo" / "images" / "JPEGImages").iterdir())) == 22


def test_yaml_then_command_line(tmp_path):
    (tmp_path / "my.yaml").write_text("optimizer:\n  lr: 0.5\n  name: sgd\nmodel:\n  min_size: [480, 512]\n")
    options = parse_train_options(["--config", "my.yaml", "--optimizer.lr", "0.25"])
    assert (options.optimizer.lr, options.optimizer.name) == (0.25, "sgd")
    assert options.model.min_size == (480, 512)


def test_preset_sets_the_defaults_of_the_model(tmp_path):
    options = parse_train_options(["--preset", "torchvision", "--model.backbone", "resnet18"])
    changed = vars(options.model) | {"backbone": PRESETS["torchvision"].backbone}
    assert changed == vars(PRESETS["torchvision"])


def test_classes_by_name(voc_root, capsys):
    classes = ["triangle", "star", "square", "ring", "cross", "circle", "heart"]
    run = ["train", "--data.root", str(voc_root), "--train.epochs", "1", "--train.batch_size", "5", *SMALL]
    assert main([*run, "--data.classes", str(classes), "--data.val", ""]) == 0
    table = capsys.readouterr().out.splitlines()
    start = next(i for i, line in enumerate(table) if line.startswith("label"))
    assert [line.split()[1] for line in table[start + 1 : start + 8]] == classes


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_valid(name):
    options = parse_train_options(["--config", name])
    written = yaml.safe_load(RECIPES[name].read_text())
    for group, values in written.items():
        if isinstance(values, dict):
            for key, value in values.items():
                got = getattr(getattr(options, group), key)
                assert (list(got) if isinstance(got, tuple) else got) == value
