from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from fcos_fast.models import BACKBONES, build_backbone, fcos, register_backbone
from fcos_fast.models.backbone import Backbone
from fcos_fast.models.norm import FrozenBatchNorm2d, conv_norm

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
RESNEXTS = ["resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"]


def randomize_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)


@pytest.mark.parametrize("name", RESNETS + RESNEXTS)
def test_resnet_has_torchvisions_state_dict(name, torchvision):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = build_backbone(name).state_dict()
    wanted = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == wanted


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_resnet_equals_torchvisions(name, norm, torchvision):
    theirs = torchvision.models.get_model(name).eval()
    randomize_norms(theirs)
    ours = build_backbone(name, norm=norm).eval()
    ours.load_state_dict(theirs.state_dict())  # ignores the classifier, strict otherwise
    x = torch.randn(2, 3, 65, 96)
    features = torchvision.models._utils.IntermediateLayerGetter(
        theirs, {"layer1": "c2", "layer2": "c3", "layer3": "c4", "layer4": "c5"}
    )
    for c, expected in zip(ours(x), features(x).values(), strict=True):
        torch.testing.assert_close(c, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_mobilenet_equals_torchvisions(norm, torchvision):
    theirs = torchvision.models.mobilenet_v2(weights=None).eval()
    randomize_norms(theirs)
    ours = build_backbone("mobilenet_v2", norm=norm).eval()
    ours.load_state_dict(theirs.state_dict())  # ignores the last convolution and the classifier
    x, maps = torch.randn(2, 3, 65, 96), []
    y = x
    for i, layer in enumerate(theirs.features[:18]):
        y = layer(y)
        if i in (3, 6, 13, 17):
            maps.append(y)
    for c, expected in zip(ours(x), maps, strict=True):
        torch.testing.assert_close(c, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_dla_equals_timms(norm):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = timm.create_model("dla34", pretrained=False, features_only=True).eval()
    randomize_norms(theirs)
    ours = build_backbone("dla34", norm=norm).eval()
    ours.load_state_dict(theirs.state_dict())  # timm has the authors' names
    x = torch.randn(2, 3, 64, 96)
    for c, expected in zip(ours(x), theirs(x)[1:], strict=True):
        torch.testing.assert_close(c, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_dla_loads_the_authors_weights():
    """They contain a classifier, and in nested trees a projection that the code never uses."""
    backbone = build_backbone("dla34")
    state = backbone.state_dict()
    extra = {"level3.project.0.weight": torch.zeros(128, 64, 1, 1), "fc.weight": torch.zeros(1000, 512, 1, 1)}
    backbone.load_state_dict({**state, **extra})
    assert sum(p.numel() for p in backbone.parameters()) == 15_229_104


@pytest.mark.parametrize("name", ["mobilenet_v2", "dla34"])
def test_group_norm_needs_enough_channels(name):
    with pytest.raises(ValueError, match="do not divide into 32 groups; use norm batch or frozen"):
        build_backbone(name, norm="group")


def test_stride_in_1x1():
    first = build_backbone("resnet50", stride_in_1x1=True).layer2[0]
    assert first.conv1.stride == (2, 2)
    assert first.conv2.stride == (1, 1)


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("size", [(320, 480), (61, 97)])
def test_strides_and_channels(name, size):
    with torch.device("meta"):
        backbone = build_backbone(name)
        maps = backbone(torch.empty(1, 3, *size))
    for c, stride, channels in zip(maps, (4, 8, 16, 32), backbone.out_channels, strict=True):
        assert c.shape == (1, channels, -(-size[0] // stride), -(-size[1] // stride))


def test_darknet19_matches_the_paper():
    backbone = build_backbone("darknet19")
    convs = [(m.out_channels, m.kernel_size[0]) for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert convs == [
        *[(32, 3), (64, 3), (128, 3), (64, 1), (128, 3), (256, 3), (128, 1), (256, 3)],
        *[(512, 3), (256, 1), (512, 3), (256, 1), (512, 3)],
        *[(1024, 3), (512, 1), (1024, 3), (512, 1), (1024, 3)],
    ]
    assert backbone.out_channels == (128, 256, 512, 1024)
    x = torch.randn(1, 3, 8, 8)
    first = backbone.stem[0].eval()
    expected = nn.functional.conv2d(x, first.conv.weight, padding=1) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(first(x), torch.where(expected > 0, expected, 0.1 * expected))


@pytest.mark.parametrize("trainable", range(6))
def test_freezing_equals_torchvisions(trainable, torchvision):
    with torch.device("meta"):
        theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=trainable
        ).body
        ours = build_backbone("resnet18", trainable_stages=trainable)
    wanted = {name: parameter.requires_grad for name, parameter in theirs.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in ours.named_parameters()} == wanted


@pytest.mark.parametrize("name", ["resnet18", "darknet19", "mobilenet_v2", "dla34"])
def test_frozen_stages_keep_their_statistics(name):
    backbone = build_backbone(name, trainable_stages=3).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {key for key, value in backbone.state_dict().items() if not value.equal(before[key])}
    modules = {id(module): name for name, module in backbone.named_modules()}
    frozen = tuple(f"{modules[id(m)]}." for stage in backbone.stages()[:2] for m in stage)
    norms = {key for key in before if key.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    assert changed == {key for key in norms if not key.startswith(frozen)}


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "darknet19", "mobilenet_v2"])
def test_gradients_reach_every_parameter(name, norm):
    if (name, norm) == ("mobilenet_v2", "group"):
        pytest.skip("mobilenet_v2 has no group norm")
    backbone = build_backbone(name, norm=norm)
    # With random weights and no trained norm, activations grow by orders of magnitude.
    sum(c.abs().mean().log() for c in backbone(torch.randn(2, 3, 64, 64))).backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown backbone 'resnet5'; did you mean 'resnet50'"):
        build_backbone("resnet5")


def _random_frozen(norm: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.normal_(generator=generator)
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.1, 2, generator=generator)
    return norm


def test_frozen_batch_norm_equals_torchvisions(torchvision):
    x = torch.randn(2, 16, 9, 11)
    ours, theirs = (
        _random_frozen(norm) for norm in (FrozenBatchNorm2d(16), torchvision.ops.FrozenBatchNorm2d(16))
    )
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(nn.BatchNorm2d(16).state_dict())  # has num_batches_tracked


def test_folded_convolution_equals_convolution_and_norm():
    conv, norm = nn.Conv2d(8, 16, 3, 2, padding=1, bias=False), _random_frozen(FrozenBatchNorm2d(16))
    x = torch.randn(2, 8, 15, 17)
    weights = torch.randn(2, 16, 8, 9)
    gradients = []
    for out in (conv_norm(x, conv, norm), norm(conv(x))):
        conv.weight.grad = None
        (out * weights).sum().backward()
        gradients.append(conv.weight.grad)
    torch.testing.assert_close(conv_norm(x, conv, norm), norm(conv(x)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "darknet19", "mobilenet_v2", "dla34"])
def test_frozen_norms_keep_activations_in_bfloat16(name):
    backbone = build_backbone(name, norm="frozen")
    norm = FrozenBatchNorm2d(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert [c.dtype for c in backbone(torch.rand(1, 3, 32, 32))] == [torch.bfloat16] * 4
        assert norm(torch.rand(1, 4, 2, 2).bfloat16()).dtype == torch.bfloat16


def test_registered_backbone(monkeypatch):
    monkeypatch.setitem(BACKBONES, "before", None)  # so that BACKBONES is restored

    @register_backbone("tiny", norm="frozen")
    class Tiny(Backbone):
        out_channels = (1, 2, 3, 4)

        def __init__(self, norm="batch", width=8):
            super().__init__()
            self.norm, self.width = norm, width

        def stages(self):
            return [[], [], [], [], []]

    try:
        backbone = build_backbone("tiny", width=4)
        assert (backbone.norm, backbone.width) == ("frozen", 4)
        assert fcos("resnet18", 2, fpn_channels=32, head_channels=32).config.backbone == "resnet18"
    finally:
        del BACKBONES["tiny"]


def test_timm_models_are_backbones():
    timm = pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    backbone = build_backbone("timm:resnet18", norm="frozen", trainable_stages=3).eval()
    theirs = timm.create_model("resnet18", features_only=True).eval()
    theirs.load_state_dict(backbone.features.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 96)
    for c, expected in zip(backbone(x), theirs(x)[1:], strict=True):
        torch.testing.assert_close(c, expected, rtol=1e-4, atol=1e-4)
    assert {name.split(".")[1] for name, p in backbone.named_parameters() if p.requires_grad} == {
        "layer2",
        "layer3",
        "layer4",
    }


def test_swin_accepts_any_image_size():
    pytest.importorskip("timm", reason="timm is not installed")
    backbone = build_backbone("timm:swin_tiny_patch4_window7_224").eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    assert [tuple(c.shape) for c in maps] == [(1, 96 << i, 16 >> i, 24 >> i) for i in range(4)]


def test_a_timm_model_trains_and_detects():
    pytest.importorskip("timm", reason="timm is not installed")
    model = fcos("timm:convnext_atto", 2, fpn_channels=32, head_channels=32, head_convs=1, min_size=None)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    sum(model([torch.rand(3, 64, 64)], [target]).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert set(model.eval()([torch.rand(3, 64, 64)])[0]) == {"boxes", "scores", "labels"}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("timm:resnet1", {}, "timm:resnet1: timm has no such model"),
        (
            "timm:vit_tiny_patch16_224",
            {},
            r"has feature maps at strides \[16, 16, 16\]; expected 4, 8, 16 and 32",
        ),
        ("timm:resnet18", {"norm": "group"}, "norm='group' is not available for timm models"),
        (
            "timm:efficientnet_b0",
            {"trainable_stages": 3},
            "cannot be frozen one by one; use trainable_stages 5 or 0",
        ),
    ],
)
def test_unsupported_timm_models(name, options, message):
    pytest.importorskip("timm", reason="timm is not installed")
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **options)


def test_message_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="backbone 'timm:resnet18' needs timm; pip install timm"):
        build_backbone("timm:resnet18")


@pytest.mark.parametrize("name", ["regnety_002", "convnext_atto", "efficientnet_b0"])
def test_fast_copy_of_a_timm_model(name):
    """Norms with an activation, layer norms, linear layers: folding and 16 bits must not break them."""
    pytest.importorskip("timm", reason="timm is not installed")
    torch.manual_seed(0)
    small = {"fpn_channels": 32, "head_channels": 32, "head_convs": 1, "min_size": None, "prior": 0.5}
    model = fcos(f"timm:{name}", 2, **small).eval()
    randomize_norms(model.backbone)
    image = torch.rand(3, 64, 64)
    x = model.transform.batch([model.transform(image)]).tensor
    with torch.no_grad():
        expected = model.network(x).cls_logits
        exact = model.optimize_for_inference("float32").network(x).cls_logits
        rough = model.optimize_for_inference("bfloat16").network(x).cls_logits
        with torch.autocast("cpu", torch.bfloat16):
            torchs = model.network(x).cls_logits
    for plain, fast, low, own in zip(expected, exact, rough, torchs, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3 * plain.abs().max().item())
        assert low.dtype == torch.bfloat16
        # random weights lose a lot in 16 bits, also under torch's autocast
        assert (low - plain).norm() <= 2 * (own - plain).norm() + 0.01 * plain.norm()


@pytest.mark.parametrize("name", ["resnet18", "timm:resnet18"])
def test_stages_can_be_unfrozen(name):
    if name.startswith("timm"):
        pytest.importorskip("timm", reason="timm is not installed")
    backbone = build_backbone(name, trainable_stages=0)
    assert not any(p.requires_grad for p in backbone.parameters())
    for trainable in (3, 5):
        backbone.freeze(trainable)
        frozen = [name for name, p in backbone.named_parameters() if not p.requires_grad]
        assert bool(frozen) == (trainable == 3)
    assert backbone.train().training
    assert all(module.training for module in backbone.modules())
