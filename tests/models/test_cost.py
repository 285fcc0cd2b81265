"""Parameters and FLOPs against torchvision's published numbers, and counted by hand."""

from __future__ import annotations

import torch

from fcos_fast.models import fcos
from fcos_fast.models.cost import cost, cost_table


def on_meta(*arguments, **options):
    with torch.device("meta"):
        return fcos(*arguments, **options).eval()


def test_torchvisions_published_numbers():
    """32,269,600 parameters and 128.207 GFLOPS are in the metadata of FCOS_ResNet50_FPN_Weights.COCO_V1.

    It counts a multiplication and its addition once, at 800x800 pixels.
    """
    *_, total = cost(on_meta("resnet50", preset="torchvision", norm="frozen"), (800, 800))
    assert total.parameters == 32_269_600
    assert f"{total.flops / 2e9:.3f}" == "128.207"


def test_torchvisions_metadata(torchvision):
    published = torchvision.models.detection.FCOS_ResNet50_FPN_Weights.COCO_V1.meta
    *_, total = cost(on_meta("resnet50", preset="torchvision", norm="frozen"), (800, 800))
    assert total.parameters == published["num_params"]
    assert f"{total.flops / 2e9:.3f}" == f"{published['_ops']:.3f}"


def test_the_parts_add_up():
    model = on_meta("resnet18", num_classes=3)
    *parts, total = cost(model, (64, 96))
    assert [part.part for part in parts] == [
        "backbone.body",
        "backbone.fpn",
        "backbone.fpn.extra_blocks",
        "head.classification_head",
        "head.regression_head",
    ]
    assert sum(part.flops for part in parts) == total.flops
    # the scales are in the regression head; nothing is outside of the parts
    assert sum(part.parameters for part in parts) == total.parameters
    assert total.parameters == sum(p.numel() for p in model.parameters())


def test_the_extra_levels_by_hand():
    """P6 and P7 of a 128x256 image: 3x3 convolutions of 32 channels over 2x4 and 1x2 positions."""
    costs = {c.part: c for c in cost(on_meta("resnet18", 3, fpn_channels=32, head_channels=32), (128, 256))}
    extra = costs["backbone.fpn.extra_blocks"]
    assert extra.parameters == 2 * (32 * 32 * 9 + 32)
    assert extra.flops == 2 * (2 * 4 + 1 * 2) * 32 * 32 * 9


def test_the_table_ends_with_the_total():
    lines = cost_table(
        cost(on_meta("resnet50", preset="torchvision", norm="frozen"), (800, 800))
    ).splitlines()
    assert lines[-1].split() == ["all", "32.270", "128.207", "100.0%"]
