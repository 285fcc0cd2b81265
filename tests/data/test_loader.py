from __future__ import annotations

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from fcos_fast.data import (
    AugmentConfig,
    Categories,
    DataError,
    DetectionDataset,
    EpochBatchSampler,
    Record,
    collate,
    eval_loader,
    load_voc,
    synthetic_dataset,
    train_loader,
)
from fcos_fast.data.loader import default_workers, repeat_factors
from fcos_fast.models import BatchPacker, FCOSConfig

AUGMENT = AugmentConfig((60, 80), (0.5, 1.5), iou_crop=0.5)


def epochs(loader: DataLoader, numbers: list[int]) -> list[list[tuple]]:
    """The samples that the loader yields in these epochs."""
    result = []
    for number in numbers:
        loader.batch_sampler.set_epoch(number)
        result.append([sample for batch in loader for sample in zip(*batch, strict=True)])
    return result


def same(a: list[tuple], b: list[tuple]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y) and s["image_id"] == t["image_id"] and torch.equal(s["boxes"], t["boxes"])
        for (x, s), (y, t) in zip(a, b, strict=True)
    )


def test_collate_keeps_sizes():
    a, b = torch.zeros(3, 4, 5), torch.zeros(3, 6, 7)
    images, targets = collate([(a, {"image_id": 0}), (b, {"image_id": 1})])
    assert images[0] is a
    assert images[1] is b
    assert targets == [{"image_id": 0}, {"image_id": 1}]


def indices(sampler: EpochBatchSampler) -> list[list[int]]:
    return [[key.image for key in batch] for batch in sampler]


def test_every_epoch_has_another_permutation():
    sampler = EpochBatchSampler(100, 4, seed=3)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert {(len(batch), key.epoch) for batch in batches for key in batch} == {(4, epoch)}
        orders.append([key.image for batch in batches for key in batch])
        assert sorted(orders[-1]) == list(range(100))
    assert orders[0] == orders[2] != orders[1]
    assert indices(EpochBatchSampler(100, 4, seed=4)) != indices(EpochBatchSampler(100, 4, seed=3))


