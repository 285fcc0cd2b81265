"""``--help`` of every subcommand: common options first, and text without docstring markup."""

from __future__ import annotations

import re

import pytest

from fcos_fast.cli.help import without_markup
from fcos_fast.cli.main import SUBCOMMANDS, main

COMMANDS = ["", *SUBCOMMANDS, "data stats", "train --preset torchvision-retinanet"]
FIRST = {
    "train": "--config --data.root --data.train --data.val --size --preset --model.backbone --train.weights"
    " --train.epochs --train.batch_size --optimizer.lr --train.device --train.name --resume",
    "evaluate": "--checkpoint --data.root --data.split --batch_size --device",
    "detect": "--checkpoint --score_threshold --classes --save_txt --save_json --save_crops --draw",
    "serve": "--checkpoint --host --port --threads --device",
    "convert": "--checkpoint --output --to",
    "data stats": "--data.root --data.train --preset --model.min_size --model.max_size --images --output --config",
    "benchmark": "--checkpoint --images --preset --backbone",
    "demo": "--images --epochs",
    "info": "--size --model --backbone",
}


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    try:
        status = main([*command.split(), "--help"])
    except SystemExit as end:
        status = end.code
    assert status == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_no_markup(command, capsys):
    text = help_of(command, capsys)
    assert text.startswith("usage: fcos-fast")
    assert not re.findall(r"``|:(?:func|class|meth|data|mod|attr):", text)


@pytest.mark.parametrize("command", FIRST)
def test_the_common_options_come_first(command, capsys):
    text = help_of(command, capsys)
    options = re.findall(r"^  (?:-h, )?(--[\w.]+)", text, flags=re.MULTILINE)
    expected = FIRST[command].split()
    assert options[: len(expected)] == expected
    assert len(options) == len(set(options))
    assert {"--help", "--print_config", "--config"} <= set(options)


def test_every_option_of_train_is_listed_in_a_group(capsys):
    text = help_of("train", capsys)
    for group in ("The dataset and how it is read:", "The training run:", "Other options:"):
        assert f"\n{group}\n" in text
    for option in (
        "--data.workers",
        "--model.num_classes",
        "--augment.hue",
        "--schedule.kind",
        "--train.winograd",
    ):
        assert f"\n  {option} " in text


def test_every_option_is_explained(capsys):
    """Without an explanation, only the type or default follows the name, in parentheses."""
    for command in FIRST:
        text = " ".join(help_of(command, capsys).split())
        assert not re.findall(r"--[\w.]+ (?:[A-Z_]+|\{[^}]*\}|\[[^]]*\]) \((?:type|default|one of)", text)


def test_markup_is_removed():
    text = "``a`` of :func:`b.c`, :class:`d`; it's 5 o'clock, ``e\n    f``"
    assert without_markup(text) == "a of b.c, d; it's 5 o'clock, e\n    f"
