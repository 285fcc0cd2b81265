"""``fcos-fast convert``: round trips through files."""

from __future__ import annotations

import json

import pytest
import torch

from fcos_fast.cli.main import main
from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint

SMALL = "{fpn_channels: 32, head_channels: 64, head_convs: 1, min_size: null, prior: 0.5}"


def test_round_trip_through_an_official_checkpoint(checkpoint, tmp_path, capsys):
    theirs, again = tmp_path / "official.pth", tmp_path / "deeper" / "again.pt"
    assert (
        main(["convert", "--checkpoint", str(checkpoint), "--to", "official", "--output", str(theirs)]) == 0
    )
    printed = capsys.readouterr().out
    assert "checkpoint of fcos_fast" in printed
    assert "min_size is None here and 800 there" in printed
    assert "rpn.head.cls_logits.weight" in torch.load(theirs)["model"]

    names = ",".join(model_from_checkpoint(load_checkpoint(checkpoint))[1].names)
    arguments = ["--checkpoint", str(theirs), "--output", str(again), "--model", SMALL, "--classes", names]
    assert main(["convert", *arguments]) == 0
    assert "official checkpoint, read as official-improved with resnet18" in capsys.readouterr().out
    (model, categories), (before, same) = (
        model_from_checkpoint(load_checkpoint(path)) for path in (again, checkpoint)
    )
    assert categories.names == same.names
    for key, value in before.state_dict().items():
        if "num_batches_tracked" not in key:
            torch.testing.assert_close(model.state_dict()[key], value, msg=key)


def test_a_converted_checkpoint_detects_and_evaluates(checkpoint, voc_root, tmp_path, capsys):
    theirs, again = tmp_path / "x.pth", tmp_path / "x.pt"
    main(["convert", "--checkpoint", str(checkpoint), "--to", "mmdetection", "--output", str(theirs)])
    names = ",".join(model_from_checkpoint(load_checkpoint(checkpoint))[1].names)
    options = ["--model", SMALL, "--classes", names, "--preset", "official-improved"]
    assert main(["convert", "--checkpoint", str(theirs), "--output", str(again), *options]) == 0
    with_root = ["--data.root", str(voc_root), "--data.split", "val", "--runs", str(tmp_path)]
    assert main(["evaluate", "--checkpoint", str(again), *with_root]) == 0
    metrics = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    assert 0 <= metrics["ap"] <= 1
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(again), "--runs", str(tmp_path)]) == 2
    assert "does not name the dataset it was trained on; give one with --data.root" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "oficial"], "unknown checkpoint format 'oficial'; did you mean 'official'"),
        (["--classes", "a,b"], "--classes a,b: got 2 names; the checkpoint has 6 classes"),
        (["--checkpoint", "/nowhere.pth"], "checkpoint /nowhere.pth does not exist"),
    ],
)
def test_errors_are_one_line_and_write_no_file(options, message, checkpoint, tmp_path, capsys):
    output = tmp_path / "out" / "x.pt"
    assert main(["convert", "--checkpoint", str(checkpoint), "--output", str(output), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not output.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("{scor: sqrt}", "unknown FCOSConfig field 'scor'; did you mean 'score'"),
        ("{prior: often}", "prior='often'; expected a number"),
    ],
)
def test_wrong_fields_of_a_foreign_checkpoint_are_reported(fields, message, checkpoint, tmp_path, capsys):
    theirs = tmp_path / "x.pth"
    main(["convert", "--checkpoint", str(checkpoint), "--to", "official", "--output", str(theirs)])
    capsys.readouterr()
    assert (
        main(["convert", "--checkpoint", str(theirs), "--output", str(tmp_path / "y.pt"), "--model", fields])
        == 2
    )
    assert f"{theirs}: {message}" in capsys.readouterr().err
