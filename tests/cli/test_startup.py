"""What needs no torch, and is thus printed at once: help, the version, and errors in the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from fcos_fast.models import BACKBONES
from fcos_fast.models.config import BUILT_IN_BACKBONES

HELP = [
    *(
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["evaluate", "--help"],
        ["compare", "--help"],
        ["detect", "--help"],
        ["export", "--help"],
    ),
    *(
        ["convert", "--help"],
        ["data", "--help"],
        ["data", "stats", "--help"],
        ["data", "check", "--help"],
        ["data", "split", "--help"],
        ["benchmark", "--help"],
    ),
    *(
        ["data", "show", "--help"],
        ["serve", "--help"],
        ["demo", "--help"],
        ["info", "--help"],
        ["train", "--preset", "torchvision-retinanet", "--help"],
    ),
]
MISTAKES = [
    *(
        ["trian"],
        ["train", "--data.rot", "x"],
        ["train", "--train.epochs", "many"],
        ["train", "--train.epochs", "0"],
    ),
    *(
        ["train", "--preset", "torchvison"],
        ["train", "--model.backbone", "resnet17"],
        ["train", "--config", "bcdc"],
    ),
    *(
        ["train", "--model.rule.radius", "-1"],
        ["train", "--optimizer.lr", "-1"],
        ["train", "--augment.hue", "2"],
    ),
    *(
        ["evaluate"],
        ["compare", "one"],
        ["compare", "none", "nowhere"],
        ["evaluate", "--checkpoint", "x", "--rot", "y"],
        ["detect", "--checkpoint", "x"],
        ["export", "--checkpoint", "x", "--format", "onix"],
        ["convert"],
        ["serve"],
        ["serve", "--checkpoint", "x", "--port", "-1"],
    ),
    *(
        ["data", "stat"],
        ["data", "stats", "--images", "0"],
        ["data", "check"],
        ["data", "check", "--fail_on", "warnings"],
        ["data", "show", "--images", "0"],
        ["data", "split", "--output", "x", "--fractions", "{a: 0.5}"],
        ["data", "convert", "--to", "x"],
        ["benchmark", "--sizes", "[8]"],
        ["demo", "--epoch=1"],
    ),
    *(["info", "--modle", "x"],),
]
CODE = """
import contextlib, io, json, sys
from fcos_fast.cli.main import main
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = end.code
    print(json.dumps([status, "torch" in sys.modules, bool(out.getvalue()), len(err.getvalue().splitlines())]))
"""


def answers(calls: list[list[str]]) -> dict[str, list]:
    """Call -> exit status, whether torch was imported, whether it printed, and the number of lines on stderr."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CODE, json.dumps(calls)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return {" ".join(call): line for call, line in zip(calls, lines, strict=True)}


def test_help_needs_no_torch():
    found = answers(HELP)
    assert found == {call: [0, False, True, 0] for call in found}


def test_errors_need_no_torch():
    found = answers(MISTAKES)
    assert found == {call: [2, False, False, 1] for call in found}


def test_built_in_backbones_are_the_registered_ones():
    assert sorted(BUILT_IN_BACKBONES) == sorted(BACKBONES)
