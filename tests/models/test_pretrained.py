"""Weights of classification models for backbones: what is taken, what is left out, what is refused."""

from __future__ import annotations

import sys
from urllib.error import URLError

import pytest
import torch

from fcos_fast.models import build_backbone
from fcos_fast.models.pretrained import load_pretrained


@pytest.mark.parametrize(
    ("name", "norm"), [("resnet18", "frozen"), ("resnet18", "batch"), ("mobilenet_v2", "frozen")]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_file_of_torchvisions_classifier(name, norm, wrapped, torchvision, tmp_path):
    theirs = torchvision.models.get_model(name, weights=None).state_dict()
    saved = (
        {"state_dict": {f"module.{key}": value for key, value in theirs.items()}, "epoch": 90}
        if wrapped
        else theirs
    )
    torch.save(saved, tmp_path / "weights.pth")
    backbone = build_backbone(name, norm=norm)
    load_pretrained(backbone, tmp_path / "weights.pth")
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_a_file_of_timms_classifier(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model("resnet18").state_dict()
    torch.save(theirs, tmp_path / "weights.pth")
    backbone = build_backbone("timm:resnet18")
    load_pretrained(backbone, tmp_path / "weights.pth")
    assert torch.equal(
        backbone.features.state_dict()["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"]
    )


def test_weights_of_another_network_are_refused_with_a_list(tmp_path):
    torch.save(build_backbone("resnet34").state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone("resnet18", norm="frozen")
    before = backbone.conv1.weight.clone()
    with pytest.raises(ValueError, match=r"than this backbone; left over: layer1\.2\.conv1\.weight.* more"):
        load_pretrained(backbone, tmp_path / "weights.pth")
    assert torch.equal(backbone.conv1.weight, before)
    torch.save({"conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match=r"missing: bn1\.weight, .*shape: conv1\.weight \(64, 1, 7, 7\) instead of"
    ):
        load_pretrained(backbone, tmp_path / "weights.pth")


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pth")
    backbone = build_backbone("resnet18")
    with pytest.raises(ValueError, match=r"notes\.txt \(7 bytes\) is no file of weights"):
        load_pretrained(backbone, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"list\.pth holds no tensors"):
        load_pretrained(backbone, tmp_path / "list.pth")
    with pytest.raises(
        FileNotFoundError, match="there is no file resnet50; give a file of weights, or a name as"
    ):
        load_pretrained(backbone, "resnet50")


def test_torchvisions_weights_by_name(torchvision, monkeypatch):
    wanted = torchvision.models.resnet18(weights=None).state_dict()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, *_, **__: wanted)
    backbone = build_backbone("resnet18")
    load_pretrained(backbone, "ResNet18_Weights.IMAGENET1K_V1")
    assert torch.equal(backbone.layer4[1].conv2.weight, wanted["layer4.1.conv2.weight"])
    with pytest.raises(ValueError, match="torchvision has no weights ResNet18_Weights.IMAGENET"):
        load_pretrained(backbone, "ResNet18_Weights.IMAGENET")


def test_without_a_network_the_message_says_what_to_do(torchvision, monkeypatch):
    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(
        ConnectionError, match=r"no route to host.*fetch https://\S+\.pth elsewhere and give the file"
    ):
        load_pretrained(build_backbone("resnet18"), "ResNet18_Weights.IMAGENET1K_V1")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match="need torchvision; pip install torchvision"):
        load_pretrained(build_backbone("resnet18"), "ResNet18_Weights.IMAGENET1K_V1")
