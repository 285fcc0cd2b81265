"""``fcos_fast.accelerate`` against torchvision's own FCOS and RetinaNet with the same weights."""

from __future__ import annotations

import copy
import io
from functools import partialmethod

import pytest
import torch
from torch import nn

import fcos_fast
from fcos_fast.models import winograd
from fcos_fast.models.norm import GroupNormReLU
from fcos_fast.models.winograd import WinogradConv2d

pytest.importorskip("torchvision")
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d

from fcos_fast.integrations.layers import FoldedConv2d
from tests.integrations.detectors import (
    BUILDERS,
    NUM_CLASSES,
    Pyramid,
    assert_same_detections,
    assert_same_step,
    detect,
    plain_retinanet,
    prepare,
    resnet_fcos,
    small_fcos,
    small_retinanet,
    train_step,
)


@pytest.mark.parametrize("build", BUILDERS)
def test_training_and_detection_equal_torchvision(build, batch, capsys):
    model = prepare(build())
    expected = train_step(copy.deepcopy(model), batch)
    expected_detections = detect(model, batch[0])

    assert fcos_fast.accelerate(model) is model
    assert capsys.readouterr().out.count("\n") == 1
    assert isinstance(model, (detection.FCOS, detection.RetinaNet))
    assert_same_detections(detect(model, batch[0]), expected_detections)
    assert_same_step(train_step(model, batch), expected, 1e-5)


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
def test_twenty_steps_give_the_same_losses(build, batch):
    def curve(model: nn.Module) -> torch.Tensor:
        optimizer = torch.optim.SGD(model.parameters(), 0.002, momentum=0.9)
        losses = []
        for _ in range(20):
            loss, _ = train_step(model, batch)
            optimizer.step()
            losses.append(sum(loss.values()).detach())
        return torch.stack(losses)

    model = prepare(build())
    expected = curve(copy.deepcopy(model))
    ours = curve(fcos_fast.accelerate(model))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0)
    assert ours[-1] < 0.9 * ours[0]


@pytest.mark.parametrize("build", BUILDERS)
def test_batches_without_a_box(build, batch):
    """As torchvision's test of negative samples: box losses are 0 and every parameter has a gradient path."""
    model = fcos_fast.accelerate(build())
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    losses, _ = train_step(model, (batch[0], [nothing] * 3))
    assert losses["classification"] > 0
    assert all(loss == 0 for name, loss in losses.items() if name != "classification")


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
def test_scores_are_differentiable(build, batch):
    """As torchvision tests its models."""

    def gradients(model: nn.Module) -> list[torch.Tensor]:
        images = [image.clone().requires_grad_() for image in batch[0]]
        sum(found["scores"].sum() + found["boxes"].sum() for found in model.eval()(images)).backward()
        return [image.grad for image in images]

    model = prepare(build())
    expected = gradients(model)
    for ours, theirs in zip(gradients(fcos_fast.accelerate(model)), expected, strict=True):
        assert theirs.norm() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
