"""Checkpoints of other implementations: inferred configuration, same detections, and conversion back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fcos_fast.data import COCO, Categories
from fcos_fast.engine.checkpoint import load_checkpoint, load_weights, model_from_checkpoint
from fcos_fast.engine.foreign import other_rules, read_foreign, write_foreign
from fcos_fast.models import FCOS, PRESETS, fcos
from fcos_fast.models.checkpoint_formats import CHECKPOINT_FORMATS, find_format, to_format
from fcos_fast.models.presets import FCOS_PRESETS

SMALL = {"fpn_channels": 32, "head_channels": 32}


def model_of(preset, backbone="resnet18", num_classes=80, **options):
    torch.manual_seed(0)
    model = fcos(backbone, num_classes, preset, norm="frozen", trainable_stages=3, **{**SMALL, **options})
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim:
                tensor.add_(torch.rand_like(tensor) * 0.01)
    return model.eval()


def file_of(model, format):
    return write_foreign(model.config, model.state_dict(), find_format(format))


FORMAT_OF = {preset: format.name for format in reversed(CHECKPOINT_FORMATS) for preset in format.presets}


@pytest.mark.parametrize("version", ["", "_v2"])
def test_torchvisions_retinanet_is_read(version, torchvision):
    """Its 9 x 91 outputs become 9 x 80; which version it is follows from the norms of its head."""
    torch.manual_seed(0)
    build = getattr(torchvision.models.detection, f"retinanet_resnet50_fpn{version}")
    theirs = build(weights=None, weights_backbone=None, min_size=64, max_size=96).eval()
    layer = theirs.head.classification_head.cls_logits
    torch.nn.init.normal_(layer.weight, std=0.05)
    unused = [i for i in range(91) if i not in COCO.ids]
    layer.bias.data.view(9, 91)[:, unused] = -1e3
    found = read_foreign(theirs.state_dict(), overrides={"min_size": 64, "max_size": 96, "norm": "batch"})
    assert found.presets == (f"torchvision-retinanet{version.replace('_', '-')}",)
    ours, categories = model_from_checkpoint(found.state)
    image = torch.rand(3, 64, 96)
    (expected,), (detections,) = theirs([image]), ours([image])
    assert len(expected["labels"]) > 0
    assert [categories.ids[label] for label in detections["labels"]] == expected["labels"].tolist()
    torch.testing.assert_close(detections["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("preset", FCOS_PRESETS)
def test_every_preset_round_trips_through_its_format(preset):
    model = model_of(preset)
    found = read_foreign(file_of(model, FORMAT_OF[preset]), preset, SMALL)
    assert found.format.name == FORMAT_OF[preset]
    again, categories = model_from_checkpoint(found.state)
    assert again.config == model.config
    assert categories.names == COCO.names
    image = torch.rand(3, 64, 96)
    (expected,), (detections,) = model([image]), again([image])
    assert len(expected["scores"]) == len(detections["scores"])
    torch.testing.assert_close(detections["scores"], expected["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("preset", "taken_for"),
    [
        ("official", ("official-improved", "official")),  # same parameters
        ("mmdetection", ("mmdetection",)),  # towers without biases
        ("mmdetection-tricks", ("mmdetection-tricks",)),
        ("adelaidet-rt", ("adelaidet-rt",)),  # P3 to P5
        ("detectron2", ("detectron2",)),
    ],
)
def test_preset_is_inferred_from_the_parameters(preset, taken_for):
    found = read_foreign(file_of(model_of(preset), FORMAT_OF[preset]), overrides=SMALL)
    assert found.presets == taken_for
    assert ("the parameters also match official" in str(found)) == (preset == "official")


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
        "resnext50_32x4d",
        "resnext101_32x8d",
        "mobilenet_v2",
        "dla34",
    ],
)
def test_backbone_is_recognized(backbone):
    format = "adelaidet" if backbone == "dla34" else "official"
    with torch.device("meta"):
        model = fcos(backbone, 3, norm="frozen", **SMALL)
    state = {key: torch.empty(value.shape) for key, value in model.state_dict().items()}
    found = read_foreign(to_format(state, find_format(format)), overrides=SMALL)
    config = found.state["model_config"]
    assert (config["backbone"], config["num_classes"]) == (backbone, 3)
    assert config["stride_in_1x1"] == (not backbone.startswith("resnext"))
    assert found.state["categories"]["names"] == ["class 0", "class 1", "class 2"]


@pytest.mark.parametrize("format", ["official", "adelaidet", "mmdetection"])
@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_deformable_convolutions_are_recognized(format, kind):
    pytest.importorskip("torchvision", reason="torchvision is not installed")
    preset = find_format(format).presets[0]
    model = model_of(preset, "resnet50", dcn=kind, dcn_stages=(4, 5), head_dcn=kind)
    found = read_foreign(file_of(model, format), overrides=SMALL)
    config = found.state["model_config"]
    assert (config["dcn"], config["dcn_stages"], config["head_dcn"]) == (kind, [4, 5], kind)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(found.state["model"][key], value, msg=key)


def test_torchvisions_91_outputs_become_the_80_of_coco(torchvision):
    torch.manual_seed(0)
    theirs = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, min_size=64, max_size=96, score_thresh=0.0
    ).eval()
    torch.nn.init.normal_(theirs.head.classification_head.cls_logits.weight, std=0.05)
    unused = [i for i in range(91) if i not in COCO.ids]
    theirs.head.classification_head.cls_logits.bias.data[unused] = -1e3  # never trained, never found
    overrides = {"min_size": 64, "max_size": 96, "score_threshold": 0.0}
    found = read_foreign(theirs.state_dict(), overrides=overrides)
    ours, categories = model_from_checkpoint(found.state)
    assert ours.config.num_classes == len(categories) == 80
    image = torch.rand(3, 64, 96)
    (expected,), (detections,) = theirs([image]), ours([image])
    assert [categories.ids[label] for label in detections["labels"]] == expected["labels"].tolist()
    torch.testing.assert_close(detections["boxes"], expected["boxes"], rtol=1e-4, atol=1e-3)

    again = torchvision.models.detection.fcos_resnet50_fpn(weights=None, weights_backbone=None)
    again.load_state_dict(
        write_foreign(ours.config, ours.state_dict(), find_format("torchvision")), strict=False
    )
    logits = again.head.classification_head.cls_logits
    assert torch.equal(
        logits.weight[list(COCO.ids)], theirs.head.classification_head.cls_logits.weight[list(COCO.ids)]
    )
    assert (logits.weight[unused] == 0).all()
    assert (logits.bias[unused].sigmoid() < 2e-6).all()


def test_what_does_not_fit_is_rejected_with_a_list():
    state = file_of(model_of("official"), "official")
    state["model"]["rpn.head.extra.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"does not fit the model; left over: rpn\.head\.extra\.weight"):
        read_foreign(state, overrides=SMALL)
    with pytest.raises(ValueError, match="match no known format; known are official, adelaidet"):
        read_foreign({"encoder.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="unknown preset 'oficial'; did you mean 'official'"):
        read_foreign(state, "oficial")


@pytest.mark.parametrize(
    ("preset", "format", "message"),
    [
        (
            "official-improved",
            "detectron2",
            "this model has scales, .*, but the detectron2 format has none;",
        ),
        (
            "detectron2",
            "official",
            "this model has no scales, .*, but the official format has them;",
        ),
    ],
)
def test_a_format_without_scales_is_rejected(preset, format, message):
    with pytest.raises(ValueError, match=message):
        file_of(model_of(preset), format)


def test_retinanet_has_no_foreign_format():
    with pytest.raises(ValueError, match="a retinanet cannot be written in the format official"):
        write_foreign(PRESETS["retinanet"], {}, find_format("official"))


def test_other_rules_are_listed():
    config = replace(PRESETS["official-improved"], nms_threshold=0.5, backbone="resnet18")
    assert other_rules(config, find_format("official")) == {"nms_threshold": (0.5, 0.6)}


def test_weights_of_a_foreign_checkpoint(tmp_path, capsys):
    path = tmp_path / "official.pth"
    model = model_of("official-improved", fpn_channels=256, head_channels=256)
    torch.save(file_of(model, "official"), path)
    own = FCOS(replace(model.config, num_classes=3, norm="batch"))
    before = own.head.classification_head.cls_logits.weight.clone()
    assert load_weights(own, path, Categories(("a", "b", "person"))).endswith(
        "classes with their weights: person; new: a, b"
    )
    theirs = model.head.classification_head.cls_logits.weight
    before[2] = theirs[0]
    assert "official checkpoint, read as official-improved" in capsys.readouterr().out
    assert torch.equal(own.head.classification_head.cls_logits.weight, before)
    torch.testing.assert_close(own.backbone.body.bn1.running_var, model.backbone.body.bn1.running_var)


def test_a_file_with_other_objects_is_rejected_with_the_remedy(tmp_path):
    class Meta:
        pass

    torch.save(
        {"state_dict": {"bbox_head.conv_cls.weight": torch.zeros(1)}, "meta": slice(0)}, tmp_path / "x.pth"
    )
    with pytest.raises(ValueError, match="contains pickled objects other than tensors.*weights_only=False"):
        load_checkpoint(tmp_path / "x.pth")
