"""Hostile names, ASCII terminals, full disks and signals: one-line errors, and nothing is lost."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.cli.main import main
from fcos_fast.data import Categories
from fcos_fast.engine.average_precision import AveragePrecision, average_precision
from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.report import write_report
from fcos_fast.text import printable

NAMES = (
    "\x1b[31mred\x1b[0m",
    "two\nlines",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "small",
    "\u202egnp",
)
SMALL = ["--model.backbone", "mobilenet_v2", "--model.fpn_channels", "32", "--model.head_channels", "32"]
SMALL += [
    "--model.head_convs",
    "1",
    "--model.min_size",
    "null",
    "--train.device",
    "cpu",
    "--train.batch_size",
    "2",
]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A COCO folder of 64x64 images with these class names; the ids of images and categories have gaps."""
    root = tmp_path_factory.mktemp("hostile")
    for split, count in (("train", 4), ("val", 3)):
        (root / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            Image.fromarray(np.full((64, 64, 3), 40 * i, np.uint8)).save(root / split / f"{i}.png")
            images.append({"id": 100 + 7 * i, "file_name": f"{i}.png", "width": 64, "height": 64})
            for label in range(len(NAMES)):
                annotations.append(
                    {
                        **{
                            "id": len(annotations) + 1,
                            "image_id": images[-1]["id"],
                            "category_id": 3 + 5 * label,
                        },
                        **{"bbox": [4, 4, 30, 30], "area": 900, "iscrowd": 0},
                    }
                )
        categories = [{"id": 3 + 5 * label, "name": name} for label, name in enumerate(NAMES)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def run(hostile, tmp_path_factory) -> Path:
    """The folder of a one-epoch run on ``hostile``."""
    runs = tmp_path_factory.mktemp("runs")
    assert (
        main(["train", "--data.root", str(hostile), "--train.epochs", "1", "--train.runs", str(runs), *SMALL])
        == 0
    )
    return runs / "train"


def test_names_are_escaped_on_the_terminal(run, tmp_path, capsys):
    assert main(["train", "--resume", str(run)]) == 0
    assert main(["evaluate", "--checkpoint", str(run / "best.pt"), "--runs", str(tmp_path)]) == 0
    converted = ["--output", str(tmp_path / "a.pt")]
    assert main(["convert", "--checkpoint", str(run / "best.pt"), *converted]) == 0
    assert main(["data", "stats", "--config", str(run / "config.yaml")]) == 0
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        assert all(c.isprintable() or c == "\n" for c in text)
    assert r"\x1b[31mred\x1b[0m" in captured.out
    assert r"two\nlines" in captured.out


def test_names_in_errors(hostile, run, tmp_path, capsys):
    arguments = ["train", "--data.root", str(hostile), "--data.classes", '["a\\u001b[2J"]', *SMALL]
    assert main([*arguments, "--train.runs", str(tmp_path), "--train.weights", str(run / "best.pt")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert all(c.isprintable() or c == "\n" for c in error)


def test_names_in_html(run):
    page = (run / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page


def test_names_in_csv(run):
    """No cell is a formula and each row is one line. A class named small does not hide the AP of small objects."""
    text = (run / "metrics.csv").read_text()
    assert len(text.splitlines()) == 2
    header, row = csv.reader(text.splitlines())
    assert not any(cell.startswith(("=", "+", "@", "\t", "\r")) for cell in [*header, *row])
    assert r"ap_two\nlines" in header
    assert len(header) == len(set(header))
    assert {"ap_small", "ap_small (class)"} <= {*header}


def test_printable():
    assert printable("a b é 日本 😀") == "a b é 日本 😀"
    assert (
        printable("\x00\x1b\r\n\t\x7f\x9b\u2028\u202e\ufeff") == r"\x00\x1b\r\n\t\x7f\x9b\u2028\u202e\ufeff"
    )
    assert printable(os.fsdecode(b"\xff")) == r"\udcff"


def test_metrics_are_json(run, tmp_path):
    """The validation split has no large objects, so their AP is NaN."""
    assert main(["evaluate", "--checkpoint", str(run / "best.pt"), "--runs", str(tmp_path)]) == 0

    def reject(constant):
        raise AssertionError(constant)

    metrics = json.loads((tmp_path / "evaluate" / "metrics.json").read_text(), parse_constant=reject)
    assert metrics["ap_large"] is None
    assert 0 <= metrics["ap"] <= 1


def perfect(model, dataset, **_):
    detections = [
        {
            **{"boxes": torch.tensor(record.boxes), "labels": torch.tensor(record.labels)},
            "scores": torch.ones(len(record.boxes)),
        }
        for record in dataset.records
    ]
    return average_precision(dataset.coco_ground_truth(), detections, dataset.categories), detections


@pytest.mark.parametrize("old_names", [False, True])
def test_evaluate_writes_results_for_pycocotools(run, hostile, tmp_path, old_names, monkeypatch):
    """With the ids of the evaluated file, which here differ from those of training, for a perfect detector."""
    monkeypatch.setattr("fcos_fast.engine.evaluate.evaluate", perfect)
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    content = json.loads((hostile / "annotations" / "val.json").read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] += 1000
        annotation["image_id"] *= 3
    for category in content["categories"]:
        category["id"] += 1000
    for image in content["images"]:
        image["id"] *= 3
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "annotations").mkdir(parents=True)
    (elsewhere / "val").symlink_to(hostile / "val")
    file = elsewhere / "annotations" / "val.json"
    file.write_text(json.dumps(content))

    names = ("--root", "--split") if old_names else ("--data.root", "--data.split")
    where = [names[0], str(elsewhere), names[1], "val", "--runs", str(tmp_path), "--precision", "float32"]
    results = tmp_path / ("mine.json" if old_names else "evaluate/results.json")
    where += ["--output", str(results)] if old_names else []
    assert main(["evaluate", "--checkpoint", str(run / "best.pt"), *where]) == 0
    rows = json.loads(results.read_text())
    assert {row["image_id"] for row in rows} <= {image["id"] for image in content["images"]}
    assert {row["category_id"] for row in rows} <= {category["id"] for category in content["categories"]}
    assert rows[0].keys() == {"image_id", "category_id", "bbox", "score"}
    truth = coco.COCO(str(file))
    evaluation = cocoeval.COCOeval(truth, truth.loadRes(str(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    metrics = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    assert metrics["ap"] == pytest.approx(evaluation.stats[0], abs=1e-6)
    assert metrics["ap"] == pytest.approx(1)


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    options = {"env": ENVIRONMENT, "capture_output": True, "text": True, "timeout": 100} | options
    return subprocess.run([sys.executable, "-W", "ignore", "-m", "fcos_fast.cli", *arguments], **options)


def test_ascii_terminal(tmp_path):
    ascii_terminal = ENVIRONMENT | {"PYTHONIOENCODING": "ascii", "LANG": "C", "PYTHONUTF8": "0"}
    done = command("train", "--data.root", "/zürich/日本", env=ascii_terminal)
    assert done.returncode == 2
    assert (
        done.stderr
        == r"fcos-fast train: /z\xfcrich/\u65e5\u672c: does not exist; give the folder of a dataset" + "\n"
    )
    assert command("train", "--help", env=ascii_terminal).returncode == 0


@pytest.mark.parametrize("what", ["yaml", "option"])
def test_nested_too_deeply(what, tmp_path, capsys):
    deep = "[" * 5000 + "]" * 5000
    (tmp_path / "deep.yaml").write_text(f"model:\n  min_size: {deep}\n")
    given = ["--config", str(tmp_path / "deep.yaml")] if what == "yaml" else ["--model.min_size", deep]
    assert main(["train", *given]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1


def test_yaml_that_is_not_text(tmp_path, capsys):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    assert main(["train", "--config", str(tmp_path / "a.yaml")]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "a.yaml" in error


def test_error_of_a_batch_norm_over_one_value(tmp_path, hostile, capsys):
    options = ["--data.root", str(hostile), "--train.runs", str(tmp_path), *SMALL[:-1], "1"]
    options += ["--augment.size", "[32, 32]", "--train.precision", "float32"]
    assert main(["train", *options]) == 2
    error = capsys.readouterr().err
    assert "a batch norm has one value per channel" in error
    assert "a larger train.batch_size" in error


def limit_file_size(size: int):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_keeps_the_last_checkpoint(run, tmp_path):
    """The limit of the file size fits a checkpoint without the optimizer's state, which the first epoch adds."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in run.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    before = (folder / "last.pt").read_bytes()
    done = command(
        *("train", "--resume", str(folder), "--train.epochs", "2"),
        preexec_fn=limit_file_size((folder / "best.pt").stat().st_size + 100_000),
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert (
        f"{folder / 'last.pt'}: cannot be written: File too large; the old file is unchanged" in done.stderr
    )
    assert (folder / "last.pt").read_bytes() == before
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1
    assert not list(folder.glob(".*"))


def test_a_report_of_hostile_names(tmp_path, hostile):
    from fcos_fast.data import load_dataset

    dataset = load_dataset(hostile, "val")
    none = {name: float("nan") for name in dataset.categories.names}
    result = AveragePrecision(*[0.5] * 12, per_class=none, per_class50=none)
    detections = [{"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "scores": np.zeros(0)}] * len(
        dataset
    )
    title = "a\x1b<b> " + os.fsdecode(b"\xff")
    page = write_report(tmp_path, title, dataset, detections, result, {}).read_text(encoding="utf-8")
    assert r"<h1>a\x1b&lt;b&gt; \udcff</h1>" in page
    assert str(Categories(NAMES)).isprintable() is False  # it has several lines
    assert all(line.isprintable() for line in str(Categories(NAMES)).splitlines())
    assert all(line.isprintable() for line in result.table().splitlines())


def test_sigterm_saves_like_ctrl_c(tmp_path, hostile):
    process = subprocess.Popen(
        [
            *(
                sys.executable,
                "-W",
                "ignore",
                "-m",
                "fcos_fast.cli",
                "train",
                "--data.root",
                str(hostile),
                *SMALL,
            ),
            *(
                "--train.epochs",
                "1000",
                "--train.runs",
                str(tmp_path),
                "--data.val",
                "",
                "--data.workers",
                "2",
            ),
        ],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert any(line.startswith("epoch 1/") for line in process.stdout), process.stderr.read()
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143
    assert error == (
        f"fcos-fast train: interrupted; continue with: fcos-fast train --resume {tmp_path / 'train'}\n"
    )
    assert not list((tmp_path / "train").glob(".*"))
    assert load_checkpoint(tmp_path / "train" / "last.pt")["epoch"] >= 1