RATIOS = [1.5] * 13 + [0.6] * 9 + [1.0] * 5 + [4.0] * 3
GROUPS = np.digitize(RATIOS, [0.8, 1.2, 2])


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_every_batch(groups, world_size):
    shards = [
        EpochBatchSampler(30, 4, seed=3, groups=groups, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    whole = EpochBatchSampler(30, 4, seed=3, groups=groups)
    for epoch in range(2):
        for sampler in (whole, *shards):
            sampler.set_epoch(epoch)
        shared = [list(chain(*parts)) for parts in zip(*map(indices, shards), strict=True)]
        assert shared == indices(whole)
        assert len(shared) == len(whole) == len(shards[0]) == 7


def test_batches_of_groups():
    """Groups of 13, 9, 5 and 3 images in batches of 4: at least 3 + 2 + 1 batches contain one group; none is lost."""
    sampler = EpochBatchSampler(30, 4, groups=GROUPS)
    seen, first = set(), set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        batches = indices(sampler)
        drawn = [index for batch in batches for index in batch]
        assert len(drawn) == len(set(drawn)) == 28
        pure = [batch for batch in batches if len(set(GROUPS[batch])) == 1]
        # the two dropped images can cost two groups a batch
        assert len(pure) >= 4
        seen.update(drawn)
        first.add(GROUPS[batches[0]][0])
    assert seen == set(range(30))  # other images are dropped each time, also of the smallest group
    assert len(first) > 2  # groups are shuffled


REPEATS = np.array([1.0] * 20 + [2.5] * 8 + [1.3] * 2)  # 42.6 samples per epoch


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_repeats(groups):
    """Each sample comes its number of times, rounded up or down; on average exactly."""
    whole = EpochBatchSampler(30, 4, seed=1, groups=groups, repeats=REPEATS)
    shards = [EpochBatchSampler(30, 4, 1, groups, rank, 2, REPEATS) for rank in range(2)]
    counts = []
    for epoch in range(400):
        for sampler in (whole, *shards):
            sampler.set_epoch(epoch)
        batches = list(whole)
        assert len(batches) == len(whole) == 10
        keys = list(chain(*batches))
        assert len(set(keys)) == 40  # those of one image differ in repeat, so they are augmented differently
        drawn = np.bincount([key.image for key in keys], minlength=30)
        assert (drawn <= np.ceil(REPEATS)).all()
        assert {key.repeat for key in keys} <= {0, 1, 2}
        counts.append(drawn)
        if epoch < 3:
            assert [list(chain(*parts)) for parts in zip(*shards, strict=True)] == batches
    # 40 of 42 or 43 samples; the standard error of a mean is at most 0.025
    np.testing.assert_allclose(np.mean(counts, axis=0), REPEATS * 40 / REPEATS.sum(), atol=0.1)


def test_repeats_of_one_are_a_permutation():
    keys = list(chain(*EpochBatchSampler(30, 5, repeats=np.ones(30))))
    assert sorted(key.image for key in keys) == list(range(30))
    assert {key.repeat for key in keys} == {0}


def test_repeat_factors():
    """Classes a, b, c are in 10, 4 and 1 of 10 images; the ignored box of c in the second image does not count."""
    labels = [[0]] * 6 + [[0, 1]] * 3 + [[0, 1, 2, 2]]
    labels[1] = [0, 2]
    records = [
        Record(
            "x",
            (9, 9),
            np.zeros((len(a), 4)),
            np.array(a),
            np.array([i == 1 and x == 2 for x in a]),
            np.zeros(1),
        )
        for i, a in enumerate(labels)
    ]
    records.append(
        Record("empty", (9, 9), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), np.zeros(1))
    )
    data = DetectionDataset(records, Categories(("a", "b", "c", "never")))
    expected = [1.0] * 6 + [(0.5 * 11 / 4) ** 0.5] * 3 + [(0.5 * 11) ** 0.5, 1.0]
    np.testing.assert_allclose(repeat_factors(data, 0.5), expected)
    assert (repeat_factors(data, 0.01) == 1).all()
    loader = train_loader(data, 2, repeat_threshold=0.5)
    assert len(loader) == int(sum(expected)) // 2


def test_images_are_grouped_unless_they_have_a_fixed_size():
    data = synthetic_dataset(12)
    wide, high = data.records[0].size, data.records[0].size[::-1]
    data.records = [replace(r, size=wide if i % 2 else high) for i, r in enumerate(data.records)]
    assert wide[0] > wide[1]

    def mixed(**options) -> bool:
        batches = indices(train_loader(data, 3, **options).batch_sampler)
        return any(len({i % 2 for i in batch}) == 2 for batch in batches)

    assert not mixed()
    assert mixed(group_by_aspect_ratio=False)
    assert mixed(augment=AUGMENT)
    assert not mixed(augment=AUGMENT, group_by_aspect_ratio=True)


def test_ranks_augment_like_a_single_process():
    """Including multi-scale sizes, which are drawn when an image is read."""
    data = synthetic_dataset(8)
    packer = BatchPacker(FCOSConfig(backbone="resnet18", num_classes=6, min_size=(32, 48, 64), max_size=None))
    augment = AugmentConfig(iou_crop=0.5)

    def images(batch_size: int, **shard: int) -> list[list[torch.Tensor]]:
        loader = train_loader(data, batch_size, augment, seed=1, packer=packer, **shard)
        return [
            [image[:, :h, :w] for image, (h, w) in zip(images.tensor, images.sizes, strict=True)]
            for images, _ in loader
        ]

    whole = images(4)
    torch.rand(5)  # changes the state of torch's generator
    shards = [images(4, rank=rank, world_size=2) for rank in range(2)]
    assert len({image.shape for batch in whole for image in batch}) > 2
    for batch, *parts in zip(whole, *shards, strict=True):
        for a, b in zip(batch, chain(*parts), strict=True):
            torch.testing.assert_close(a.float(), b.float())


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


def test_spawned_workers():
    data = synthetic_dataset(4)
    loader = train_loader(data, 2, AUGMENT, workers=1)
    spawned = DataLoader(
        loader.dataset,
        batch_sampler=loader.batch_sampler,
        num_workers=1,
        collate_fn=collate,
        multiprocessing_context="spawn",
    )
    assert same(epochs(train_loader(data, 2, AUGMENT), [0])[0], epochs(spawned, [0])[0])


def test_evaluation_uses_every_image_in_order():
    data = synthetic_dataset(5)
    targets = [target for _, batch in eval_loader(data, batch_size=2) for target in batch]
    assert [target["image_id"] for target in targets] == [0, 1, 2, 3, 4]
    assert np.array_equal(targets[4]["boxes"], data.records[4].boxes)


def test_ranks_get_whole_evaluation_batches():
    data = synthetic_dataset(7)
    images = [
        [[target["image_id"] for target in batch] for _, batch in eval_loader(data, 2, 0, rank, 3)]
        for rank in range(3)
    ]
    assert images == [[[0, 1], [6]], [[2, 3]], [[4, 5]]]


def test_batch_larger_than_the_dataset():
    with pytest.raises(ValueError, match="batch_size is 4 but the dataset has 3 images"):
        train_loader(synthetic_dataset(3), batch_size=4)


def test_batch_that_the_ranks_cannot_share():
    with pytest.raises(ValueError, match="batch_size is 3, .* with 2 processes use a multiple of 2"):
        train_loader(synthetic_dataset(6), batch_size=3, world_size=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_a_one_line_error_from_a_worker_too(make_voc, workers):
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
def test_default_workers(gpu, processors, processes, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers() == expected


def test_default_without_a_gpu_is_no_workers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert eval_loader(synthetic_dataset(2), 1, workers=None).num_workers == 0


def test_workers_draw_the_same_sizes():
    """The size of each image depends only on the seed and the epoch. A worker's single thread may round differently."""
    data = synthetic_dataset(8)
    config = FCOSConfig(num_classes=6, min_size=(48, 64, 80, 96), max_size=200)
    augment = AugmentConfig(brightness=0, contrast=0, saturation=0)

    def batches(workers):
        loader = train_loader(data, 2, augment, seed=3, workers=workers, packer=BatchPacker(config))
        loader.batch_sampler.set_epoch(1)
        return list(loader)

    here, there = batches(0), batches(2)
    assert len({images.tensor.shape for images, _ in here}) > 1
    for (images, gt), (other_images, other_gt) in zip(here, there, strict=True):
        assert images.sizes == other_images.sizes
        for a, b in zip(
            (*images.tensors(), *gt.tensors()), (*other_images.tensors(), *other_gt.tensors()), strict=True
        ):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-3)  # pixels are -128 to 152


def test_batches_for_the_cpu_of_a_machine_with_a_gpu(monkeypatch):
    """Without pinned memory and workers, which are for the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    data = synthetic_dataset(2)
    for make in (train_loader, eval_loader):
        for_cpu, for_gpu = (make(data, 1, device=torch.device(name)) for name in ("cpu", "cuda"))
        assert (for_cpu.num_workers, for_cpu.pin_memory) == (0, False)
        assert for_gpu.num_workers > 0
        assert for_gpu.pin_memory
        assert make(data, 1).num_workers == for_gpu.num_workers
