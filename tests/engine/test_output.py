"""What a run prints, in its three forms, and its log."""

from __future__ import annotations

import io
import json
import sys
import warnings
from dataclasses import replace

import pytest

from fcos_fast.cli.main import main
from fcos_fast.engine.config import save_config
from fcos_fast.engine.output import RunOutput


@pytest.fixture(autouse=True)
def _warnings(monkeypatch):
    """Python's own way to show a warning, which pytest replaces."""

    def show(message, category, filename, line, *_):
        sys.stderr.write(warnings.formatwarning(message, category, filename, line))

    monkeypatch.setattr(warnings, "showwarning", show)


def speak(mode: str, folder) -> None:
    with RunOutput(mode) as output:
        print("before the folder")
        output.open(folder)
        print("two\nlines")
        sys.stderr.write("\repoch 1/2  50%")
        warnings.warn("look out", UserWarning, stacklevel=1)
        output.event("epoch", loss=0.5, ap=float("nan"))


def test_normal_output_passes_through(capsys, tmp_path):
    speak("normal", tmp_path)
    out, err = capsys.readouterr()
    assert out == "before the folder\ntwo\nlines\n"
    assert "look out" in err
    assert "50%" in err


def test_quiet_output_is_what_goes_to_stderr(capsys, tmp_path):
    speak("quiet", tmp_path)
    out, err = capsys.readouterr()
    assert out == ""
    assert "look out" in err


def test_json_output_is_one_object_per_line(capsys, tmp_path):
    speak("json", tmp_path)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"event": "message", "text": "before the folder"},
        {"event": "message", "text": "two"},
        {"event": "message", "text": "lines"},
        {"event": "epoch", "loss": 0.5, "ap": None},
    ]


@pytest.mark.parametrize("mode", ["normal", "quiet", "json"])
def test_the_log_has_everything_but_the_bar(tmp_path, mode):
    for _ in range(2):
        speak(mode, tmp_path)
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")][:3] == ["before the folder", "two", "lines"]
    assert sum(line.startswith("# ") for line in lines) == 2  # the second is appended
    assert sum("UserWarning: look out" in line for line in lines) == 1  # Python shows a warning once
    assert not any("50%" in line for line in lines)


def test_the_end_of_a_line_that_has_none_is_a_message(capsys, tmp_path):
    with RunOutput("json") as output:
        output.open(tmp_path)
        print("the last", end="")
    assert json.loads(capsys.readouterr().out) == {"event": "message", "text": "the last"}


def test_a_stream_that_outlives_the_run_writes_to_the_terminal(capsys, tmp_path):
    """As that of a logging handler which a library made during the run."""
    with RunOutput() as output:
        output.open(tmp_path)
        kept = sys.stderr
    print("late", file=kept)
    assert capsys.readouterr().err == "late\n"
    assert "late" not in (tmp_path / "train.log").read_text()


def test_an_error_is_in_the_log(capsys, tmp_path):
    def fail():
        with RunOutput("json") as output:
            output.open(tmp_path)
            raise ValueError("no box")

    before = sys.stdout
    with pytest.raises(ValueError, match="no box"):
        fail()
    log = (tmp_path / "train.log").read_text()
    assert "Traceback" in log
    assert log.splitlines()[-1] == "ValueError: no box"
    assert json.loads(capsys.readouterr().out) == {"event": "error", "message": "no box"}
    assert sys.stdout is before


def test_a_full_disk_ends_the_log_alone(capsys, tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    with RunOutput() as output:
        output.open(tmp_path)
        output._log.close()
        output._log = io.StringIO()
        output._log.write = full
        print("said")
        print("again")
    out, err = capsys.readouterr()
    assert out == "said\nagain\n"
    assert err == "train.log ends here, it cannot be written: No space left on device\n"


def test_a_run_as_json_and_its_quiet_continuation(tiny, tmp_path, capsys):
    config = replace(tiny, train=replace(tiny.train, epochs=2, batch_size=4, output="json"))
    save_config(config, tmp_path / "given.yaml")
    assert main(["train", "--config", str(tmp_path / "given.yaml")]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    events = [json.loads(line) for line in printed.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert [kind for kind in kinds if kind not in ("message", "step")] == ["start", "epoch", "epoch", "end"]
    assert "step" in kinds
    start, first, last = (next(e for e in events if e["event"] == k) for k in ("start", "epoch", "end"))
    assert (start["steps"], start["images"]) == (4, 8)
    assert first["loss_bbox_ctrness"] > first["loss_bbox_ctrness_floor"] > 0
    assert first["seconds_left"] > 0
    assert {"ap", "ap50", "folder"} <= last.keys()

    folder = last["folder"]
    options = ["--train.epochs", "3", "--train.output", "quiet"]
    assert main(["train", "--resume", folder, *options]) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    log = (tmp_path / "runs" / "train" / "train.log").read_text()
    assert log.count("\n# ") == 1  # the line of the continuation; the first line is that of the start
    assert "epoch 3/3" in log
    assert "report " in log
