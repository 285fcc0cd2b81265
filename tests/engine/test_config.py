"""Configurations to plain values and back."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from fcos_fast.assignment import RULES
from fcos_fast.data import AugmentConfig
from fcos_fast.engine.config import Config, TrainConfig, save_config
from fcos_fast.engine.optimizer import OptimizerConfig
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.models import PRESETS, RetinaNetConfig
from fcos_fast.serialize import from_plain, to_plain

CHANGED = Config(
    model=replace(PRESETS["torchvision"], min_size=(480, 512), rule=RULES["torchvision"]),
    augment=AugmentConfig(size=(240, 320), scale=(0.5, 1.5)),
    optimizer=OptimizerConfig(name="sgd", betas=(0.8, 0.99)),
    schedule=ScheduleConfig(kind="steps", milestones=(0.5, 0.9), warmup_steps=7),
    train=TrainConfig(epochs=3, weights="a.pt"),
)


RETINANET = Config(model=RetinaNetConfig(anchor_shapes=((1.0, 1.0), (2.0, 0.5)), min_size=(480, 512)))


@pytest.mark.parametrize("config", [Config(), CHANGED, RETINANET])
def test_round_trip_through_json_and_yaml(config, tmp_path):
    plain = to_plain(config)
    assert from_plain(Config, plain) == config
    assert from_plain(Config, json.loads(json.dumps(plain))) == config
    save_config(config, tmp_path / "config.yaml")
    assert from_plain(Config, yaml.safe_load((tmp_path / "config.yaml").read_text())) == config


def test_missing_fields_have_their_defaults():
    assert from_plain(Config, {"train": {"epochs": 7}}) == Config(train=TrainConfig(epochs=7))


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="unknown TrainConfig field 'epoch'; did you mean 'epochs'"):
        from_plain(Config, {"train": {"epoch": 7}})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"epochs": 0}, r"train\.epochs=0; expected a positive integer"),
        ({"batch_size": 0}, r"train\.batch_size=0; expected a positive integer"),
        ({"steps": -1}, r"train\.steps=-1; expected a positive integer or None"),
        ({"ema_decay": 1.0}, r"train\.ema_decay=1\.0; expected at least 0 and below 1"),
    ],
)
def test_invalid_values_are_named(bad, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**bad)
