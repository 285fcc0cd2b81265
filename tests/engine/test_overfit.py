"""Overfitting four photographs: the whole training, on real data."""

from __future__ import annotations

import pytest

from fcos_fast.data import AugmentConfig, DetectionDataset, load_voc
from fcos_fast.engine import train as train_module
from fcos_fast.engine.config import Config, TrainConfig
from fcos_fast.engine.optimizer import OptimizerConfig
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.engine.train import train
from fcos_fast.models import FCOSConfig, RetinaNetConfig

SMALL = {"backbone": "resnet18", "fpn_channels": 64, "head_channels": 64, "head_convs": 2}
MODELS = {
    "fcos": FCOSConfig(**SMALL, box_loss_smooth=0.0, centerness_weighted=False, min_size=240, max_size=320),
    "retinanet": RetinaNetConfig(**SMALL, anchor_size=1.0, min_size=120, max_size=160),  # platelets: 9 pixels
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_four_photographs_are_overfitted(bccd, tmp_path, monkeypatch, name):
    whole = load_voc(bccd, "trainval")
    four = DetectionDataset(whole.records[3:7], whole.categories)  # each has platelets, the smallest class
    often = DetectionDataset(
        list(four.records) * 10, whole.categories
    )  # fewer epochs and so fewer checkpoints
    monkeypatch.setattr(train_module, "load_splits", lambda config: (often, four))
    outcome = train(
        Config(
            model=MODELS[name],
            augment=AugmentConfig(horizontal_flip=0, brightness=0, contrast=0, saturation=0),
            optimizer=OptimizerConfig(lr=1e-3),
            schedule=ScheduleConfig(kind="onecycle"),
            train=TrainConfig(
                epochs=10, batch_size=2, ema_decay=0, evaluate_every=10, runs=str(tmp_path), device="cpu"
            ),
        )
    )
    assert outcome.result.ap50 >= 0.9
