"""The culprit of a loss that is not finite: image, boxes, level, loss, parameter."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcos_fast.data import load_dataset
from fcos_fast.data.transforms import AugmentedDataset
from fcos_fast.engine.diagnosis import find_cause, in_words
from fcos_fast.engine.step import TrainStep
from fcos_fast.engine.train import NonFiniteLossError, resume, train
from fcos_fast.models import build_detector
from tests.engine.small import MODEL, RETINANET, packed, with_nan

SMALL = {"norm": "group"}
FCOS, RETINA = replace(MODEL, **SMALL), replace(RETINANET, **SMALL)


@pytest.fixture(params=[FCOS, RETINA], ids=["fcos", "retinanet"])
def model(request):
    torch.manual_seed(0)
    return build_detector(request.param).train()


def described(finding) -> str:
    for place in finding["places"]:
        place["image"] = f"{place['index']}.jpg"
    return in_words(finding)


def test_a_step_that_is_finite_has_no_cause(model):
    finding = find_cause(model, *packed(0))
    assert (finding["weight"], finding["layer"], finding["parameter"], finding["places"]) == (
        None,
        None,
        None,
        [],
    )
    assert described(finding) == ""


@pytest.mark.parametrize("parts", [1, 2])
def test_an_image_with_nan(model, parts):
    """Group norm keeps it in its image, which is the first; the other is finite."""
    images, targets = packed(0)
    finding = find_cause(model, with_nan(images, model), targets, parts=parts)
    assert finding["layer"].startswith("backbone.body")
    assert {place["index"] for place in finding["places"]} == {0}
    boxes = targets.boxes[: targets.starts[1]].tolist()
    assert all(place["boxes"] == boxes for place in finding["places"])
    assert "for image 0.jpg (2 boxes)" in described(finding)


def test_a_weight_that_is_nan(model):
    name, weight = next((n, p) for n, p in model.named_parameters() if "regression_head.conv.0" in n)
    weight.data[0] = torch.nan
    finding = find_cause(model, *packed(0))
    assert finding["weight"] == name
    assert {place["loss"] for place in finding["places"]} <= {"bbox_regression", "bbox_ctrness"}
    assert f"the weights of {name} were not finite before the step" in described(finding)


def test_a_level_whose_loss_is_infinite():
    """Infinite logits at the third level, for which the first box of the second image is meant."""
    model = build_detector(FCOS).train()
    head, calls = model.head.classification_head.cls_logits, iter(range(100))

    def infinite(module, inputs, output):
        if next(calls) % 5 == 2:
            output = output.clone()
            output[1] = torch.inf
        return output

    head.register_forward_hook(infinite)
    finding = find_cause(model, *packed(0))
    assert [(p["index"], p["stride"], p["loss"]) for p in finding["places"]] == [
        (1, model.config.strides[2], "classification")
    ]
    assert "loss classification is inf for image 1.jpg" in described(finding)


def test_a_gradient_that_is_infinite(model):
    """With finite losses, and after gradients of other parameters."""
    name = next(n for n, _ in model.named_parameters() if "regression_head.conv.0" in n)
    dict(model.named_parameters())[name].register_hook(lambda g: g / 0)
    finding = find_cause(model, *packed(0))
    assert finding["places"] == []
    assert finding["parameter"] == name
    assert described(finding) == f"the first gradient that is not finite is that of {name}"


def test_a_run_names_the_image(tiny, monkeypatch):
    """Image 5 of the training split decodes to NaN; the state of the run is not changed by the search."""
    config = replace(tiny, model=replace(tiny.model, **SMALL))
    real = AugmentedDataset.__getitem__

    def broken(self, key):
        image, target = real(self, key)
        return (image * torch.nan if key.image == 5 else image), target

    monkeypatch.setattr(AugmentedDataset, "__getitem__", broken)
    name = load_dataset(tiny.data.root, "train").records[5].name
    with pytest.raises(
        NonFiniteLossError, match=r"for image .* at the level of stride \d+.*lower optimizer.lr"
    ) as error:
        train(config)
    folder = Path(tiny.train.runs) / "train"
    assert f"for image {name} (" in str(error.value)
    assert f"see {folder / 'diagnosis.json'}" in str(error.value)
    (found,) = json.loads((folder / "diagnosis.json").read_text())["processes"]
    assert name in found["images"]
    assert len(found["images"]) == 2
    assert {place["image"] for place in found["places"]} == {name}
    assert found["places"][0]["boxes"]


def test_the_step_of_an_epoch_that_was_resumed_in_its_middle(tiny, monkeypatch):
    """Two of four batches of the second epoch were trained on before; the second of the others is not finite."""
    folder = train(replace(tiny, train=replace(tiny.train, steps=6))).folder
    real, calls = TrainStep.__call__, iter(range(1, 3))

    def broken(step, images, targets):
        images = with_nan(images, step.model) if next(calls) == 2 else images
        real(step, images, targets)

    monkeypatch.setattr(TrainStep, "__call__", broken)
    with pytest.raises(NonFiniteLossError, match=r"epoch 2/2, step 4: the loss is not finite"):
        resume(folder, lambda run: replace(run, train=replace(run.train, steps=8)))
    assert json.loads((folder / "diagnosis.json").read_text())["step"] == 8


def test_a_search_that_fails_hides_nothing(tiny, monkeypatch):
    monkeypatch.setattr("fcos_fast.engine.diagnosis.find_cause", lambda *_: 1 / 0)
    wild = replace(tiny, optimizer=replace(tiny.optimizer, lr=1e18, clip_norm=0))
    with pytest.raises(
        NonFiniteLossError, match=r"the loss is not finite \(.*\); see .*diagnosis.json; lower"
    ):
        train(wild)
    text = (Path(tiny.train.runs) / "train" / "diagnosis.json").read_text()
    assert "ZeroDivisionError" in text
