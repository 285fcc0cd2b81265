from __future__ import annotations

import pytest
import torch
from torch import nn

from fcos_fast import ops
from fcos_fast.assignment import GroundTruth
from fcos_fast.models import FCOSConfig


def test_the_network_exports(small_model):
    model = small_model().eval()
    x = torch.rand(2, 3, 64, 96)
    exported = torch.export.export(nn.Sequential(model.backbone, model.head), (x,)).module()
    for maps, expected in zip(exported(x), model.head(model.backbone(x)), strict=True):
        torch.testing.assert_close(list(maps), list(expected))


def test_the_losses_are_one_graph(small_model):
    model = small_model()
    batch = model.transform.batch([torch.rand(3, 64, 96)])
    targets = model.assign(batch, GroundTruth.pack([torch.tensor([[8.0, 9, 50, 60]])], [torch.tensor([1])]))
    outputs = model.head(model.backbone(batch.tensor))
    compiled = torch.compile(ops.detection_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*outputs, targets, units=FCOSConfig().strides),
        ops.detection_loss(*outputs, targets, units=FCOSConfig().strides),
    )


class TinyBody(nn.Module):
    """C3, C4 and C5 by one convolution and batch norm each, which compiles in seconds."""

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
            )
            for before, after, stride in zip([3, *channels[:-1]], channels, (8, 2, 2), strict=True)
        )

    def forward(self, x):
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def prepare(model, height, width):
    batch = model.transform.batch([torch.rand(3, height, width), torch.rand(3, height - 20, width)])
    boxes = torch.tensor([[8.0, 9, 50, 60]])
    gt = GroundTruth.pack([boxes, boxes + 7], [torch.tensor([1]), torch.tensor([2])], capacity=16)
    return batch.tensor, model.assign(batch, gt)


def losses_and_gradients(model, function, images, targets):
    model.zero_grad()
    losses = function(images, targets)
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_compiled_is_eager(model, compiled, images, targets):
    actual, expected = (
        losses_and_gradients(model, function, images, targets) for function in (compiled, model.losses)
    )
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    for name, gradient in expected[1].items():
        difference = (actual[1][name] - gradient).norm()
        assert difference <= 1e-3 * gradient.norm(), f"{name}: {difference}"  # P7's may be 0


each_detector = pytest.mark.parametrize("preset", ["official-improved", "retinanet", "torchvision-retinanet"])


@pytest.mark.slow
@each_detector
def test_network_and_losses_are_one_graph(small_model, preset):
    model = small_model(backbone="resnet18", preset=preset)
    compiled = torch.compile(model.losses, fullgraph=True, backend="aot_eager")
    assert_compiled_is_eager(model, compiled, *prepare(model, 64, 96))


@pytest.fixture(params=["official-improved", "retinanet"])
def tiny(request, small_model):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_model(backbone="resnet18", preset=request.param)
    model.backbone.body = TinyBody([block[0].in_channels for block in model.backbone.fpn.inner_blocks])
    return model


@pytest.mark.slow
def test_further_sizes_share_a_graph(tiny):
    """The first size has its own graph, the second compiles one for all sizes."""
    compiled = torch.compile(tiny.losses, fullgraph=True, backend="aot_eager")
    for size in [(160, 192), (192, 256), (256, 160)]:
        assert_compiled_is_eager(tiny, compiled, *prepare(tiny, *size))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_inductor_computes_the_same(tiny):
    compiled = torch.compile(tiny.losses, fullgraph=True)
    assert_compiled_is_eager(tiny, compiled, *prepare(tiny, 64, 96))
