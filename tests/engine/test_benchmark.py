"""Timing a detector: what is timed, in which order, and that the model does not change."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

from fcos_fast.engine.benchmark import STAGES, benchmark, make_talkative, time_stages
from fcos_fast.models import FCOS, PRESETS, build_detector
from tests.engine.conftest import TINY_MODEL


@pytest.fixture
def files(voc_root):
    return sorted((voc_root / "JPEGImages").iterdir())[:3]


@pytest.fixture
def model():
    return FCOS(TINY_MODEL).eval()


def _slowed(method, seconds: float):
    def run(*args):
        time.sleep(seconds)
        return method(*args)

    return run


def test_each_stage_is_timed_separately(model, files):
    model.network = _slowed(model.network, 0.4)
    model.postprocess = _slowed(model.postprocess, 0.3)
    model.transform.forward = _slowed(model.transform.forward, 0.1)
    own = model.network
    start = time.perf_counter()
    times, found = time_stages(model, torch.float32, files[:2])
    whole = 1000 * (time.perf_counter() - start)
    assert set(times) == set(STAGES)
    assert 400 <= times["network"] < whole - 300 - 200
    assert 300 <= times["post-process"] < whole - 400 - 200
    assert 200 <= times["pre-process"] < whole - 400 - 300
    assert 0 < times["decode"] < whole - 900
    assert sum(times.values()) <= whole
    assert len(found) == 2
    assert model.network is own


def test_the_model_keeps_its_own_methods(model, files):
    time_stages(model, torch.float32, files[:1])
    assert "network" not in vars(model)
    assert "postprocess" not in vars(model)


def test_models_run_interleaved_on_the_same_images(model, files):
    ran = []
    models = {name: (FCOS(TINY_MODEL).eval(), torch.float32) for name in ("a", "b")}
    for name, (own, _) in models.items():
        own.transform.batch = _recorded(own.transform.batch, ran, name)
    timings = benchmark(models, files, batch_size=2, repeats=3, warmup=1)
    assert [name for name, _ in ran] == ["a", "b"] * 4
    seen = [[float(image.sum()) for image in images] for _, images in ran]
    assert seen[0::2] == seen[1::2]
    assert (
        seen[0][0] == seen[1][0] != seen[2][0]
    )  # three files in batches of two: each batch starts at another file
    for timing in timings.values():
        summary = timing.summary()
        assert summary["samples"] == 3
        assert 0 < summary["p20_ms"] <= summary["p50_ms"] <= summary["p80_ms"]
        assert summary["images_per_s"] == pytest.approx(2000 / summary["p50_ms"])


def _recorded(method, ran: list, name: str):
    def run(images):
        ran.append((name, images))
        return method(images)

    return run


def test_runs_under_autocast(model, files):
    seen = []
    model.network = lambda x: seen.append(torch.is_autocast_enabled("cpu")) or FCOS.network(model, x)
    for dtype in (torch.float32, torch.bfloat16):
        time_stages(model, dtype, files[:1])
    assert seen == [False, True]


@pytest.mark.parametrize(
    "overrides",
    [
        {"preset": "official-improved"},
        {"preset": "torchvision"},
        {"preset": "retinanet"},
        {"regression": "exp", "regression_unit": "pixel", "centerness_on": "classification"},
    ],
)
def test_random_weights_send_as_much_to_nms_as_a_trained_model(overrides):
    small = {"num_classes": 20, "fpn_channels": 32, "head_channels": 64, "head_convs": 1, "min_size": None}
    preset = PRESETS[overrides.get("preset", "official-improved")]
    changed = {name: value for name, value in overrides.items() if name != "preset"}
    model = build_detector(replace(preset, backbone="resnet18", **small, **changed))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    image = torch.randint(256, (3, 128, 160), dtype=torch.uint8)
    assert len(model.eval()([image])[0]["scores"]) in (0, 100)  # nothing, or everything
    talkative = make_talkative(model, image, candidates=300)
    batch = talkative.transform.batch([talkative.transform(image)])
    outputs = talkative.network(batch.tensor)
    passing = 0
    for level, logits in enumerate(outputs.cls_logits):
        score = logits.sigmoid()
        if isinstance(model, FCOS) and model.config.threshold_on == "score":
            score = (score * outputs.centerness[level].sigmoid()).sqrt()
        passing += int((score > model.config.score_threshold).sum())
    assert 200 <= passing <= 400
    (found,) = talkative([image])
    assert 20 <= len(found["scores"]) <= 100
    assert len(found["labels"].unique()) > 5
    sides = (found["boxes"][:, 2:] - found["boxes"][:, :2]).median()
    assert 10 < sides < 160
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
