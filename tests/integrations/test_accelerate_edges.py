"""Edge cases of accelerated models: 16 bits, labels, hooks, replaced parts."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import fcos_fast

pytest.importorskip("torchvision")
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import sigmoid_focal_loss

from tests.integrations.detectors import (
    NUM_CLASSES,
    assert_same_step,
    detect,
    prepare,
    small_fcos,
    small_retinanet,
    train_step,
)

# ---- 16 bits


def outputs_of(model):
    """The outputs of the head in each call, by name."""
    seen = []
    model.head.register_forward_hook(lambda _module, _inputs, outputs: seen.append(outputs))
    return seen


@pytest.mark.parametrize("box_loss", ["l1", "smooth_l1", "giou"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_losses_of_16_bit_outputs_are_summed_in_float32(batch, precision, box_loss):
    """Against torchvision's losses of the same outputs in float64, to exclude the network's rounding."""
    model = prepare(small_retinanet())
    model.head.regression_head._loss_type = box_loss
    plain = copy.deepcopy(model).double().train()
    fcos_fast.accelerate(model, precision=precision)
    seen = outputs_of(model)
    model.train()
    losses = model(*batch)
    (outputs,) = seen
    assert {x.dtype for x in outputs.values()} == {getattr(torch, precision)}
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    images = [image.double() for image in batch[0]]
    plain.head.forward = lambda _: {name: x.detach().double() for name, x in outputs.items()}
    for name, expected in plain(images, batch[1]).items():
        torch.testing.assert_close(losses[name].double(), expected, rtol=1e-5, atol=0)


def test_a_large_classification_loss_is_finite_in_float16(batch):
    """Its sum exceeds 65504, the largest number of float16."""
    model = prepare(small_retinanet())
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.fill_(12.0)
    fcos_fast.accelerate(model, precision="float16")
    seen = []
    model.head.register_forward_hook(lambda _m, _i, outputs: seen.append(outputs["cls_logits"]))
    losses = model.train()(*batch)
    (logits,) = seen
    total = sigmoid_focal_loss(logits.double(), torch.zeros_like(logits).double(), reduction="sum")
    assert total > 3 * 65504
    assert losses["classification"].isfinite()
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ---- Infinite outputs of background anchors


@pytest.mark.parametrize("box_loss", ["l1", "giou"])
def test_an_infinite_delta_of_a_background_anchor(batch, box_loss):
    model = prepare(small_retinanet())
    model.head.regression_head._loss_type = box_loss
    fcos_fast.accelerate(model).train()
    losses = model(*batch)
    deltas = []

    def corrupt(_module, _inputs, outputs):
        outputs = outputs.detach().clone()
        outputs[1] = math.inf  # the second image has no boxes
        outputs.requires_grad_()
        deltas.append(outputs)
        return outputs

    model.head.regression_head.register_forward_hook(corrupt)
    again = model(*batch)
    torch.testing.assert_close(again["bbox_regression"], losses["bbox_regression"])
    again["bbox_regression"].backward()
    assert deltas[0].grad.isfinite().all()
    assert (deltas[0].grad[1] == 0).all()
    assert (deltas[0].grad[0] != 0).any()


# ---- Labels


def columns(targets):
    return [target | {"labels": target["labels"][:, None]} for target in targets]


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
def test_labels_may_be_a_column(build, batch):
    """Also for an image without boxes: labels (0, 1) with boxes (0, 4)."""
    images, targets = batch
    model = prepare(build())
    expected = train_step(fcos_fast.accelerate(copy.deepcopy(model)), batch)
    assert_same_step(train_step(fcos_fast.accelerate(model), (images, columns(targets))), expected, 1e-6)


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
def test_label_columns_equal_torchvision(build, batch):
    """Both accept labels (0, 1) without boxes; torchvision's RetinaNet accepts columns if all boxes have one class."""
    images, targets = batch
    targets = [target | {"labels": torch.full_like(target["labels"], 3)} for target in targets]
    targets[1]["labels"] = targets[1]["labels"][:, None]
    if build is small_retinanet:
        targets = columns(targets[:1]) + targets[1:2] + columns(targets[2:])
    model = prepare(build())
    expected = train_step(copy.deepcopy(model), (images, targets))
    assert_same_step(train_step(fcos_fast.accelerate(model), (images, targets)), expected, 1e-5)


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
@pytest.mark.parametrize("shape", [(1,), (2, 2), (1, 2), ()])
def test_other_label_shapes_are_rejected(build, batch, shape):
    model = fcos_fast.accelerate(build()).train()
    images, targets = batch
    with pytest.raises(ValueError, match="image 0 has boxes of shape"):
        model(images, [targets[0] | {"labels": torch.zeros(shape, dtype=torch.int64)}, *targets[1:]])


