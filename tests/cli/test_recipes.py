"""The recipes of the package against the published numbers of their projects."""

from __future__ import annotations

import pytest

from fcos_fast.cli.main import main
from fcos_fast.cli.train import RECIPES, parse_train_options
from fcos_fast.engine.optimizer import parameter_groups
from fcos_fast.engine.schedule import learning_rate_factor
from fcos_fast.models import fcos

COCO = 7330  # steps of an epoch over the 117,266 images of COCO train2017 that have boxes, 16 at once

STEPS_1X = {60_000: 1e-3, 79_999: 1e-3, 80_000: 1e-4}
EPOCHS_1X = {8 * COCO - 1: 0.01, 8 * COCO: 1e-3, 11 * COCO: 1e-4}
CONSTANT = {0: 0.01 / 3, 499: 0.01 / 3, 500: 0.01}
LINEAR = {0: 1e-5, 500: 5.005e-3, 1000: 0.01}

PUBLISHED = {
    # preset, steps, {step: learning rate}, bias learning rate factor, bias decay, norm decay, clipping
    "official_r50_1x": ("official", 90_000, CONSTANT | STEPS_1X, 2, 0, 1e-4, 0),
    "official_imprv_r50_1x": ("official-improved", 90_000, CONSTANT | STEPS_1X, 2, 0, 1e-4, 0),
    "official_imprv_r101_2x_ms": (
        "official-improved", 180_000, CONSTANT | {119_999: 0.01, 120_000: 1e-3, 160_000: 1e-4}, 2, 0, 1e-4, 0
    ),
    "adelaidet_r50_1x": ("adelaidet", 90_000, LINEAR | STEPS_1X, 1, 1e-4, 0, 0),
    "adelaidet_rt_r50": ("adelaidet-rt", 360_000, LINEAR | {300_000: 1e-3, 340_000: 1e-4}, 1, 1e-4, 0, 0),
    "detectron2_r50_1x": ("detectron2", 90_000, LINEAR | STEPS_1X, 1, 1e-4, 0, 0),
    "mmdetection_r50_1x": ("mmdetection", 12 * COCO, CONSTANT | EPOCHS_1X, 2, 0, 1e-4, 35),
    "mmdetection_tricks_r50_1x": ("mmdetection-tricks", 12 * COCO, CONSTANT | EPOCHS_1X, 2, 0, 1e-4, 0),
    "torchvision_r50_26ep": (
        "torchvision", 26 * COCO, LINEAR | {16 * COCO: 1e-3, 22 * COCO: 1e-4}, 1, 1e-4, 1e-4, 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read(name):
    options = parse_train_options(["--config", name])
    assert options.config().train.batch_size >= 8


@pytest.mark.parametrize("name", PUBLISHED)
def test_learning_rates_and_decays_are_the_published_ones(name):
    preset, total, rates, bias_factor, bias_decay, norm_decay, clip = PUBLISHED[name]
    options = parse_train_options(["--config", name])
    assert options.preset == preset
    assert options.train.total_steps(COCO) == total
    assert (options.train.batch_size, options.optimizer.momentum, options.optimizer.clip_norm) == (
        16,
        0.9,
        clip,
    )
    schedule = options.schedule.in_steps(total, COCO)
    for step, rate in rates.items():
        assert options.optimizer.lr * learning_rate_factor(schedule, step, total) == pytest.approx(rate)
    weights, norms, biases = parameter_groups(fcos("resnet18", 2), options.optimizer)
    assert weights["weight_decay"] == 1e-4
    assert (norms["weight_decay"], biases["weight_decay"]) == (norm_decay, bias_decay)
    assert biases["base_lr"] == pytest.approx(bias_factor * 0.01)


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"adelaidet_rt_r50"}))
def test_pretrained_norms_and_first_stages_are_frozen(name):
    model = parse_train_options(["--config", name]).model
    assert (model.norm, model.trainable_stages, model.max_size) == ("frozen", 3, 1333)


def test_sizes_of_multi_scale_training():
    assert parse_train_options(["--config", "official_imprv_r101_2x_ms"]).model.min_size == (
        640,
        672,
        704,
        736,
        768,
        800,
    )
    real_time = parse_train_options(["--config", "adelaidet_rt_r50"]).model
    assert (min(real_time.min_size), max(real_time.min_size), real_time.min_size[-1]) == (256, 608, 512)
    assert real_time.strides == (8, 16, 32)


def test_later_options_override_a_recipe():
    options = parse_train_options(
        ["--config", "official_r50_1x", "--optimizer.lr", "0.005", "--model.min_size", "600"]
    )
    assert (options.optimizer.lr, options.optimizer.weight_decay, options.model.min_size) == (
        0.005,
        1e-4,
        600,
    )


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        (
            "optimizer:\n  weight_decy: 0.1\n",
            "unknown option --optimizer.weight_decy in the YAML file; did you mean '--optimizer.weight_decay'",
        ),
        ("model:\n  backbon: resnet50\n", "did you mean '--model.backbone'"),
        ("trian:\n  epochs: 3\n", "did you mean '--train"),
        ("model:\n  rule:\n    radios: 2\n", "did you mean '--model.rule.radius'"),
    ],
)
def test_an_unknown_option_in_a_file_suggests_the_nearest(yaml, message, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml)
    assert main(["train", "--config", str(path), "--data.root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
