"""``--help`` of every subcommand: common options first, and text without docstring markup."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import yaml

from fcos_fast.cli.help import LONG, without_markup
from fcos_fast.cli.main import SUBCOMMANDS, main

LISTED = r"^  (?:-h TOPIC, )?(--[\w.]+)"
COMMANDS = [
    "",
    *SUBCOMMANDS,
    "data stats",
    "data split",
    "data convert",
    "train --preset torchvision-retinanet",
]
FIRST = {
    "train": "--config --data.root --data.train --data.val --size --preset --model.backbone --train.weights"
    " --train.epochs --train.batch_size --optimizer.lr --train.device --train.name --resume",
    "evaluate": "--checkpoint --data.root --data.split --batch_size --device",
    "detect": "--checkpoint --score_threshold --classes --save_txt --save_json --save_crops --draw",
    "serve": "--checkpoint --host --port --threads --device",
    "convert": "--checkpoint --output --to",
    "data stats": "--data.root --data.train --preset --model.min_size --model.max_size --images --output --config",
    "data split": "--data.root --output --fractions --group --group_file --data.split --seed --config",
    "data convert": "--data.root --to --output --data.split --images --config",
    "benchmark": "--checkpoint --images --preset --backbone",
    "demo": "--images --epochs",
    "info": "--size --model --backbone",
}


def help_of(command: str, capsys: pytest.CaptureFixture[str], *topic: str) -> str:
    try:
        status = main([*command.split(), "--help", *topic])
    except SystemExit as end:
        status = end.code
    assert status == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_no_markup(command, capsys):
    text = help_of(command, capsys, *(["all"] if command.startswith(("train", "data stats")) else []))
    assert text.startswith("usage: fcos-fast")
    assert not re.findall(r"``|:(?:func|class|meth|data|mod|attr):", text)


@pytest.mark.parametrize("topic", [[], ["all"]])
@pytest.mark.parametrize("command", FIRST)
def test_the_common_options_come_first(command, topic, capsys):
    options = re.findall(LISTED, help_of(command, capsys, *topic), flags=re.MULTILINE)
    expected = FIRST[command].split()
    assert options[: len(expected)] == expected
    assert len(options) == len(set(options))
    assert {"--help", "--print_config", "--config"} <= set(options)


def test_help_of_many_options_is_short(capsys):
    text = help_of("train", capsys)
    assert len(text.splitlines()) < 100
    assert "--model.num_classes" not in text
    assert re.search(r"^  optimizer +\d+ options: The optimizer: SGD", text, flags=re.MULTILINE)
    assert "--help GROUP lists a group, --help all every option" in text


@pytest.mark.parametrize("command", FIRST)
def test_every_option_of_the_parser_is_listed(command, capsys):
    """Few options are listed at once. ``--print_config`` has what the parser accepts."""
    everything = re.findall(LISTED, help_of(command, capsys, "all"), flags=re.MULTILINE)
    if len(everything) <= LONG:
        assert help_of(command, capsys) == help_of(command, capsys, "all")
    required = {
        "evaluate": ["--checkpoint", "x"],
        "detect": ["--checkpoint", "x"],
        "serve": ["--checkpoint", "x"],
    }
    required["convert"] = ["--checkpoint", "x", "--output", "y"]
    with pytest.raises(SystemExit):
        main([*command.split(), *required.get(command, []), "--print_config"])
    content = yaml.safe_load(capsys.readouterr().out)
    if "fractions" in content:  # whose keys are not options
        content["fractions"] = None
    accepted = set(names_in(content)) - {"--sources"}
    assert accepted == set(everything) - {"--help", "--print_config", "--config"}


def names_in(content: dict, prefix: str = "--") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from names_in(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_help_of_everything_is_grouped(capsys):
    text = help_of("train", capsys, "all")
    for group in ("The dataset and how it is read:", "The training run:", "Other options:"):
        assert f"\n{group}\n" in text


@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("schedule", "--schedule.kind --schedule.warmup --schedule.warmup_steps --schedule.warmup_factor"),
        ("model.rule", "--model.rule.location --model.rule.range_test"),
        ("optimizer.lr", "--optimizer.lr"),
        ("lr", "--optimizer.lr"),
        ("batch-size", "--train.batch_size"),
        ("imgsz", "--model.min_size"),
    ],
)
def test_help_of_a_topic(topic, options, capsys):
    listed = re.findall(LISTED, help_of("train", capsys, topic), flags=re.MULTILINE)
    assert listed[: len(options.split())] == options.split()
    if "." in topic or "-" in topic:
        assert {name.rpartition(".")[0] for name in listed} == {options.split()[0].rpartition(".")[0]}


def test_help_of_the_model_depends_on_the_preset(capsys):
    assert "--model.anchor_size" not in help_of("train", capsys, "model")
    assert "--model.anchor_size" in help_of("train --preset retinanet", capsys, "model")


def test_defaults_and_types(capsys):
    text = " ".join(help_of("train", capsys, "all").split())
    for shown in (
        "--optimizer.betas BETAS decay rates of AdamW's two moving averages. ([float, float], default: [0.9, 0.999])",
        "pixels of the longer side. null (None in Python): no maximum. (int | null, default: 480)",
        "at most 1000. (int | null)",  # null is not shown
        "(Loshchilov and Hutter, 2019): --optimizer.name {sgd,adamw} which of the two. (default: adamw)",
        "--data.strict {true,false}",
        "--data.group_by_aspect_ratio {true,false,null}",
    ):
        assert shown in text
    assert "(str, required)" in help_of("evaluate", capsys)


def test_every_option_is_explained(capsys):
    """Without an explanation, only the type or default follows the name, in parentheses."""
    for command in FIRST:
        text = " ".join(help_of(command, capsys, "all").split())
        assert not re.findall(r"--[\w.]+ (?:[A-Z_]+|\{[^}]*\}) (?:--|\()", text)


def test_markup_is_removed():
    text = "``a`` of :func:`b.c`, :class:`d`; it's 5 o'clock, ``e\n    f``"
    assert without_markup(text) == "a of b.c, d; it's 5 o'clock, e\n    f"
