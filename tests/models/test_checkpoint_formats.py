"""Checkpoint formats of the published FCOS: the keys that those projects write, with the right values."""

from __future__ import annotations

import pytest
import torch

from fcos_fast.models import fcos
from fcos_fast.models.checkpoint_formats import (
    CHECKPOINT_FORMATS,
    find_format,
    from_format,
    recognize,
    to_format,
    without_wrapping,
)

DEPTHS = (3, 4, 6, 3)  # of ResNet50
NORM = ("weight", "bias", "running_mean", "running_var")


def norms(*prefixes):
    return [f"{prefix}.{name}" for prefix in prefixes for name in NORM]


def convs(*prefixes):
    return [f"{prefix}.{name}" for prefix in prefixes for name in ("weight", "bias")]


def blocks():
    """(stage 1..4, block, whether it has a shortcut) of ResNet50."""
    return [(stage, block, block == 0) for stage, depth in enumerate(DEPTHS, 1) for block in range(depth)]


def resnet(prefix, shortcut="downsample.{}"):
    """Torchvision's names, which official FCOS, mmdetection and the notebooks use."""
    keys = []
    for stage, block, has_shortcut in blocks():
        at = f"{prefix}layer{stage}.{block}"
        for n in (1, 2, 3):
            keys += [f"{at}.conv{n}.weight", *norms(f"{at}.bn{n}")]
        if has_shortcut:
            keys += [f"{at}.{shortcut.format(0)}.weight", *norms(f"{at}.{shortcut.format(1)}")]
    return keys


def detectron2_resnet():
    keys = ["backbone.bottom_up.stem.conv1.weight", *norms("backbone.bottom_up.stem.conv1.norm")]
    for stage, block, has_shortcut in blocks():
        at = f"backbone.bottom_up.res{stage + 1}.{block}"
        for conv in ("conv1", "conv2", "conv3") + (("shortcut",) if has_shortcut else ()):
            keys += [f"{at}.{conv}.weight", *norms(f"{at}.{conv}.norm")]
    for level in (3, 4, 5):
        keys += convs(f"backbone.fpn_lateral{level}", f"backbone.fpn_output{level}")
    return keys + convs("backbone.top_block.p6", "backbone.top_block.p7")


def towers(*names):
    """Four times convolution, group norm and ReLU in one sequence."""
    return [
        key for name in names for k in range(4) for key in convs(f"{name}.{3 * k}", f"{name}.{3 * k + 1}")
    ]


def official():
    keys = ["backbone.body.stem.conv1.weight", *norms("backbone.body.stem.bn1"), *resnet("backbone.body.")]
    for stage in (2, 3, 4):
        keys += convs(f"backbone.fpn.fpn_inner{stage}", f"backbone.fpn.fpn_layer{stage}")
    keys += convs("backbone.fpn.top_blocks.p6", "backbone.fpn.top_blocks.p7")
    keys += towers("rpn.head.cls_tower", "rpn.head.bbox_tower")
    keys += convs("rpn.head.cls_logits", "rpn.head.bbox_pred", "rpn.head.centerness")
    return keys + [f"rpn.head.scales.{level}.scale" for level in range(5)]


def adelaidet():
    head = "proposal_generator.fcos_head"
    keys = detectron2_resnet() + towers(f"{head}.cls_tower", f"{head}.bbox_tower")
    keys += convs(f"{head}.cls_logits", f"{head}.bbox_pred", f"{head}.ctrness")
    return keys + [f"{head}.scales.{level}.scale" for level in range(5)]


def detectron2():
    keys = detectron2_resnet() + towers("head.cls_subnet", "head.bbox_subnet")
    return keys + convs("head.cls_score", "head.bbox_pred", "head.ctrness")


def mmdetection():
    keys = ["backbone.conv1.weight", *norms("backbone.bn1"), *resnet("backbone.")]
    keys += convs(*(f"neck.lateral_convs.{i}.conv" for i in range(3)))
    keys += convs(*(f"neck.fpn_convs.{i}.conv" for i in range(5)))
    for tower in ("cls_convs", "reg_convs"):
        keys += convs(*(f"bbox_head.{tower}.{k}.{layer}" for k in range(4) for layer in ("conv", "gn")))
    keys += convs("bbox_head.conv_cls", "bbox_head.conv_reg", "bbox_head.conv_centerness")
    return keys + [f"bbox_head.scales.{level}.scale" for level in range(5)]


