from __future__ import annotations

import dataclasses
import json

import pytest

from fcos_fast.assignment import RULES
from fcos_fast.models import (
    PRESETS,
    DetectorConfig,
    FCOSConfig,
    RetinaNetConfig,
    fcos,
    retinanet,
)


@pytest.mark.parametrize("preset", PRESETS)
def test_round_trip_through_dict_and_json(preset):
    config = dataclasses.replace(PRESETS[preset], min_size=(640, 800))
    assert DetectorConfig.from_dict(config.to_dict()) == config
    assert DetectorConfig.from_dict(dataclasses.asdict(config)) == config
    assert DetectorConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert hash(config) == hash(DetectorConfig.from_dict(config.to_dict()))


def test_configurations_without_detector_are_fcos():
    """Old checkpoints have no field ``detector``."""
    values = PRESETS["torchvision"].to_dict()
    del values["detector"]
    assert DetectorConfig.from_dict(values) == PRESETS["torchvision"]
    with pytest.raises(ValueError, match="unknown detector 'retinanett'; did you mean 'retinanet'"):
        DetectorConfig.from_dict({"detector": "retinanett"})


@pytest.mark.parametrize("kind", [FCOSConfig, RetinaNetConfig])
def test_every_field_is_documented_and_printed(kind):
    config = kind()
    for field in dataclasses.fields(config):
        assert f"\n        {field.name}: " in DetectorConfig.__doc__ + kind.__doc__
        assert f"\n{field.name} " in "\n" + str(config)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backbone", "resnet51", "unknown backbone 'resnet51'; did you mean 'resnet50'"),
        ("norm", "frosen", "unknown value of norm 'frosen'; did you mean 'frozen'"),
        ("pixel_range", 256, "unknown value of pixel_range 256; did you mean '255'"),
        ("num_classes", 0, "num_classes=0; expected a positive integer"),
        ("trainable_stages", 6, "trainable_stages=6; expected a number from 0 to 5"),
        ("head_channels", 48, "head_channels=48; expected a positive multiple of 32"),
        ("prior", 1.0, "prior=1.0; expected a number above 0 and below 1"),
        ("score_threshold", -0.1, "score_threshold=-0.1; expected a number from 0 to 1"),
        ("min_size", 0, "min_size=0; expected a positive integer"),
        ("min_size", (), "min_size=.*; expected a positive integer"),
        ("max_size", -3, "max_size=-3; expected"),
        ("image_std", (1.0, 0.0, 1.0), "image_std=.*; expected three positive numbers"),
        ("image_mean", (1.0, 0.0), "image_mean=.*; expected three numbers"),
        ("rule", dataclasses.replace(RULES["official"], sizes_of_interest=(64.0,)), "1 sizes_of_interest"),
    ],
)
def test_invalid_values_of_fcos(field, value, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FCOSConfig(), **{field: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"detector": "fcos"}, "unknown value of detector 'fcos'; known: retinanet"),
        ({"anchor_size": 0}, "anchor_size=0; expected a positive number"),
        ({"anchor_scales": ()}, r"anchor_scales=\(\); expected at least one positive number"),
        ({"anchor_shapes": [[1, 1, 1]]}, "anchor_shapes=.*; expected at least one pair of positive numbers"),
        ({"anchor_shapes": [[1, 0]]}, "anchor_shapes=.*; expected at least one pair of positive numbers"),
        ({"nms_threshold": 2}, "nms_threshold=2; expected a number from 0 to 1"),
        ({"match_threshold": 0.3}, "background_threshold=0.4; expected at most match_threshold, 0.3"),
        ({"classification_loss": "focal_star", "focal_gamma": 0}, "focal_gamma=0; expected more than 0"),
        ({"box_loss": "l2"}, "unknown value of box_loss 'l2'; "),
    ],
)
def test_invalid_values_of_retinanet(fields, message):
    with pytest.raises(ValueError, match=message):
        RetinaNetConfig(**fields)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        (FCOSConfig, "head_bias", "yes", "head_bias='yes'; expected True or False"),
        (FCOSConfig, "prior", "0.01", "prior='0.01'; expected a number above 0 and below 1"),
        (
            FCOSConfig,
            "rule",
            "official",
            "rule='official'; expected a mapping of the fields of AssignmentRule",
        ),
        (FCOSConfig, "min_size", "800", "min_size='800'; expected a positive integer"),
        (FCOSConfig, "num_classes", 2.5, "num_classes=2.5; expected a positive integer"),
        (FCOSConfig, "num_classes", True, "num_classes=True; expected a positive integer"),
        (FCOSConfig, "image_mean", (1.0, "0", 1.0), "image_mean=.*; expected three numbers"),
        (FCOSConfig, "backbone", None, "backbone=None; expected a string"),
        (
            RetinaNetConfig,
            "anchor_shapes",
            (1.0, 2.0),
            "anchor_shapes=.*; expected at least one pair of positive",
        ),
    ],
)
def test_values_of_the_wrong_type(kind, field, value, message):
    with pytest.raises(TypeError, match=message):
        kind(**{field: value})


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(
        ValueError, match="unknown preset 'oficial-improved'; did you mean 'official-improved'"
    ):
        fcos(preset="oficial-improved")
    with pytest.raises(
        ValueError, match="unknown FCOSConfig field 'nms_treshold'; did you mean 'nms_threshold'"
    ):
        fcos(nms_treshold=0.5)
    with pytest.raises(
        ValueError, match="unknown preset 'retinanet-tutorail'; did you mean 'retinanet-tutorial'"
    ):
        retinanet(preset="retinanet-tutorail")
    with pytest.raises(ValueError, match="unknown RetinaNetConfig field 'anchor_scale'; did you mean"):
        retinanet(anchor_scale=4)
    with pytest.raises(ValueError, match="unknown AssignmentRule field 'samplng'; did you mean 'sampling'"):
        FCOSConfig.from_dict({"rule": {"samplng": "box"}})
    with pytest.raises(ValueError, match="unknown FCOSConfig field 'head_conv'"):
        FCOSConfig.from_dict({"head_conv": 4})


def test_overrides_reach_the_configuration():
    config = fcos("resnet18", 5, preset="torchvision", head_convs=1, trainable_stages=0).config
    expected = {"backbone": "resnet18", "num_classes": 5, "head_convs": 1, "trainable_stages": 0}
    assert config == dataclasses.replace(PRESETS["torchvision"], **expected)
