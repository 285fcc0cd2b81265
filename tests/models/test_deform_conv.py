"""Deformable convolutions: initialization, torchvision's operator, and their position in a ResNet."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcos_fast.models import build_backbone, fcos
from fcos_fast.models.deform_conv import DeformConv2d
from fcos_fast.models.norm import FrozenBatchNorm2d

pytest.importorskip("torchvision", reason="torchvision is not installed")


@pytest.mark.parametrize(("modulated", "factor"), [(False, 1.0), (True, 0.5)])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 4)])
def test_initialized_as_a_plain_convolution(modulated, factor, stride, groups):
    layer = DeformConv2d(8, 12, stride, groups, bias=False, modulated=modulated)
    x = torch.randn(2, 8, 9, 11)
    torch.testing.assert_close(layer(x), factor * layer.conv(x), rtol=1e-5, atol=1e-5)


def test_samples_are_moved_and_masked():
    """Brute force: sample bilinearly at each offset, y first, and multiply by the mask."""
    layer = DeformConv2d(2, 3, modulated=True).double()
    nn.init.normal_(layer.offset.weight, std=0.3)
    nn.init.normal_(layer.offset.bias, std=0.5)
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64)
    learned = layer.offset(x)[0]
    expected = layer.conv.bias[:, None, None].expand(3, 5, 6).clone()
    padded = F.pad(x[0], (9, 9, 9, 9))
    for i in range(5):
        for j in range(6):
            for k in range(9):
                y = i - 1 + k // 3 + learned[2 * k, i, j] + 9
                z = j - 1 + k % 3 + learned[2 * k + 1, i, j] + 9
                y0, z0 = int(y.floor()), int(z.floor())
                sample = sum(
                    (1 - (y - a).abs()) * (1 - (z - b).abs()) * padded[:, a, b]
                    for a in (y0, y0 + 1)
                    for b in (z0, z0 + 1)
                )
                mask = learned[18 + k, i, j].sigmoid()
                expected[:, i, j] += mask * layer.conv.weight[:, :, k // 3, k % 3] @ sample
    torch.testing.assert_close(layer(x)[0], expected)


def test_bfloat16_maps_are_sampled_in_float32():
    layer = DeformConv2d(8, 8, modulated=True)
    nn.init.normal_(layer.offset.weight, std=0.3)
    x = torch.randn(1, 8, 9, 9).bfloat16()
    out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, layer(x.float()).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x), out)


@pytest.mark.parametrize("dcn", ["v1", "v2"])
def test_only_the_requested_stages_are_deformable(dcn):
    backbone = build_backbone("resnet50", dcn=dcn, dcn_stages=(4, 5))
    deformable = {name for name, m in backbone.named_modules() if isinstance(m, DeformConv2d)}
    assert deformable == {f"layer3.{i}.conv2" for i in range(6)} | {f"layer4.{i}.conv2" for i in range(3)}
    state = backbone.state_dict()
    assert state["layer4.0.conv2.offset.weight"].shape == (18 if dcn == "v1" else 27, 512, 3, 3)
    assert state["layer4.0.conv2.conv.weight"].shape == (512, 512, 3, 3)
    assert (state["layer4.0.conv2.offset.weight"] == 0).all()


@pytest.mark.parametrize("backbone", ["resnet18", "resnext50_32x4d"])
def test_offsets_are_learned_and_the_fast_copy_agrees(backbone):
    torch.manual_seed(0)
    options = {"fpn_channels": 32, "head_channels": 32, "head_convs": 1, "min_size": None, "prior": 0.5}
    model = fcos(backbone, 2, dcn="v2", norm="frozen", **options)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(
                module.offset.weight, std=1e-4
            )  # offsets of some pixels: activations are in the hundreds
    images = [torch.rand(3, 64, 64)]
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    sum(model(images, [target]).values()).backward()
    assert all(m.offset.weight.grad.abs().sum() > 0 for m in model.modules() if isinstance(m, DeformConv2d))
    model.eval()
    optimized = model.optimize_for_inference("float32")
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in optimized.modules())  # folded here too
    plain, fast = model(images)[0], optimized(images)[0]
    torch.testing.assert_close(fast["scores"], plain["scores"], rtol=1e-4, atol=1e-4)
    low = model.optimize_for_inference("bfloat16")
    assert len(low(images)[0]["scores"]) > 0
    deformable = next(m for m in low.modules() if isinstance(m, DeformConv2d))
    assert deformable.offset.weight.dtype == torch.float32


def test_invalid_dcn_options():
    with pytest.raises(ValueError, match="dcn='v2': darknet19 has no deformable convolutions; use a ResNet"):
        fcos("darknet19", 2, dcn="v2")
    with pytest.raises(ValueError, match=r"dcn_stages=\(6,\); expected some of 2, 3, 4, 5"):
        build_backbone("resnet18", dcn="v2", dcn_stages=(6,))
    with pytest.raises(ValueError, match="unknown dcn 'v3'; did you mean"):
        build_backbone("resnet18", dcn="v3")


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_last_convolution_of_each_tower(kind):
    torch.manual_seed(0)
    options = {"fpn_channels": 32, "head_channels": 32, "head_convs": 2, "min_size": None, "prior": 0.5}
    model = fcos("resnet18", 2, head_dcn=kind, **options)
    assert [name for name, m in model.head.named_modules() if isinstance(m, DeformConv2d)] == [
        "classification_head.conv.3",
        "regression_head.conv.3",
    ]
    images = [torch.rand(3, 64, 64)]
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    sum(model(images, [target]).values()).backward()
    assert all(m.offset.weight.grad.abs().sum() > 0 for m in model.modules() if isinstance(m, DeformConv2d))
    if kind == "v1":  # initialized as the plain convolution
        plain = fcos("resnet18", 2, **options).eval()
        state = {key.replace(".conv.3.conv.", ".conv.3."): value for key, value in model.state_dict().items()}
        plain.load_state_dict({key: value for key, value in state.items() if "offset" not in key})
        torch.testing.assert_close(
            model.eval()(images)[0]["scores"], plain(images)[0]["scores"], rtol=1e-4, atol=1e-5
        )