def simpleaicv():
    keys = ["backbone.conv1.layer.0.weight", *norms("backbone.conv1.layer.1")]
    for stage, block, has_shortcut in blocks():
        at = f"backbone.layer{stage}.{block}"
        for conv in ("conv1", "conv2", "conv3") + (("downsample_conv",) if has_shortcut else ()):
            keys += [f"{at}.{conv}.layer.0.weight", *norms(f"{at}.{conv}.layer.1")]
    keys += convs(*(f"fpn.P{level}_{n}" for level in (3, 4, 5) for n in (1, 2)), "fpn.P6", "fpn.P7.1")
    for tower in ("cls_head", "reg_head"):
        for k in range(4):
            keys += [f"clsregcnt_head.{tower}.{3 * k}.weight", *convs(f"clsregcnt_head.{tower}.{3 * k + 1}")]
    keys += convs("clsregcnt_head.cls_out", "clsregcnt_head.reg_out", "clsregcnt_head.center_out")
    return [*keys, "scales"]


def bubbliiiing():
    keys = ["backbone.conv1.weight", *norms("backbone.bn1"), *resnet("backbone.")]
    keys += convs(*(f"fpn.{kind}_{level}" for kind in ("prj", "conv") for level in (3, 4, 5)))
    keys += convs("fpn.conv_out6", "fpn.conv_out7")
    keys += towers("head.cls_conv", "head.reg_conv") + convs(
        "head.cls_logits", "head.cnt_logits", "head.reg_pred"
    )
    return keys + [f"head.scale_exp.{level}.scale" for level in range(5)]


def notebook():
    return ["fcos_body." + key for key in bubbliiiing()]


KEYS = {
    "official": official,
    "adelaidet": adelaidet,
    "detectron2": detectron2,
    "mmdetection": mmdetection,
    "simpleaicv": simpleaicv,
    "notebook": notebook,
    "bubbliiiing": bubbliiiing,
}
PRESET = {"official": "official-improved", "mmdetection": "mmdetection-tricks", "bubbliiiing": "notebook"}


@pytest.fixture(scope="module")
def states():
    """State dicts of a ResNet50 FCOS of each format's preset, all values random."""
    made = {}

    def state(format):
        if format not in made:
            torch.manual_seed(0)
            preset = PRESET.get(format, format)
            model = fcos("resnet50", 3, preset, norm="frozen", fpn_channels=32, head_channels=32)
            own = model.state_dict()
            made[format] = {key: torch.rand_like(value) + 0.5 for key, value in own.items()}
        return made[format]

    return state


@pytest.mark.parametrize("name", KEYS)
def test_keys_equal_those_of_the_project(name, states):
    assert sorted(to_format(states(name), find_format(name))) == sorted(KEYS[name]())


@pytest.mark.parametrize("name", KEYS)
def test_formats_are_recognized_by_their_keys(name):
    assert recognize(KEYS[name]()).name == name


@pytest.mark.parametrize("name", KEYS)
def test_round_trip(name, states):
    own, format = states(name), find_format(name)
    again = from_format(to_format(own, format), format, own)
    assert again.keys() == own.keys()
    for key, value in own.items():
        torch.testing.assert_close(again[key], value, rtol=1e-6, atol=1e-6, msg=key)


def test_values_have_the_right_names(states):
    """One parameter of each kind, for the format that renames most."""
    theirs = to_format(states("adelaidet"), find_format("adelaidet"))
    theirs = {key: torch.rand_like(value) for key, value in theirs.items()}
    own = from_format(theirs, find_format("adelaidet"), states("adelaidet"))
    for ours, name in {
        "backbone.body.bn1.running_mean": "backbone.bottom_up.stem.conv1.norm.running_mean",
        "backbone.body.layer3.2.conv2.weight": "backbone.bottom_up.res4.2.conv2.weight",
        "backbone.body.layer1.0.downsample.1.bias": "backbone.bottom_up.res2.0.shortcut.norm.bias",
        "backbone.fpn.inner_blocks.0.0.weight": "backbone.fpn_lateral3.weight",
        "backbone.fpn.layer_blocks.2.0.bias": "backbone.fpn_output5.bias",
        "backbone.fpn.extra_blocks.p7.weight": "backbone.top_block.p7.weight",
        "head.classification_head.conv.4.weight": "proposal_generator.fcos_head.cls_tower.4.weight",
        "head.regression_head.conv.9.bias": "proposal_generator.fcos_head.bbox_tower.9.bias",
        "head.regression_head.bbox_ctrness.weight": "proposal_generator.fcos_head.ctrness.weight",
    }.items():
        assert torch.equal(own[ours], theirs[name])
    scales = [theirs[f"proposal_generator.fcos_head.scales.{level}.scale"] for level in range(5)]
    assert torch.equal(own["head.regression_head.scales"], torch.cat(scales))


