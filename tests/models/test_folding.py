from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fcos_fast.models.backbones import build_backbone
from fcos_fast.models.folding import conv_norm_pairs, fold_batch_norms
from fcos_fast.models.norm import FrozenBatchNorm2d


def _torchvision_frozen(channels: int) -> nn.Module:
    return pytest.importorskip("torchvision").ops.FrozenBatchNorm2d(channels)


NORMS = {
    "batch": nn.BatchNorm2d,
    "batch, eps": lambda channels: nn.BatchNorm2d(channels, eps=0.1),
    "batch without affine": lambda channels: nn.BatchNorm2d(channels, affine=False),
    "frozen": FrozenBatchNorm2d,
    "torchvision's frozen": _torchvision_frozen,
}


def give_statistics(module: nn.Module) -> None:
    """Random statistics and affine parameters near those of the activations."""
    for layer in module.modules():
        if hasattr(layer, "running_var"):
            with torch.no_grad():
                layer.running_mean.normal_(std=0.1)
                layer.running_var.uniform_(0.5, 2.0)
                if layer.weight is not None:
                    layer.weight.uniform_(0.5, 1.5)
                    layer.bias.normal_(std=0.1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_a_folded_pair_computes_the_same(norm, bias):
    conv = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2, bias=bias)
    module = nn.Sequential(nn.Sequential(conv, NORMS[norm](6)), nn.ReLU()).double().eval()
    give_statistics(module)
    x = torch.rand(2, 8, 9, 10, dtype=torch.float64)
    expected = module(x)
    fold_batch_norms(module, [("0.0", "0.1")])
    assert isinstance(module[0][1], nn.Identity)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    torch.testing.assert_close(module(x), expected, rtol=1e-12, atol=1e-12)


def test_weights_are_rounded_once():
    """Folded float32 weights are the float32 numbers nearest to the exact products."""
    module = nn.Sequential(nn.Conv2d(64, 64, 1, bias=False), nn.BatchNorm2d(64)).eval()
    give_statistics(module)
    conv, norm = (copy.deepcopy(layer).double() for layer in module)
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    fold_batch_norms(module, [("0", "1")])
    assert module[0].weight.dtype == module[0].bias.dtype == torch.float32
    assert torch.equal(module[0].weight, (conv.weight * scale[:, None, None, None]).float())
    assert torch.equal(module[0].bias, (norm.bias - norm.running_mean * scale).float())


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "resnext50_32x4d", "darknet19", "mobilenet_v2", "dla34"]
)
def test_every_norm_of_a_backbone_has_its_convolution(name):
    backbone = build_backbone(name).double().eval()
    give_statistics(backbone)
    pairs = conv_norm_pairs(backbone)
    assert len(pairs) == sum(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected = backbone(x)
    fold_batch_norms(backbone, pairs)
    for folded, plain in zip(backbone(x), expected, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-9, atol=1e-9)


def test_pairs_of_torchvisions_resnet(torchvision):
    model = torchvision.models.resnet18(weights=None).double().eval()
    give_statistics(model)
    x = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    fold_batch_norms(model, conv_norm_pairs(model))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("norm", "error", "message"),
    [
        (nn.BatchNorm2d(6), ValueError, r"1: is in training mode; call \.eval\(\)"),
        (nn.BatchNorm2d(5).eval(), ValueError, "1: has 5 channels, but 0 has 6"),
        (nn.BatchNorm2d(6, track_running_stats=False).eval(), ValueError, "1: has no running statistics"),
        (nn.GroupNorm(2, 6), TypeError, "1: got GroupNorm; expected a batch norm"),
    ],
)
def test_errors_name_the_layer(norm, error, message):
    with pytest.raises(error, match=message):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 6, 1), norm), [("0", "1")])


def test_a_norm_after_another_layer():
    with pytest.raises(TypeError, match="0: got Linear; a batch norm folds into an nn.Conv2d"):
        fold_batch_norms(nn.Sequential(nn.Linear(3, 6), nn.BatchNorm2d(6)).eval(), [("0", "1")])
