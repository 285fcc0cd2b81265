"""``fcos-fast data stats``: its numbers are right, and ``fcos-fast train`` accepts its suggestions."""

from __future__ import annotations

import json
import shlex

from fcos_fast.cli.main import main
from fcos_fast.cli.train import parse_train_options

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
