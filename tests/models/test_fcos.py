from __future__ import annotations

import math
import os
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fcos_fast.assignment import IGNORED, GroundTruth
from fcos_fast.models import PRESETS, FCOSConfig, fcos


@pytest.mark.parametrize(
    "overrides",
    [
        {"preset": "official-improved"},
        {"preset": "torchvision"},
        {"centerness_on": "classification", "p6_from": "c5"},
        {"regression": "exp", "regression_unit": "pixel", "box_loss": "iou", "scale": "exp"},
        {"backbone": "darknet19"},
        {"head_norm": "none", "norm": "group", "centerness_weighted": False},
    ],
)
def test_gradients_reach_every_trainable_parameter(small_model, overrides):
    rule = PRESETS[overrides.get("preset", "official-improved")].rule
    model = small_model(rule=replace(rule, sizes_of_interest=(8.0, 16.0, 32.0, 64.0)), **overrides)
    # One box per level, so that each level has a positive location.
    boxes = torch.tensor(
        [[13.0, 13, 22, 22], [30, 30, 46, 46], [60, 60, 85, 85], [40, 40, 110, 110], [0, 0, 250, 250]]
    )
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 1, 2, 0, 1])}]
    losses = model([torch.rand(3, 256, 256)], targets)
    assert set(losses) == {"classification", "bbox_regression", "bbox_ctrness"}
    assert all(loss.shape == () and loss.dtype == torch.float32 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("preset", PRESETS)
def test_batch_without_boxes(small_model, batch, preset):
    model = small_model(preset=preset)
    nothing = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in batch[0]]
    losses = model(batch[0], nothing)
    sum(losses.values()).backward()
    assert losses["classification"] > 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("size_divisor", [1, 32])
@pytest.mark.parametrize("size", [(96, 128), (101, 75), (33, 300)])
def test_levels_are_known_before_the_network_runs(small_model, size, size_divisor):
    model = small_model(size_divisor=size_divisor)
    x = model.transform.batch([torch.rand(3, *size)])
    levels = model.levels(x.padded_size)
    assert [(level.height, level.width) for level in levels] == [
        tuple(p.shape[-2:]) for p in model.backbone(x.tensor)
    ]


def test_detections_do_not_depend_on_the_other_images(small_model, make_talkative, batch):
    model = small_model(min_size=100, max_size=150).eval()
    make_talkative(model)
    images = [*batch[0], torch.rand(3, 95, 127)]  # the last shares its padded size with the first
    for found, image in zip(model(images), images, strict=True):
        (alone,) = model([image])
        assert len(alone["scores"]) > 20
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-2)


def test_padding_has_no_gradient(small_model, batch):
    model = small_model(size_divisor=1)
    images, targets = batch
    seen = {}
    model.head.register_forward_hook(lambda _module, _inputs, outputs: seen.update(outputs._asdict()))
    losses = model(images, targets)
    for maps in seen.values():
        for x in maps:
            x.retain_grad()
    sum(losses.values()).backward()
    for level, stride in enumerate(FCOSConfig().strides):
        gradient = seen["cls_logits"][level].grad.abs().sum(1)  # (B, H, W)
        for image, of_image in zip(images, gradient, strict=True):
            height, width = image.shape[1:]
            inside = (math.ceil((height - stride // 2) / stride), math.ceil((width - stride // 2) / stride))
            mask = torch.zeros_like(of_image, dtype=torch.bool)
            mask[: max(inside[0], 0), : max(inside[1], 0)] = True
            assert (of_image[mask] > 0).all()
            assert (of_image[~mask] == 0).all()


def test_torchvision_trains_on_padding(small_model, batch):
    model = small_model(preset="torchvision")
    images = model.transform.batch(batch[0])
    gt = GroundTruth.pack([t["boxes"] for t in batch[1]], [t["labels"] for t in batch[1]])
    assert not (model.assign(images, gt).labels == IGNORED).any()


def test_detections_are_in_pixels_of_the_original_image(small_model, make_talkative):
    image = torch.rand(3, 50, 80)
    plane = {"inclusive_boxes": False, "inclusive_targets": False}
    model = small_model(min_size=None, size_divisor=32, **plane).eval()
    make_talkative(model)
    zoomed = small_model(min_size=100, **plane).eval()
    zoomed.load_state_dict(model.state_dict())
    large = torch.nn.functional.interpolate(image[None], size=(100, 160), mode="bilinear")[0]
    (small,), (expected,) = zoomed([image]), model([large])
    torch.testing.assert_close(small["boxes"] * 2, expected["boxes"], rtol=1e-4, atol=1e-2)
    assert (small["boxes"] >= 0).all()
    assert (small["boxes"] <= torch.tensor([80, 50, 80, 50])).all()


def test_inputs_are_not_changed(small_model, batch):
    images, targets = batch
    copies = [image.clone() for image in images], [{k: v.clone() for k, v in t.items()} for t in targets]
    model = small_model(min_size=64)
    model(images, targets)
    model.eval()(images)
    assert all(a.equal(b) for a, b in zip(images, copies[0], strict=True))
    assert all(t[k].equal(c[k]) for t, c in zip(targets, copies[1], strict=True) for k in t)


def test_bfloat16_autocast(small_model, batch):
    model = small_model(norm="group").to(memory_format=torch.channels_last)
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(*batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)
    model.eval()
    with torch.autocast("cpu", torch.bfloat16):
        for found in model(batch[0]):
            assert found["boxes"].dtype == found["scores"].dtype == torch.float32


def test_the_state_dict_contains_only_weights():
    model = fcos("resnet18", 3)
    assert {key.split(".")[0] for key in model.state_dict()} == {"backbone", "head"}
    again = fcos("resnet18", 3)
    again.load_state_dict(model.state_dict(), strict=True)


def test_frozen_backbone_stages_have_no_gradient(small_model):
    model = small_model(trainable_stages=2)
    trainable = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad and "body" in n}
    assert trainable == {"layer3", "layer4"}
    assert all(p.requires_grad for n, p in model.named_parameters() if "body" not in n)


def _loss_of_one_process(rank: int, folder: str, model, images, targets) -> None:
    store = dist.FileStore(os.path.join(folder, "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    losses = model([images[rank]], [targets[rank]])
    torch.save({name: loss.detach() for name, loss in losses.items()}, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_normalizers_are_all_reduced(small_model, batch, tmp_path):
    """The mean of the processes' losses equals the loss of one process with all images."""
    model = small_model(norm="frozen")
    images, targets = [batch[0][0]] * 2, [batch[1][0], batch[1][1]]  # the second process has no boxes
    expected = model(images, targets)
    mp.spawn(_loss_of_one_process, (str(tmp_path), model, images, targets), nprocs=2)
    losses = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name, value in expected.items():
        torch.testing.assert_close((losses[0][name] + losses[1][name]) / 2, value.detach())
