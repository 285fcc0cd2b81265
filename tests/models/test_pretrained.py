"""Weights of classification models for backbones."""

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


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "efficientnet_lite0", "coat_lite_tiny"]
)
def test_a_file_of_timms_classifier(name, tmp_path):
    """The last layer belongs to the classifier."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model(name, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(f"timm:{name}").eval()
    load_pretrained(backbone, tmp_path / "weights.pth")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, intermediates_only=True, norm=False)
        assert torch.equal(backbone(images)[-1], expected[-1])


def test_a_safetensors_file(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = timm.create_model("mobilenetv3_small_050").state_dict()
    path = tmp_path / "model.safetensors"
    safetensors.save_file(theirs, path)
    backbone = build_backbone("timm:mobilenetv3_small_050")
    load_pretrained(backbone, path)
    assert torch.equal(backbone.features.conv_stem.weight, theirs["conv_stem.weight"])
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(
        ValueError, match=r"model\.safetensors \(1000 bytes\) cannot be read safely as weights"
    ):
        load_pretrained(backbone, path)


def test_a_file_of_another_model_of_timm_is_rejected(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.save(timm.create_model("mobilenetv3_small_075").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="weights of another network than this backbone; .*of another shape"):
        load_pretrained(build_backbone("timm:mobilenetv3_small_050"), tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("backbone", "source", "asked"),
    [
        ("timm:resnet18", "timm", "resnet18"),
        ("timm:resnet18.a1_in1k", "timm", "resnet18.a1_in1k"),
        ("timm:resnet18", "timm:resnet18.a2_in1k", "resnet18.a2_in1k"),
        ("resnet18", "timm:resnet18.a1_in1k", "resnet18.a1_in1k"),
    ],
)
def test_timms_weights_by_name(monkeypatch, backbone, source, asked):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    body, wanted, create = build_backbone(backbone), timm.create_model("resnet18"), timm.create_model

    def download(name, pretrained=False, **options):
        if not pretrained:
            return create(name, **options)
        assert name == asked
        return wanted

    monkeypatch.setattr(timm, "create_model", download)
    load_pretrained(body, source)
    state = body.state_dict()
    key = next(key for key in state if key.endswith("layer4.1.conv2.weight"))
    assert torch.equal(state[key], wanted.state_dict()["layer4.1.conv2.weight"])


def test_unavailable_timm_weights(monkeypatch):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    backbone = build_backbone("resnet18")
    with pytest.raises(ValueError, match="timm has no weights of timm:resnet18.none"):
        load_pretrained(backbone, "timm:resnet18.none")
    with pytest.raises(ValueError, match="timm:hf-hub:a/b: timm has no such model"):
        load_pretrained(backbone, "timm:hf-hub:a/b")
    with pytest.raises(FileNotFoundError, match="no such file: timm; expected a file of weights"):
        load_pretrained(backbone, "timm")

    def fail(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(
        ConnectionError, match="no route to host.*https://huggingface.co/timm, then pass the file"
    ):
        load_pretrained(backbone, "timm:resnet18")


@pytest.mark.parametrize(
    "name",
    ["hf-hub:timm/resnet18.a1_in1k", "hf_hub:a/b", "local-dir:/tmp", "https://a/resnet18", "../resnet18", ""],
)
def test_only_names_that_timm_lists_are_built(name, monkeypatch):
    """Other names would access the network or the disk; untrusted checkpoints can contain them."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked"))
    with pytest.raises(ValueError, match="timm has no such model"):
        build_backbone(f"timm:{name}")


def test_weights_of_another_network(tmp_path):
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


def test_other_files_are_rejected(tmp_path):
    (tmp_path / "notes.txt").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pth")
    backbone = build_backbone("resnet18")
    with pytest.raises(ValueError, match=r"notes\.txt \(7 bytes\) cannot be read safely as weights"):
        load_pretrained(backbone, tmp_path / "notes.txt")
    with pytest.raises(ValueError, match=r"list\.pth contains no tensors"):
        load_pretrained(backbone, tmp_path / "list.pth")
    with pytest.raises(
        FileNotFoundError, match="no such file: resnet50; expected a file of weights, or a name such as"
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


def test_message_without_a_connection(torchvision, monkeypatch):
    def fail(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", fail)
    with pytest.raises(
        ConnectionError,
        match=r"no route to host.*download https://\S+\.pth, then pass the file",
    ):
        load_pretrained(build_backbone("resnet18"), "ResNet18_Weights.IMAGENET1K_V1")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match="need torchvision; pip install torchvision"):
        load_pretrained(build_backbone("resnet18"), "ResNet18_Weights.IMAGENET1K_V1")
