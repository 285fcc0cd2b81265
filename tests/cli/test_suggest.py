"""Names of other programs lead to the options that mean the same."""

from __future__ import annotations

from collections import Counter

import pytest

from fcos_fast.cli.benchmark import BenchmarkOptions
from fcos_fast.cli.detect import DetectOptions
from fcos_fast.cli.evaluate import EvaluateOptions
from fcos_fast.cli.option_list import options_of
from fcos_fast.cli.suggest import ELSEWHERE, did_you_mean_option, meant_by
from fcos_fast.cli.train import TrainOptions

KNOWN = {
    kind: [*(option.name for option in options_of(kind, {})), "config"]
    for kind in (TrainOptions, EvaluateOptions, DetectOptions, BenchmarkOptions)
}
TRAIN = KNOWN[TrainOptions]


def test_every_entry_leads_to_an_option():
    for option, names in ELSEWHERE.items():
        for name in names:
            assert any(meant_by(name, known) for known in KNOWN.values()), (option, name)


def test_no_name_has_two_meanings():
    counts = Counter(name for names in ELSEWHERE.values() for name in names)
    assert max(counts.values()) == 1, counts.most_common(1)


@pytest.mark.parametrize(
    ("given", "meant"),
    {
        "--lr": "optimizer.lr",
        "--lr0": "optimizer.lr",
        "--epochs": "train.epochs",
        "--batch": "train.batch_size",
        "--batch-size": "train.batch_size",
        "--imgsz": "model.min_size",
        "--device": "train.device",
        "--workers": "data.workers",
        "--data": "data.root",
        "--weights": "train.weights",
        "--wd": "optimizer.weight_decay",
        "--fliplr": "augment.horizontal_flip",
        "--output-dir": "train.runs",
        "--train.lr": "optimizer.lr",
        "--MAX_ITER": "train.steps",
        "--cfg": "config",
    }.items(),
)
def test_names_of_training(given, meant):
    assert meant_by(given, TRAIN)[0] == meant
    assert did_you_mean_option(given, TRAIN).startswith(f"; did you mean '--{meant}'")


def test_a_name_depends_on_the_subcommand():
    assert meant_by("--batch", KNOWN[EvaluateOptions]) == ["batch_size"]
    assert meant_by("--conf", KNOWN[DetectOptions]) == ["score_threshold"]
    assert meant_by("--fliplr", KNOWN[DetectOptions]) == []


def test_misspelled():
    assert did_you_mean_option("--train.epoch", TRAIN) == "; did you mean '--train.epochs'?"
    assert did_you_mean_option("--qqqqqq", TRAIN) == "; --help lists the choices"
