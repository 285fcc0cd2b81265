"""``accelerate`` of detectron2's detectors, against detectron2 itself, which is not on PyPI.

Where it is not installed, ``tests/models/test_presets.py`` compares a written copy of its rules with the preset of the
same name, which runs the same operators with the same options.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fcos_fast

pytest.importorskip("detectron2", reason="detectron2 is not installed, and not on PyPI")

from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import FPN, BasicStem, ResNet
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

CLASSES = 5
COUNTS = [pytest.param(counts, id="-".join(map(str, counts))) for counts in ([7, 0], [1, 60], [0, 0])]


def common() -> dict:
    stages = ResNet.make_default_stages(18, norm="BN")
    body = ResNet(BasicStem(3, 64, norm="BN"), stages, out_features=["res3", "res4", "res5"])
    top = LastLevelP6P7(32, 32, in_feature="p5")
    return {
        "backbone": FPN(body, ["res3", "res4", "res5"], 32, top_block=top),
        "head_in_features": ["p3", "p4", "p5", "p6", "p7"],
        "num_classes": CLASSES,
        "pixel_mean": [0.0, 0, 0],
        "pixel_std": [1.0, 1, 1],
    }


def fcos(**options) -> FCOS:
    head = FCOSHead(input_shape=[ShapeSpec(channels=32)] * 5, num_classes=CLASSES, conv_dims=[32])
    return FCOS(head=head, **common(), **options)


def retinanet(**options) -> RetinaNet:
    shape = [ShapeSpec(channels=32)] * 5
    sizes = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    return RetinaNet(
        head=RetinaNetHead(input_shape=shape, num_classes=CLASSES, num_anchors=9, conv_dims=[32]),
        anchor_generator=DefaultAnchorGenerator(
            sizes=sizes, aspect_ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128], offset=0.0
        ),
        box2box_transform=Box2BoxTransform(weights=[1.0, 1, 1, 1]),
        anchor_matcher=Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True),
        **common(),
        **options,
    )


def inputs(counts) -> list[dict]:
    torch.manual_seed(sum(counts))
    batch = []
    for count, (height, width) in zip(counts, ((96, 128), (80, 100)), strict=True):
        size = torch.tensor([width, height])
        corner = torch.rand(count, 2) * size * 0.8
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat((corner, corner + 3 + torch.rand(count, 2) * size * 0.6), dim=1))
        instances.gt_classes = torch.randint(CLASSES, (count,))
        image = {"image": torch.randn(3, height, width), "instances": instances}
        batch.append({**image, "height": height * 2, "width": width * 3})
    return batch


def train_step(
    model: nn.Module, batch: list[dict]
) -> tuple[dict[str, float], dict[str, torch.Tensor], list[float]]:
    """Losses, gradients, and what two steps record of the number of positives."""
    model.train().zero_grad()
    with EventStorage() as storage:
        for _ in range(2):  # the second step divides by the moving average of the first
            losses = model(batch)
        recorded = [storage.history("num_pos_anchors").latest(), model.loss_normalizer]
    sum(losses.values()).backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients, recorded


def assert_same_step(model: nn.Module, other: nn.Module, batch: list[dict]) -> None:
    (losses, gradients, recorded), (expected, wanted, count) = (train_step(m, batch) for m in (model, other))
    assert losses == pytest.approx(expected, rel=5e-6, abs=1e-7)
    assert recorded == pytest.approx(count)
    assert gradients.keys() == wanted.keys()
    largest = max(g.norm() for g in wanted.values())
    for name, gradient in wanted.items():
        assert (gradients[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-7 * largest, name


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("build", [fcos, retinanet])
def test_training_equals_detectron2(build, counts):
    theirs = build()
    ours = fcos_fast.accelerate(copy.deepcopy(theirs))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert_same_step(ours, theirs, inputs(counts))


@pytest.mark.parametrize("loss", ["smooth_l1", "giou"])
def test_box_losses_of_retinanet(loss):
    theirs = retinanet(box_reg_loss_type=loss, smooth_l1_beta=0.1)
    assert_same_step(fcos_fast.accelerate(copy.deepcopy(theirs)), theirs, inputs([7, 3]))


@pytest.mark.parametrize("build", [fcos, retinanet])
def test_boxes_without_an_area(build):
    theirs, batch = build(), inputs([7, 3])
    boxes = batch[0]["instances"].gt_boxes.tensor
    boxes[2, 2:] = boxes[2, :2]
    assert_same_step(fcos_fast.accelerate(copy.deepcopy(theirs)), theirs, batch)


@pytest.mark.parametrize("threshold", [0.05, 0.2])
@pytest.mark.parametrize("build", [fcos, retinanet])
def test_detections_equal_detectron2(build, threshold):
    theirs = build(test_score_thresh=threshold).eval()
    with torch.no_grad():  # scores that are spread, of boxes of some strides, partly outside the image
        for name, std, bias in (
            ("cls_score", 0.1, -2.0),
            ("bbox_pred", 0.05, 2.0 if build is fcos else 0.0),
            ("ctrness", 0.1, 0.0),
        ):
            if layer := getattr(theirs.head, name, None):
                layer.weight.normal_(std=std)
                layer.bias.fill_(bias)
    ours = fcos_fast.accelerate(copy.deepcopy(theirs))
    batch = inputs([1, 1])
    with torch.no_grad():
        results = zip(ours(batch), theirs(batch), strict=True)
    for found, wanted in ((a["instances"], b["instances"]) for a, b in results):
        assert len(found) == len(wanted) > 10
        scores = wanted.scores
        assert (scores.diff().abs() > 1e-7).all(), "equal scores have no defined order in detectron2"
        torch.testing.assert_close(found.scores, scores, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.pred_classes, wanted.pred_classes)
        torch.testing.assert_close(found.pred_boxes.tensor, wanted.pred_boxes.tensor, rtol=1e-5, atol=1e-3)


def test_an_overridden_method_is_rejected_by_name():
    class Mine(FCOS):
        def label_anchors(self, anchors, gt_instances):
            raise NotImplementedError

    model = fcos()
    model.__class__ = Mine
    with pytest.raises(TypeError, match="Mine of detectron2: it overrides label_anchors"):
        fcos_fast.accelerate(model)


def test_restore(capsys):
    theirs = retinanet()
    ours = fcos_fast.accelerate(copy.deepcopy(theirs))
    assert "RetinaNet: anchor matching, losses and postprocessing fused" in capsys.readouterr().out
    assert type(fcos_fast.restore(ours)) is RetinaNet
    assert_same_step(ours, theirs, inputs([3, 1]))
