"""mmdetection's FCOS-R50 and RetinaNet-R50 with and without ``accelerate``, two images of 800x1088.

Loss stage: ``loss_by_feat`` and its backward pass, from the outputs of the head. Predict stage: ``predict_by_feat``.
Training step: forward, losses, backward. The floor of the stages is one copy of the head's outputs.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch

from benchmarks.case import Case
from benchmarks.rows import OURS

pytest.importorskip("mmdet", reason="mmdetection is not installed; it comes with fcos_fast[interop]")

from benchmarks.integrations.mmdet_models import CONFIGS, build, head_outputs, make_batch

FLOOR_OF_STAGES = "floor: a copy of the head's outputs"


def total(losses) -> torch.Tensor:
    return sum(sum(loss) if isinstance(loss, list) else loss for loss in losses.values())


def loss_data(device, name, boxes):
    images, samples = make_batch(device, boxes)
    maps = [[x.requires_grad_() for x in kind] for kind in head_outputs(name, images, training=True)]
    return maps, samples


def losses(name, accelerated):
    def run(maps, samples):
        head = build(name, accelerated).bbox_head.train()
        leaves = [x for kind in maps for x in kind]
        loss = total(
            head.loss_by_feat(*maps, [s.gt_instances for s in samples], [s.metainfo for s in samples])
        )
        return loss.detach(), torch.autograd.grad(loss, leaves)

    return run


def predict_data(device, name):
    images, samples = make_batch(device, 20)
    return head_outputs(name, images, training=False), samples


def predict(name, accelerated):
    @torch.no_grad()
    def run(maps, samples):
        head = build(name, accelerated).bbox_head.eval()
        return head.predict_by_feat(*maps, batch_img_metas=[s.metainfo for s in samples], rescale=True)

    return run


def step(name, accelerated, winograd=False):
    def run(images, samples):
        model = build(name, accelerated, winograd).train()
        model.zero_grad()
        loss = total(model(images, copy.deepcopy(samples), mode="loss"))
        loss.backward()
        return loss.detach()

    return run


def copies(maps, samples):
    return [x.detach().clone() for kind in maps for x in kind]


def check_losses(result, expected, data):
    torch.testing.assert_close(result[0], expected[0], rtol=1e-5, atol=0)
    for found, wanted in zip(result[1], expected[1], strict=True):
        assert (found - wanted).norm() <= 1e-4 * wanted.norm() + 1e-9


def check_detections(result, expected, data):
    for found, wanted in zip(result, expected, strict=True):
        assert torch.equal(found.labels, wanted.labels)
        torch.testing.assert_close(found.bboxes, wanted.bboxes, rtol=1e-4, atol=1e-2)


def check_loss(result, expected, data):
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=0)


def rows(stage, name):
    return {"mmdetection": stage(name, False), OURS: stage(name, True), FLOOR_OF_STAGES: copies}


def rows_of_step(name, winograd):
    return {"mmdetection": step(name, False), OURS: step(name, True, winograd)}


COMMON = {"synchronizes": True, "peer_synchronizes": True}
CASES = [
    *(
        Case(
            "mmdet_loss",
            f"{name}, {boxes} boxes per image",
            functools.partial(loss_data, name=name, boxes=boxes),
            rows(losses, name),
            check_losses,
            **COMMON,
        )
        for name in CONFIGS
        for boxes in (20, 100)
    ),
    *(
        Case(
            "mmdet_predict",
            name,
            functools.partial(predict_data, name=name),
            rows(predict, name),
            check_detections,
            **COMMON,
        )
        for name in CONFIGS
    ),
    *(
        Case(
            "mmdet_step",
            f"{name}, 20 boxes per image{', winograd=True' * winograd}",
            functools.partial(make_batch, boxes=20),
            rows_of_step(name, winograd),
            check_loss,
            **COMMON,
        )
        for name in CONFIGS
        for winograd in (False, True)
    ),
]


def test_mmdet(time_row):
    time_row()
