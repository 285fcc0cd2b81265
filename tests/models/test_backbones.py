from __future__ import annotations

import pytest
import torch
from torch import nn

from fcos_fast.models import BACKBONES, build_backbone
from fcos_fast.models.norm import FrozenBatchNorm2d, conv_norm

RESNETS = ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_has_torchvisions_state_dict(name, torchvision):
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name).state_dict()
        ours = build_backbone(name).state_dict()
    wanted = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == wanted


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_resnet_computes_what_torchvision_does(name, norm, torchvision):
    theirs = torchvision.models.get_model(name).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    ours = build_backbone(name, norm=norm).eval()
    ours.load_state_dict(theirs.state_dict())  # the classifier is left out, the rest is strict
    x = torch.randn(2, 3, 65, 96)
    features = torchvision.models._utils.IntermediateLayerGetter(
        theirs, {"layer1": "c2", "layer2": "c3", "layer3": "c4", "layer4": "c5"}
    )
    for c, expected in zip(ours(x), features(x).values(), strict=True):
        torch.testing.assert_close(c, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_stride_in_1x1_moves_the_stride():
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


def test_darknet19_is_the_papers():
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
def test_freezing_is_torchvisions(trainable, torchvision):
    with torch.device("meta"):
        theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=trainable
        ).body
        ours = build_backbone("resnet18", trainable_stages=trainable)
    wanted = {name: parameter.requires_grad for name, parameter in theirs.named_parameters()}
    assert {name: parameter.requires_grad for name, parameter in ours.named_parameters()} == wanted


@pytest.mark.parametrize("name", ["resnet18", "darknet19"])
def test_frozen_stages_keep_their_statistics(name):
    backbone = build_backbone(name, trainable_stages=3).train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.randn(2, 3, 64, 64))
    changed = {
        key.split(".")[0] for key, value in backbone.state_dict().items() if not value.equal(before[key])
    }
    assert changed == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "darknet19"])
def test_gradients_reach_every_parameter(name, norm):
    backbone = build_backbone(name, norm=norm)
    # The network of a classifier at random weights, without a trained norm, grows by orders of magnitude.
    sum(c.abs().mean().log() for c in backbone(torch.randn(2, 3, 64, 64))).backward()
    for parameter_name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().sum() > 0, parameter_name


def test_unknown_name_is_answered_with_the_nearest():
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


@pytest.mark.parametrize("name", ["resnet18", "darknet19"])
def test_frozen_norms_keep_activations_in_bfloat16(name):
    backbone = build_backbone(name, norm="frozen")
    norm = FrozenBatchNorm2d(4)
    with torch.autocast("cpu", torch.bfloat16):
        assert [c.dtype for c in backbone(torch.rand(1, 3, 32, 32))] == [torch.bfloat16] * 4
        assert norm(torch.rand(1, 4, 2, 2).bfloat16()).dtype == torch.bfloat16
