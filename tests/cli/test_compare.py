"""``fcos-fast compare``: what it prints and writes, and its errors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from fcos_fast.cli.main import main
from fcos_fast.engine.compare import comparison_text, differences, read_run
from tests.engine.browser import opened

CURVE = {"objects": 10, "precisions": [1.0] * 50 + [0.5] * 51, "f1s": [0.2] * 101}
METRICS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")


def write_run(folder: Path, ap: float, lr: float = 0.1, images: int = 4, classes=("cat", "dog<b>")) -> Path:
    """A finished run of three epochs with ``ap`` at its end."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"optimizer: {{lr: {lr}, betas: [0.9, 0.99]}}\ntrain: {{name: {folder.name}, epochs: 3}}\n"
    )
    rows = [f"{e},{3 - e},{30.5},{ap * e / 3},{ap}" for e in (1, 2, 3)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,loss,seconds,ap,ap_cat", *rows, ""]))
    metrics = {**dict.fromkeys(METRICS, ap), "ap_small": None, "images_per_second": 12.5}
    metrics["per_class"] = dict(zip(classes, (ap, None), strict=True))
    analysis = {
        **{"parameters": 1_500_000, "images": images, "average_precision": metrics, "overall": CURVE},
        "lost_precision": {"Cls": ap / 10, "Miss": 0.02},
    }
    (folder / "analysis.json").write_text(json.dumps(analysis))
    (folder / "best.pt").write_bytes(bytes(2_000_000))
    return folder


def test_what_differs_and_what_came_of_it(tmp_path, capsys):
    runs = [write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.75, lr=0.2)]
    assert main(["compare", *map(str, runs)]) == 0
    lines = {re.split(r"  +", line)[0]: line.split()[-4:] for line in capsys.readouterr().out.splitlines()}
    assert lines["optimizer.lr"][-2:] == ["0.1", "0.2"]
    assert lines["AP"][-3:] == ["0.500", "0.750", "(+0.250)"]
    assert lines["training minutes"][-2:] == ["1.5", "1.5"]
    assert lines["parameters, millions"][-2:] == ["1.50", "1.50"]
    assert lines["size of best.pt, MB"][-2:] == ["2.0", "2.0"]
    assert lines["Cls"][-3:] == ["0.050", "0.075", "(+0.025)"]
    assert not {"train.name", "optimizer.betas", "AP small"} & lines.keys()


def test_equal_runs_do_not_differ(tmp_path):
    runs = [read_run(write_run(tmp_path / name, 0.5)) for name in "ab"]
    assert differences(runs) == {}
    assert "configuration" not in comparison_text(runs)


def test_unfinished_runs_and_evaluations_can_be_compared(tmp_path):
    """A run without analysis.json shows its last epoch. An evaluation has no configuration; that is no difference."""
    whole, going = write_run(tmp_path / "whole", 0.5), write_run(tmp_path / "going", 0.6, lr=0.3)
    evaluation = write_run(tmp_path / "evaluation", 0.7)
    (going / "analysis.json").unlink()
    for name in ("config.yaml", "metrics.csv", "best.pt"):
        (evaluation / name).unlink()
    runs = [read_run(path) for path in (whole, going, evaluation)]
    assert differences(runs) == {"optimizer.lr": ["0.1", "0.3", "–"]}
    text = comparison_text(runs)
    assert re.search(r"^AP +0.500 +0.600 \(\+0.100\) +0.700 \(\+0.200\)$", text, re.MULTILINE)
    assert re.search(r"^cat +0.500 +0.600 \(\+0.100\) +0.700 \(\+0.200\)$", text, re.MULTILINE)
    assert re.search(r"^training minutes +1.5 +1.5 +–$", text, re.MULTILINE)


def test_runs_of_different_images_are_marked(tmp_path):
    runs = [read_run(write_run(tmp_path / "a", 0.5)), read_run(write_run(tmp_path / "b", 0.5, images=9))]
    assert "cannot be compared" in comparison_text(runs)
    assert "cannot be compared" not in comparison_text(runs[:1] * 2)


def test_json_has_everything(tmp_path):
    runs = [write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.75, lr=0.2)]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "c.json")]) == 0
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["differences"] == {"optimizer.lr": ["0.1", "0.2"]}
    assert [run["average_precision"]["ap"] for run in content["runs"]] == [0.5, 0.75]
    assert content["runs"][0]["average_precision"]["ap_small"] is None


def test_page_in_a_browser(tmp_path):
    """Six runs, of which two have the same last name, on a phone in dark mode."""
    runs = [write_run(tmp_path / f"with a rather long name {i}", i / 10, lr=i) for i in range(5)]
    runs.append(write_run(tmp_path / "x" / "with a rather long name 4", 0.7))
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "c.html")]) == 0
    text = (tmp_path / "c.html").read_text()
    assert "dog&lt;b&gt;" in text
    assert "dog<b>" not in text
    with opened(tmp_path / "c.html", width=360, dark=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.locator("svg").count() == 4
        names = page.locator("thead").first.locator("th").all_inner_texts()[1:]
        assert names == [str(run) for run in runs]
        headings = ["Results", "Configuration", "Classes", "Where precision is lost", "Curves"]
        assert page.locator("h2").all_inner_texts() == headings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.rename(run.parent / "c"), "there is no such folder; give folders of fcos-fast train"),
        (lambda run: [file.unlink() for file in run.iterdir()], "contains neither metrics.csv nor analysis.json"),
        (lambda run: [(run / name).unlink() for name in ("metrics.csv", "analysis.json")], "no finished epoch"),
        (lambda run: (run / "analysis.json").write_text("{"), "analysis.json: is not a file of fcos-fast"),
        (lambda run: (run / "analysis.json").write_text('{"images": 3}'), "analysis.json: is not a file of fcos-fast"),
        (lambda run: (run / "analysis.json").write_text("[1]"), "analysis.json: is not a file of fcos-fast"),
        (lambda run: (run / "metrics.csv").write_text("epoch\nx\n"), "metrics.csv: is not a file of fcos-fast train"),
        (lambda run: (run / "metrics.csv").write_text("a,b\n1,2\n"), "metrics.csv: is not a file of fcos-fast train"),
        (lambda run: (run / "metrics.csv").write_text("a" * 200_000), "metrics.csv: is not a file of fcos-fast train"),
        (lambda run: (run / "config.yaml").write_text("a: [\n"), "config.yaml: is not a file of fcos-fast train"),
        (lambda run: (run / "config.yaml").write_text("- a\n"), "config.yaml: is not a file of fcos-fast train"),
    ],
)  # fmt: skip
def test_folders_that_are_no_runs(tmp_path, capsys, change, message):
    good, bad = write_run(tmp_path / "a", 0.5), write_run(tmp_path / "b", 0.5)
    change(bad)
    assert main(["compare", str(good), str(bad)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert str(bad) in error
    assert len(error.splitlines()) == 1


def test_one_run_and_other_suffixes_are_errors(tmp_path, capsys):
    run = str(write_run(tmp_path / "a", 0.5))
    assert main(["compare", run]) == 2
    assert "expected at least two folders of runs, got 1" in capsys.readouterr().err
    assert main(["compare", run, run, "--output", "a.txt"]) == 2
    assert "--output='a.txt'; expected a file name ending in .html or .json" in capsys.readouterr().err
