from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fcos_fast.data import (
    AugmentConfig,
    DataError,
    EpochSampler,
    collate,
    eval_loader,
    load_voc,
    synthetic_dataset,
    train_loader,
)
from fcos_fast.data.loader import default_workers

AUGMENT = AugmentConfig((60, 80), (0.5, 1.5), iou_crop=0.5)


def epochs(loader: DataLoader, numbers: list[int]) -> list[list[tuple]]:
    """Everything the loader yields in these epochs, sample by sample."""
    result = []
    for number in numbers:
        loader.sampler.set_epoch(number)
        result.append([sample for batch in loader for sample in zip(*batch, strict=True)])
    return result


def same(a: list[tuple], b: list[tuple]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and s["image_id"] == t["image_id"] and torch.equal(s["boxes"], t["boxes"])
        for (x, s), (y, t) in zip(a, b, strict=True)
    )


def test_collate_keeps_sizes_apart():
    a, b = torch.zeros(3, 4, 5), torch.zeros(3, 6, 7)
    images, targets = collate([(a, {"image_id": 0}), (b, {"image_id": 1})])
    assert images[0] is a
    assert images[1] is b
    assert targets == [{"image_id": 0}, {"image_id": 1}]


def test_every_epoch_is_another_permutation():
    sampler = EpochSampler(100, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert {e for e, _ in keys} == {epoch}
        orders.append([i for _, i in keys])
        assert sorted(orders[-1]) == list(range(100))
    assert orders[0] == orders[2] != orders[1]
    assert [i for _, i in EpochSampler(100, seed=4)] != orders[0]


def test_training_batches():
    loader = train_loader(synthetic_dataset(10), batch_size=4, augment=AUGMENT)
    batches = list(loader)
    assert len(batches) == len(loader) == 2
    images, targets = batches[0]
    assert [image.shape for image in images] == [(3, 60, 80)] * 4
    assert targets[0]["boxes"].shape == (len(targets[0]["labels"]), 4)


def test_epochs_do_not_depend_on_workers_or_history():
    data = synthetic_dataset(9)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    here = epochs(train_loader(data, 4, AUGMENT, seed=5), [0, 1, 2])
    assert torch.equal(torch.get_rng_state(), state)
    there = epochs(train_loader(data, 4, AUGMENT, seed=5, workers=2), [0, 1, 2])
    resumed = epochs(train_loader(data, 4, AUGMENT, seed=5), [2])
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert same(here[2], resumed[0])
    assert not same(here[0], here[1])


def test_workers_started_afresh_as_on_systems_without_fork():
    data = synthetic_dataset(4)
    loader = train_loader(data, 2, AUGMENT, workers=1)
    spawned = DataLoader(
        loader.dataset,
        2,
        sampler=loader.sampler,
        num_workers=1,
        collate_fn=collate,
        multiprocessing_context="spawn",
    )
    assert same(epochs(train_loader(data, 2, AUGMENT), [0])[0], epochs(spawned, [0])[0])


def test_evaluation_takes_every_image_in_order():
    data = synthetic_dataset(5)
    targets = [target for _, batch in eval_loader(data, batch_size=2) for target in batch]
    assert [target["image_id"] for target in targets] == [0, 1, 2, 3, 4]
    assert np.array_equal(targets[4]["boxes"], data.records[4].boxes)


def test_batch_larger_than_the_data_set():
    with pytest.raises(ValueError, match="batch_size is 4 but the data set has 3 images"):
        train_loader(synthetic_dataset(3), batch_size=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_one_line_also_from_a_worker(make_voc, workers):
    data = load_voc(make_voc({"a": [("cat", (1, 2, 30, 20))]}))
    file = data.records[0].image
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(DataError) as caught:
        next(iter(eval_loader(data, 1, workers)))
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gpu", "processors", "processes", "expected"),
    [(False, 16, 1, 0), (True, 64, 1, 8), (True, 8, 2, 3), (True, 1, 1, 1)],
)
def test_workers_by_default(gpu, processors, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers() == expected


def test_a_loader_without_a_gpu_has_no_workers_by_default(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert eval_loader(synthetic_dataset(2), 1, workers=None).num_workers == 0