def test_norms_without_eps(states):
    """Official FCOS divides by the root of the variance without eps."""
    format, own = find_format("official"), states("official")
    theirs = {key: value.double() for key, value in to_format(own, format).items()}
    weight, bias, mean, var = (theirs[f"backbone.body.layer2.0.bn2.{name}"] for name in NORM)
    x = torch.randn(2, len(mean), 3, 3, dtype=torch.float64)
    expected = (x - mean[:, None, None]) / var.sqrt()[:, None, None] * weight[:, None, None] + bias[
        :, None, None
    ]
    like = {key: value.double() for key, value in own.items()}
    loaded = from_format(theirs, format, like)
    norm = fcos("resnet50", 3, norm="frozen").backbone.body.layer2[0].bn2.double()
    norm.load_state_dict({name: loaded[f"backbone.body.layer2.0.bn2.{name}"] for name in NORM})
    torch.testing.assert_close(norm(x), expected, rtol=1e-9, atol=1e-9)


def test_shapes_of_the_scales(states):
    assert to_format(states("official"), find_format("official"))["rpn.head.scales.0.scale"].shape == (1,)
    assert (
        to_format(states("mmdetection"), find_format("mmdetection"))["bbox_head.scales.0.scale"].shape == ()
    )
    assert to_format(states("simpleaicv"), find_format("simpleaicv"))["scales"].shape == (5,)


@pytest.mark.parametrize(
    ("format", "new", "old"),
    [
        ("mmdetection", "bbox_head.conv_", "bbox_head.fcos_"),  # heads before version 1
        (
            "adelaidet",
            "fcos_head.ctrness.",
            "fcos_head.centerness.",
        ),  # AdelaiDet's script for official checkpoints
    ],
)
def test_older_names_are_read(format, new, old, states):
    own, format = states(format), find_format(format)
    theirs = to_format(own, format)
    older = {key.replace(new, old): value for key, value in theirs.items()}
    assert older.keys() != theirs.keys()
    assert recognize(older) is format
    again = from_format(older, format, own)
    assert all(torch.equal(again[key], value) for key, value in own.items())


def test_other_tensors_are_ignored(states):
    format, own = find_format("detectron2"), states("detectron2")
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "anchor_generator.cell_anchors.0": torch.zeros(1, 4)}
    assert from_format({**to_format(own, format), **extra}, format, own).keys() == own.keys()


def test_keys_left_over_missing_or_misshapen_are_listed(states):
    format, own = find_format("official"), states("official")
    theirs = to_format(own, format)
    del theirs["rpn.head.centerness.bias"]
    theirs["rpn.head.iou.weight"] = torch.zeros(1)
    theirs["rpn.head.cls_logits.bias"] = torch.zeros(80)
    with pytest.raises(ValueError, match="does not fit the model") as error:
        from_format(theirs, format, own)
    assert "missing: rpn.head.centerness.bias;" in str(error.value)
    assert "left over: rpn.head.iou.weight;" in str(error.value)
    assert "of another shape: rpn.head.cls_logits.bias (80,) instead of (3,)" in str(error.value)


@pytest.mark.parametrize("container", [None, "model", "state_dict", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrapping_is_removed(container, prefix):
    state = {f"{prefix}a.weight": torch.zeros(2), f"{prefix}b": torch.zeros(())}
    checkpoint = (
        state if container is None else {container: state, "iteration": 5, "optimizer": {"state": {}}}
    )
    assert sorted(without_wrapping(checkpoint)) == ["a.weight", "b"]


def test_num_batches_tracked_may_be_missing(states):
    """Checkpoints of frozen norms have no ``num_batches_tracked``, models with batch norm do."""
    format = find_format("official")
    theirs = to_format(states("official"), format)
    own = fcos("resnet50", 3, norm="batch", fpn_channels=32, head_channels=32).state_dict()
    loaded = from_format(theirs, format, own)
    assert loaded.keys() == own.keys()
    assert loaded["backbone.body.bn1.num_batches_tracked"] == 0


def test_every_format_is_tested():
    assert {format.name for format in CHECKPOINT_FORMATS} - {"torchvision", "torchvision-retinanet"} == set(
        KEYS
    )


def test_unknown_names_and_keys():
    with pytest.raises(ValueError, match="unknown checkpoint format 'oficial'; did you mean 'official'"):
        find_format("oficial")
    assert recognize(["encoder.weight"]) is None
