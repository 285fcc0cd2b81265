"""``fcos_fast.accelerate`` of subclasses of torchvision's detectors, and of modules that contain one."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import fcos_fast

pytest.importorskip("torchvision")
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead

from tests.integrations.detectors import (
    NUM_CLASSES,
    SIZES,
    Pyramid,
    assert_same_detections,
    assert_same_step,
    detect,
    prepare,
    small_fcos,
    small_retinanet,
    train_step,
)


class Hub:
    """A mixin that does not affect the forward pass."""

    repository = "none"

    def push(self) -> str:
        return f"{type(self).__name__} of {self.repository}"

    def train(self, mode: bool = True):
        self.modes = [*getattr(self, "modes", []), mode]
        return super().train(mode)


class OwnHead(FCOSHead):
    """Only another name."""


class OwnClassificationHead(FCOSClassificationHead):
    def initialize(self) -> None:
        nn.init.zeros_(self.cls_logits.weight)


class HubFCOS(Hub, detection.FCOS):
    def __init__(self) -> None:
        anchors = AnchorGenerator(((8,), (16,), (33,)), ((1.0,),) * 3)
        super().__init__(Pyramid(), NUM_CLASSES, anchor_generator=anchors, **SIZES)
        self.head = OwnHead(64, 1, NUM_CLASSES, 4)
        self.head.classification_head = OwnClassificationHead(64, 1, NUM_CLASSES, 4)


class HubRetinaNet(detection.RetinaNet, Hub):
    def __init__(self) -> None:
        anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
        super().__init__(Pyramid(), NUM_CLASSES, anchor_generator=anchors, **SIZES)


class Grandchild(HubRetinaNet):
    pass


SUBCLASSES = [HubFCOS, HubRetinaNet, Grandchild]


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_a_subclass_that_overrides_nothing(kind, batch, capsys):
    model = prepare(kind())
    expected = train_step(copy.deepcopy(model), batch)
    expected_detections = detect(model, batch[0])
    fcos_fast.accelerate(model)
    assert capsys.readouterr().out.startswith(f"fcos_fast.accelerate: {kind.__name__}: ")
    assert isinstance(model, kind)
    assert model.push() == f"{kind.__name__} of none"
    assert_same_step(train_step(model, batch), expected, 1e-5)
    assert_same_detections(detect(model, batch[0]), expected_detections)
    fcos_fast.accelerate(model, channels_last=True)
    assert type(fcos_fast.restore(model)) is kind
    assert not any("fcos_fast" in type(module).__module__ for module in model.modules())


@pytest.mark.parametrize("kind", SUBCLASSES)
def test_copies_and_files_of_a_subclass(kind, batch):
    model = fcos_fast.accelerate(prepare(kind()))
    expected = detect(model, batch[0])
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert type(other) is type(model)
        assert_same_detections(detect(other, batch[0]), expected, 1e-7)
        assert type(fcos_fast.restore(other)) is kind
    assert isinstance(model, kind)


class OwnLoss(HubFCOS):
    def compute_loss(self, *arguments):
        return super().compute_loss(*arguments)


class Clipping(HubRetinaNet):
    def postprocess_detections(self, *arguments):
        return super().postprocess_detections(*arguments)


class FromAMixin:
    def forward(self, images, targets=None):
        return super().forward(images, targets)


class Mixed(FromAMixin, HubRetinaNet):
    pass


class Taken(HubRetinaNet):
    def _losses(self) -> list:
        return []


class OwnMap(FCOSHead):
    @staticmethod
    def forward(x):
        return x


def _with_own_map():
    model = small_fcos()
    model.head.__class__ = OwnMap
    return model


def _with_an_attribute():
    model = small_retinanet()
    model.acceleration = 2
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (OwnLoss, "model is OwnLoss, a subclass that overrides compute_loss of torchvision's FCOS"),
        (Clipping, "overrides postprocess_detections of torchvision's RetinaNet"),
        (Mixed, "overrides forward"),
        (Taken, "Taken defines _losses"),
        (_with_own_map, "model.head is OwnMap, a subclass that overrides forward"),
        (_with_an_attribute, "defines acceleration"),
    ],
)
def test_subclasses_with_overrides_are_rejected(build, message):
    model = build()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(TypeError, match=message):
        fcos_fast.accelerate(model)
    assert [type(module) for module in model.modules()] == kinds


class Task(nn.Module):
    """Like a LightningModule."""

    def __init__(self, **models: nn.Module) -> None:
        super().__init__()
        self.criterion = nn.Linear(2, 2)
        self.inner = nn.ModuleDict(models)
        self.again = next(iter(models.values()), None)  # the same object under a second name is one detector


@pytest.mark.parametrize("build", [small_fcos, small_retinanet, HubRetinaNet])
def test_a_module_that_contains_one_detector(build, batch):
    model = prepare(build())
    expected = train_step(copy.deepcopy(model), batch)
    task = Task(model=model)
    keys = list(task.state_dict())
    assert fcos_fast.accelerate(task) is task
    assert fcos_fast.accelerate(task, channels_last=True) is task  # undoes the first
    assert task.again is model
    assert model.acceleration.channels_last
    assert list(task.state_dict()) == keys
    assert_same_step(train_step(model, batch), expected, 1e-4)
    assert fcos_fast.restore(task) is task
    assert type(model) is (HubRetinaNet if build is HubRetinaNet else type(build()))
    with pytest.raises(ValueError, match="this Task was not accelerated"):
        fcos_fast.restore(task)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Task(), "Task: expected torchvision.* a module that contains exactly one"),
        (
            lambda: Task(student=small_fcos(), teacher=small_retinanet()),
            r"contains 2 detectors, model\.inner\.student, model\.inner\.teacher; accelerate them one by one",
        ),
        (lambda: Task(model=nn.DataParallel(small_fcos())), r"model\.inner\.model is a wrapper"),
        (lambda: Task(model=torch.compile(small_fcos())), r"model\.inner\.model is a compiled model"),
        (lambda: Task(model=OwnLoss()), "overrides compute_loss"),
        (lambda: fcos_fast.retinanet("resnet18", 2), "built in"),
    ],
)
def test_other_modules_are_rejected(build, message):
    with pytest.raises(TypeError, match=message):
        fcos_fast.accelerate(build())
