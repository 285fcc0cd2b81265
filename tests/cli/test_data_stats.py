"""``fcos-fast data stats``: its numbers are right, and ``fcos-fast train`` accepts its suggestions."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest

from fcos_fast.cli.data_stats_run import statistics
from fcos_fast.cli.main import main
from fcos_fast.cli.train import parse_train_options
from fcos_fast.data import Categories, DetectionDataset, Record
from fcos_fast.models import FCOSConfig

SMALL = ["--model.min_size", "64", "--model.max_size", "96"]


def test_it_counts_and_suggests_options_of_train(voc_root, tmp_path, capsys):
    output = tmp_path / "stats.json"
    assert main(["data", "stats", "--data.root", str(voc_root), *SMALL, "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(output.read_text())
    assert printed.startswith("10 of 10 images")
    assert sum(found["boxes_per_class"].values()) == found["now"]["num_boxes"] > 0
    assert found["now"]["sizes_of_interest"] == [64, 128, 256, 512]
    suggested = shlex.split(printed.splitlines()[-1].removeprefix("suggested: "))
    assert suggested == found["options"] != []
    model = parse_train_options(["--data.root", str(voc_root), *SMALL, *suggested]).model
    assert list(model.rule.sizes_of_interest) == found["suggested"]["sizes_of_interest"]
    assert model.min_size == found["suggested"]["min_size"]


def test_ignored_boxes_do_not_count():
    def dataset(*ignore):
        boxes = np.array([[0, 0, 30, 30], [20, 20, 60, 60]], np.float32)
        record = Record("a.jpg", (96, 64), boxes, np.array([0, 1]), np.array(ignore), np.zeros(()))
        return DetectionDataset([record], Categories(("cat", "dog")))

    config = FCOSConfig(min_size=64, max_size=96)
    found = statistics(dataset(True, False), config, 10)
    assert found["boxes_per_class"] == {"cat": 0, "dog": 1}
    assert found["now"]["num_boxes"] == 1
    assert found["without_boxes"] == 0
    with pytest.raises(ValueError, match="no boxes, or only difficult ones and crowds"):
        statistics(dataset(True, True), config, 10)


def test_it_accepts_recipes_and_presets(voc_root, capsys):
    arguments = ["--data.root", str(voc_root), "--data.train", "train"]
    assert main(["data", "stats", "--config", "small", *arguments]) == 0
    assert main(["data", "stats", "--preset", "detectron2", *arguments, *SMALL]) == 0


def test_errors_are_one_line(voc_root, capsys):
    for arguments, message in (
        (["data", "stat"], "fcos-fast data: unknown subcommand 'stat'; did you mean 'stats'?"),
        (
            ["data", "--rot", "x"],
            "fcos-fast data: unknown option --rot; options follow the subcommand: stats, check",
        ),
        (["data", "stats", "--rot", "x"], "unknown option --rot; did you mean '--data.root'?"),
        (["data", "stats", "--images", "0"], "--images=0; expected a positive integer"),
        (
            ["data", "stats", "--preset", "retinanet", "--data.root", str(voc_root)],
            "--preset retinanet is not an FCOS and has no level ranges",
        ),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
