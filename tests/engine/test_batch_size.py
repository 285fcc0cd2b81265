"""``train.batch_size auto``, with an emulated GPU: memory is a number and running out of it an exception."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import yaml

from fcos_fast.data import load_dataset
from fcos_fast.engine import batch_size as module
from fcos_fast.engine.batch_size import largest, largest_batch, largest_share, with_batch_size
from fcos_fast.engine.step import TrainStep
from fcos_fast.engine.train import train

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capacity", "most", "expected"),
    [
        *((0, 64, 0), (1, 64, 1), (2, 64, 2), (3, 64, 3), (5, 64, 4), (6, 64, 6), (13, 64, 12)),
        *((100, 64, 64), (100, 7, 6), (100, 1, 1), (100, 48, 48), (100, 40, 32)),
    ],
)
def test_the_largest_power_of_two_or_one_and_a_half_times_it(capacity, most, expected):
    tried = []
    assert largest(lambda n: tried.append(n) or n <= capacity, most) == expected
    assert max(tried, default=0) <= most


class Gpu:
    """A GPU with 10 GB free, of which an image needs ``per_image``."""

    def __init__(self, monkeypatch, per_image: float, broken_from: int = 10**9) -> None:
        self.peak, self.cleaned, self.steps, self.per_image = 0.0, 0, [], per_image
        real = TrainStep.__call__

        def step(train_step, images, targets):
            count = len(images.tensor)
            if count >= broken_from or count * per_image > 10e9:
                raise torch.OutOfMemoryError("CUDA out of memory")
            self.steps.append(
                (count, tuple(images.tensor.shape[2:]), train_step.detector.config.average_totals)
            )
            self.peak = max(self.peak, 1e9 + count * per_image)
            if count <= 2:
                real(train_step, images, targets)

        monkeypatch.setattr(TrainStep, "__call__", step)
        emulated = {
            "mem_get_info": lambda _: (int(10e9), int(12e9)),
            "memory_reserved": lambda _: 1e9,
            "max_memory_reserved": lambda _: self.peak,
            "reset_peak_memory_stats": lambda _: setattr(self, "peak", 0.0),
            "empty_cache": lambda: setattr(self, "cleaned", self.cleaned + 1),
        }
        for name, function in emulated.items():
            monkeypatch.setattr(torch.cuda, name, function)


@pytest.fixture(scope="module")
def train_set(voc_root):
    return load_dataset(voc_root, "train")


def test_the_share_of_the_memory_decides(tiny, train_set, monkeypatch):
    """1 GB per image: 8 images use 80 % of the 10 GB, and 12 would not."""
    gpu = Gpu(monkeypatch, per_image=1e9)
    config = replace(tiny, augment=replace(tiny.augment, size=(64, 96)))
    share, why = largest_share(config, train_set, CPU, 64)
    assert share == 8
    assert why == "the largest whose step fits 80% of 10.0 GB free"
    # two steps each, of the size of the images, without exchange between processes; 16 and 12 run out of memory
    assert gpu.steps == [(n, (64, 96), False) for n in (1, 2, 4, 8) for _ in range(2)]
    assert gpu.cleaned == 6


def test_running_out_of_memory_ends_the_search(tiny, train_set, monkeypatch):
    gpu = Gpu(monkeypatch, per_image=1e6, broken_from=4)
    assert largest_share(tiny, train_set, CPU, 64)[0] == 3
    assert gpu.cleaned == 4
    Gpu(monkeypatch, per_image=1e6, broken_from=1)
    with pytest.raises(
        ValueError, match=r"one image, padded to 64x96 pixels, does not fit 8.0 GB; use a smaller"
    ):
        largest_share(tiny, train_set, CPU, 64)


def test_a_process_without_memory_decides_for_all(tiny, train_set, monkeypatch):
    Gpu(monkeypatch, per_image=1e6)
    others = iter([True, True, False, False])
    monkeypatch.setattr(module, "all_agree", lambda fits: fits and next(others))
    assert largest_share(tiny, train_set, CPU, 64)[0] == 2


def test_an_epoch_keeps_its_steps(tiny, monkeypatch):
    """And the batch is split among processes and parts."""
    dataset = SimpleNamespace(__len__=lambda: 0)
    config = replace(tiny, train=replace(tiny.train, batch_size="auto", accumulate=2))
    monkeypatch.setattr(module, "own_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(module, "world_size", lambda: 2)
    seen = []
    monkeypatch.setattr(module, "largest_share", lambda *a: (seen.append(a[-1]) or a[-1], "fits"))
    for images, expected in ((1000, 60), (8, 8), (4, 4)):
        dataset = range(images)
        assert with_batch_size(config, dataset).train.batch_size == expected
    assert seen == [15, 2, 1]


@pytest.mark.parametrize(
    ("size", "min_size", "scale", "expected"),
    [
        ((50, 90), None, 1, (64, 96)),
        (None, None, 1, (64, 96)),
        (None, 128, 1, (128, 192)),
        ((50, 50), (64, 100), 1, (128, 128)),
        (None, None, 1.5, (96, 160)),
    ],
)
def test_the_largest_batch(tiny, train_set, size, min_size, scale, expected):
    augment = replace(tiny.augment, size=size, multi_scale=(1.0, scale))
    model = replace(tiny.model, min_size=min_size, size_divisor=32)
    assert largest_batch(replace(tiny, augment=augment, model=model), train_set) == expected


def test_an_upright_and_a_wide_image_in_one_batch(tiny):
    images = SimpleNamespace(records=SimpleNamespace(sizes=torch.tensor([[90, 50], [50, 90], [60, 60]])))
    model = replace(tiny.model, size_divisor=32)
    assert largest_batch(replace(tiny, model=model), images) == (96, 96)


def test_a_run_on_a_cpu_has_the_number_in_its_config(tiny, capsys):
    config = replace(
        tiny, data=replace(tiny.data, val=""), train=replace(tiny.train, batch_size="auto", steps=1)
    )
    folder = train(config).folder
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["batch_size"] == 2
    line = "train.batch_size auto: 2 (an epoch of 8 images has 4 steps then); it is in config.yaml"
    assert line in capsys.readouterr().out
    assert with_batch_size(config, range(1000)).train.batch_size == 8
    assert "8 (on a CPU a larger batch is not faster)" in capsys.readouterr().out


def test_a_size_that_was_not_resolved_is_an_error(tiny):
    with pytest.raises(ValueError, match="train.batch_size is auto"):
        replace(tiny.train, batch_size="auto").images_per_step  # noqa: B018
    with pytest.raises((TypeError, ValueError), match="train.batch_size='many'"):
        replace(tiny.train, batch_size="many")