@pytest.mark.parametrize("option", ["fold_frozen_bn", "fuse_group_norm", "channels_last", "winograd"])
def test_options_change_only_rounding(build, option, batch, monkeypatch):
    """In float64, where rounding is far smaller than any mistake."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 64)
    monkeypatch.setattr(winograd, "MIN_TILES", 1)
    model = prepare(build()).double()
    expected = train_step(fcos_fast.accelerate(copy.deepcopy(model)), batch)
    expected_detections = detect(model, batch[0])
    fcos_fast.accelerate(model, **{option: True})
    assert_same_detections(detect(model, batch[0]), expected_detections)
    assert_same_step(train_step(model, batch), expected, 1e-9)


def test_winograd_without_a_large_convolution_is_rejected(monkeypatch):
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 128)
    model = small_fcos()
    with pytest.raises(ValueError, match="winograd=True, but the model has no 3x3 convolution of stride 1"):
        fcos_fast.accelerate(model, winograd=True)
    assert type(model) is type(small_fcos())


def test_winograd_with_folding(batch, monkeypatch):
    monkeypatch.setattr(winograd, "MIN_TILES", 1)
    model = prepare(resnet_fcos()).double()
    expected = train_step(copy.deepcopy(model), batch)
    fcos_fast.accelerate(model, fold_frozen_bn=True, winograd=True)
    both = model.backbone.body.layer2[0].conv2
    assert isinstance(both, FoldedConv2d)
    assert isinstance(both, WinogradConv2d)
    assert_same_step(train_step(model, batch), expected, 1e-5)
    fcos_fast.restore(model)
    assert type(both) is nn.Conv2d


def test_options_have_an_effect(batch):
    model = small_fcos()
    fcos_fast.accelerate(model, fold_frozen_bn=True, fuse_group_norm=True, channels_last=True)
    x = torch.rand(1, 64, 8, 8)
    assert torch.equal(model.backbone.stem[1](x), x)  # folded into the convolution before it
    assert not torch.equal(model.backbone.alone(x), x)  # no convolution is before this one
    assert sum(isinstance(module, GroupNormReLU) for module in model.modules()) == 8
    maps = []
    model.head.classification_head.cls_logits.register_forward_hook(lambda *args: maps.append(args[2]))
    detect(model, batch[0])
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)
    assert not all(x.is_contiguous() for x in maps)


def test_bfloat16_is_within_its_rounding(batch):
    model = prepare(small_fcos())
    expected, _ = train_step(copy.deepcopy(model), batch)
    fcos_fast.accelerate(model, precision="bfloat16", fold_frozen_bn=True, fuse_group_norm=True)
    logits = []
    model.head.classification_head.cls_logits.register_forward_hook(
        lambda *args: logits.append(args[2].dtype)
    )
    losses, gradients = train_step(model, batch)
    assert set(logits) == {torch.bfloat16}
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=0.05, atol=0)

    fcos_fast.accelerate(model, precision="float32")
    with torch.autocast("cpu", torch.bfloat16):  # the option overrides the caller's autocast
        losses = model(*batch)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-5, atol=0)


def test_compiled_network_gives_the_same(batch, monkeypatch):
    quick = partialmethod(
        nn.Module.compile, backend="aot_eager"
    )  # traces like inductor without generating code
    monkeypatch.setattr(nn.Module, "compile", quick)
    model = prepare(small_fcos())
    expected = train_step(copy.deepcopy(model), batch)
    keys = list(model.state_dict())
    fcos_fast.accelerate(model, compile=True, fold_frozen_bn=True)
    torch._dynamo.reset()
    assert_same_step(train_step(model, batch), expected, 1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert list(model.state_dict()) == keys
    assert fcos_fast.restore(model).backbone._compiled_call_impl is None


@pytest.mark.parametrize("build", [small_fcos, small_retinanet])
def test_state_dict_checkpoint_and_copies(build, batch):
    theirs = prepare(build()).double()
    ours = build().double()
    keys = list(ours.state_dict())
    fcos_fast.accelerate(ours, fold_frozen_bn=True, channels_last=True)
    assert list(ours.state_dict()) == keys
    ours.load_state_dict(theirs.state_dict())
    expected = detect(theirs, batch[0])
    assert_same_detections(detect(ours, batch[0]), expected)
    build().load_state_dict(ours.state_dict())

    copied = copy.deepcopy(ours)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    nn.init.zeros_(ours.backbone.get_parameter(next(n for n, _ in ours.backbone.named_parameters())))
    for other in (copied, loaded):  # independent from now on
        assert_same_detections(detect(other, batch[0]), expected)
        assert_same_detections(detect(fcos_fast.restore(other), batch[0]), expected)


def test_restore(batch):
    model = prepare(small_fcos())
    before = copy.deepcopy(model)
    parameters = [id(p) for p in model.parameters()]
    fcos_fast.accelerate(model, fold_frozen_bn=True, fuse_group_norm=True, channels_last=True)
    assert fcos_fast.restore(model) is model
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in before.modules()]
    assert [id(p) for p in model.parameters()] == parameters
    assert [p.stride() for p in model.parameters()] == [p.stride() for p in before.parameters()]
    for ours, theirs in zip(detect(model, batch[0]), detect(before, batch[0]), strict=True):
        assert torch.equal(ours["boxes"], theirs["boxes"])


def test_a_second_call_starts_over():
    model = fcos_fast.accelerate(small_fcos(), fold_frozen_bn=True)
    fcos_fast.accelerate(model, fuse_group_norm=True)
    assert type(model.backbone.stem[1]) is FrozenBatchNorm2d
    assert type(fcos_fast.restore(model)) is detection.FCOS


def test_folded_weights_follow_the_weights(batch):
    """Folding is repeated after every kind of change of the weights."""
    model = prepare(small_fcos())
    plain = copy.deepcopy(model)
    fcos_fast.accelerate(model, fold_frozen_bn=True)
    detect(model, batch[0])

    def change_by_optimizer(m):
        optimizer = torch.optim.SGD(m.parameters(), 0.05)
        train_step(m, batch)
        optimizer.step()

    def change_by_load(m):
        m.load_state_dict({k: v * 1.1 if v.is_floating_point() else v for k, v in m.state_dict().items()})

    def change_data(m):
        m.backbone.stem[0].weight.data = m.backbone.stem[0].weight.data * 0.5

    def change_in_place(m):
        m.backbone.stem[0].weight.data.mul_(1.5)

    for change in (change_by_optimizer, change_by_load, change_data, change_in_place):
        change(plain)
        change(model)
        for ours, theirs in zip(detect(model, batch[0]), detect(plain, batch[0]), strict=True):
            torch.testing.assert_close(ours["scores"], theirs["scores"], rtol=1e-3, atol=0)
        features = model.backbone(batch[0][0][None])["0"]
        torch.testing.assert_close(features, plain.backbone(batch[0][0][None])["0"], rtol=1e-4, atol=1e-5)


def test_batch_norm_is_folded_only_in_evaluation(batch):
    model = prepare(small_fcos(nn.BatchNorm2d)).double()
    plain = copy.deepcopy(model)
    fcos_fast.accelerate(model, fold_frozen_bn=True)
    assert_same_step(train_step(model, batch), train_step(plain, batch), 1e-5)
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)  # equal running statistics
    assert_same_detections(detect(model, batch[0]), detect(plain, batch[0]))


def test_torchvisions_errors_stay(batch):
    model = fcos_fast.accelerate(small_fcos()).train()
    images, _ = batch
    with pytest.raises(AssertionError, match="got None"):
        model(images)
    for boxes in ([[0, 0, 1, 1]], torch.zeros(3), torch.zeros(2, 3)):
        with pytest.raises(AssertionError, match=r"targets\[0\]\['boxes'\]"):
            model(images[:1], [{"boxes": boxes, "labels": torch.tensor([1])}])
    for boxes in (torch.tensor([[3.0, 3.0, 3.0, 9.0]]), torch.tensor([[1, 3, 1, 4], [2, 4, 3, 4]])):
        with pytest.raises(AssertionError, match="x1 < x2"):
            model(images[:1], [{"boxes": boxes}])


class OwnFCOS(detection.FCOS):
    def compute_loss(self, *arguments):
        return super().compute_loss(*arguments)


def _with_other_head():
    model = small_fcos()
    model.head = nn.Identity()
    return model


def _with_wide_anchors():
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((0.5,),) * 3)
    return detection.FCOS(Pyramid(), NUM_CLASSES, anchor_generator=anchors)


class ShiftedAnchors(AnchorGenerator):
    def forward(self, *arguments):
        return [anchors + 1 for anchors in super().forward(*arguments)]


def _with_shifted_anchors():
    anchors = ShiftedAnchors(((8,), (16,), (32,)), ((1.0,),) * 3)
    return detection.FCOS(Pyramid(), NUM_CLASSES, anchor_generator=anchors)


def _with_own_loss():
    model = small_fcos()
    model.compute_loss = lambda *arguments: {}
    return model


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        (_with_shifted_anchors, {}, "model.anchor_generator is ShiftedAnchors"),
        (_with_own_loss, {}, "model.compute_loss is overridden on this instance"),
        (lambda: nn.Linear(1, 1), {}, "torch.nn.modules.linear.Linear"),
        (lambda: nn.DataParallel(small_fcos()), {}, r"\.module"),
        (lambda: torch.compile(small_fcos()), {}, "compile=True"),
        (lambda: OwnFCOS(Pyramid(), NUM_CLASSES), {}, "a subclass that overrides compute_loss"),
        (lambda: fcos_fast.fcos("resnet18"), {}, "built in"),
        (_with_other_head, {}, "model.head is Identity"),
        (_with_wide_anchors, {}, "aspect ratios"),
        (lambda: small_fcos(), {"precision": "bfloat"}, "did you mean 'bfloat16'"),
        (lambda: small_fcos(nn.Identity), {"fold_frozen_bn": True}, "no FrozenBatchNorm2d"),
        (plain_retinanet, {"fuse_group_norm": True}, "no ReLU"),
        (lambda: small_fcos(), {"cuda_graphs": True}, "model.to"),
    ],
)
def test_unsupported_models_and_options(build, options, message):
    model = build()
    with pytest.raises((TypeError, ValueError), match=message):
        fcos_fast.accelerate(model, **options)
    if isinstance(model, detection.FCOS):
        assert type(model) in (detection.FCOS, OwnFCOS)
        with pytest.raises(ValueError, match="not accelerated"):
            fcos_fast.restore(model)


def test_an_optimizer_continues(batch):
    """A fused optimizer, which depends on the memory format of weights and state, with state from before."""
    model = prepare(small_fcos())
    plain = copy.deepcopy(model)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    optimizers = [torch.optim.AdamW(m.parameters(), 1e-3, fused=True) for m in (model, plain)]
    for step in range(3):
        if step == 1:
            fcos_fast.accelerate(model, channels_last=True)
        for m, optimizer in zip((model, plain), optimizers, strict=True):
            train_step(m, batch)
            optimizer.step()
    ours, theirs = (torch.cat([p.flatten() for p in m.parameters()]) for m in (model, plain))
    assert (ours - theirs).norm() < 1e-3 * (theirs - start).norm()


def test_a_shared_relu_stays():
    model = small_fcos()
    relu = nn.ReLU()
    model.backbone.stages[0] = nn.Sequential(
        nn.Conv2d(64, 64, 3, 2, 1), nn.GroupNorm(32, 64), relu, nn.Conv2d(64, 64, 3, 1, 1), relu
    )
    fcos_fast.accelerate(model, fuse_group_norm=True)
    assert type(relu) is nn.ReLU
    assert type(model.backbone.stages[0][1]) is nn.GroupNorm


def test_hooks_on_the_heads_are_called(batch):
    model = fcos_fast.accelerate(small_fcos())
    called = []
    model.head.classification_head.register_forward_hook(lambda *arguments: called.append(1))
    detect(model, batch[0])
    assert called


def test_a_failing_option_does_not_change_the_model():
    model = plain_retinanet()
    with pytest.raises(ValueError, match="no ReLU"):
        fcos_fast.accelerate(model, fold_frozen_bn=True, fuse_group_norm=True)
    assert type(model) is detection.RetinaNet
    assert type(model.backbone.stem[0]) is nn.Conv2d


class Branching(Pyramid):
    def forward(self, x):
        return super().forward(x if x.mean() > 0 else -x)


def test_untraceable_backbones():
    model = small_fcos()
    model.backbone = Branching()
    with pytest.raises(ValueError, match="torch.fx"):
        fcos_fast.accelerate(model, fold_frozen_bn=True)


@pytest.mark.gpu
@pytest.mark.parametrize("build", [small_fcos, resnet_fcos, small_retinanet])
def test_cuda_graphs_replay_the_same(build, batch):
    model = prepare(build()).cuda()
    images, targets = batch
    batch = [image.cuda() for image in images], [{k: v.cuda() for k, v in t.items()} for t in targets]
    expected = train_step(copy.deepcopy(model), batch)
    expected_detections = detect(copy.deepcopy(model), batch[0])
    fcos_fast.accelerate(model, cuda_graphs=True, fold_frozen_bn=True)
    for _ in range(3):
        assert_same_step(train_step(model, batch), expected, 1e-4)
    for _ in range(3):
        assert_same_detections(detect(model, batch[0]), expected_detections, 1e-3)