# ---- Hooks


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
def test_hooks_on_the_anchor_generator_are_called(build, batch):
    model = prepare(build())
    called, expected = [], []
    theirs = copy.deepcopy(model)
    theirs.anchor_generator.register_forward_hook(lambda _m, _i, anchors: expected.append(anchors))
    fcos_fast.accelerate(model)
    model.anchor_generator.register_forward_pre_hook(lambda _m, _i: called.append("before"))
    model.anchor_generator.register_forward_hook(lambda _m, _i, anchors: called.append(anchors))
    for run in (lambda m: train_step(m, batch), lambda m: detect(m, batch[0])):
        run(model)
        run(theirs)
        assert called[0] == "before"
        assert len(called) == 2
        for ours, anchors in zip(called[1], expected[0], strict=True):
            torch.testing.assert_close(ours, anchors)
        called.clear()
        expected.clear()


def test_a_hook_that_moves_the_anchors(batch):
    """FCOS computes its own locations and raises; RetinaNet uses the anchors of the hook."""
    fcos, retinanet = prepare(small_fcos()), prepare(small_retinanet())
    for model in (fcos, retinanet):
        model.anchor_generator.register_forward_hook(lambda _m, _i, found: [anchors + 4 for anchors in found])
    theirs = copy.deepcopy(retinanet)
    fcos_fast.accelerate(fcos)
    with pytest.raises(RuntimeError, match="hook on model.anchor_generator"):
        train_step(fcos, batch)
    with pytest.raises(RuntimeError, match=r"fcos_fast\.restore"):
        detect(fcos, batch[0])
    assert_same_step(train_step(fcos_fast.accelerate(retinanet), batch), train_step(theirs, batch), 1e-5)


# ---- Replaced parts


def _classification_head(model):
    model.head.classification_head = FCOSClassificationHead(64, 1, NUM_CLASSES, 4)


def _fcos_head(model):
    model.head = FCOSHead(64, 1, NUM_CLASSES, 4)


def _fcos_anchors(model):
    model.anchor_generator = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)


def _retinanet_head(model):
    model.head = RetinaNetHead(64, 6, NUM_CLASSES)


@pytest.mark.parametrize(
    ("build", "replace", "name"),
    [
        (small_fcos, _classification_head, r"model\.head\.classification_head .* FCOSClassificationHead"),
        (small_fcos, _fcos_head, r"model\.head .* FCOSHead"),
        (small_fcos, _fcos_anchors, r"model\.anchor_generator .* AnchorGenerator"),
        (small_retinanet, _retinanet_head, r"model\.head .* RetinaNetHead"),
    ],
)
def test_replaced_parts_are_named(build, replace, name, batch):
    model = fcos_fast.accelerate(prepare(build()))
    replace(model)
    prepare(model)
    theirs = fcos_fast.restore(copy.deepcopy(model))
    expected = train_step(theirs, batch)
    for run in (lambda: train_step(model, batch), lambda: detect(model, batch[0])):
        with pytest.raises(RuntimeError, match=name):
            run()
    assert_same_step(train_step(fcos_fast.accelerate(model), batch), expected, 1e-5)


def test_a_replica_of_data_parallel_has_replaced_parts(batch):
    model = fcos_fast.accelerate(prepare(small_retinanet()))
    replica = model._replicate_for_data_parallel()
    for name in ("backbone", "head", "anchor_generator"):
        setattr(replica, name, getattr(model, name)._replicate_for_data_parallel())
    assert_same_step(train_step(replica, batch), train_step(model, batch), 1e-5)


def test_layers_inside_a_part_may_be_replaced(batch):
    """As in fine-tuning to other classes."""
    model = fcos_fast.accelerate(prepare(small_fcos()))
    model.head.classification_head.cls_logits = nn.Conv2d(64, 9, 3, padding=1)
    model.head.classification_head.num_classes = 9
    expected = train_step(fcos_fast.restore(copy.deepcopy(model)), batch)
    assert_same_step(train_step(model, batch), expected, 1e-5)


# ---- Others


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
@pytest.mark.parametrize("contained", [False, True])
def test_scripting_error(build, contained):
    model = fcos_fast.accelerate(build())
    with pytest.raises(TypeError, match=r"fcos_fast\.restore"):
        torch.jit.script(nn.Sequential(model) if contained else model)


def test_degenerate_boxes(batch):
    """Torchvision's AssertionError, on the host and with FCOS_FAST_CHECK=1."""
    images, targets = batch
    for boxes in ([[5.0, 5, 5, 9]], [[5.0, 9, 9, 9]], [[9.0, 5, 5, 9]]):
        wrong = [targets[0] | {"boxes": torch.tensor(boxes), "labels": torch.tensor([1])}, *targets[1:]]
        for model in (small_fcos(), fcos_fast.accelerate(small_fcos())):
            with pytest.raises(AssertionError):
                model.train()(images, wrong)


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
def test_unused_losses(build, batch):
    """Parameters that only an unused loss depends on have the same gradient, None or zeros, as in torchvision."""
    model = prepare(build())
    gradients = []
    for net in (copy.deepcopy(model), fcos_fast.accelerate(model)):
        losses = net.train()(*batch)
        losses["classification"].backward()
        gradients.append({name: p.grad is None for name, p in net.named_parameters()})
    assert gradients[0] == gradients[1]
