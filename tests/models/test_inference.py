"""``optimize_for_inference`` against the original model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fcos_fast.models.inference_conv import InferenceConv2d
from fcos_fast.models.norm import FrozenBatchNorm2d
from tests.models.test_folding import give_statistics

MODELS = {
    "batch": {"backbone": "resnet18"},
    "frozen": {"backbone": "resnet50", "norm": "frozen", "preset": "torchvision"},
    "retinanet": {"backbone": "resnet18", "preset": "retinanet"},
    "group": {"backbone": "resnet18", "norm": "group"},
    "darknet": {"backbone": "darknet19", "head_norm": "none", "regression": "exp"},
}


@pytest.fixture(params=MODELS)
def model(request, small_model, make_talkative):
    model = small_model(**MODELS[request.param]).eval()
    give_statistics(model)
    make_talkative(model)
    return model


@pytest.fixture
def winograd_however_small(monkeypatch):
    monkeypatch.setattr("fcos_fast.models.inference_conv.MIN_TILES", 1)


class Operators(TorchDispatchMode):
    """Records the names of the operators that run on (B, C, H, W) tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor) and args[0].ndim == 4:
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def _error(maps, exact) -> float:
    """Root mean square error relative to the exact maps, over all maps."""
    differences = torch.cat([(a.double() - b).flatten() for a, b in zip(maps, exact, strict=True)])
    return (differences.norm() / torch.cat([b.flatten() for b in exact]).norm()).item()


def _kept_weights(model):
    convs = [module for module in model.modules() if isinstance(module, InferenceConv2d)]
    return {key for conv in convs for key in conv._kept or ()}


def test_float32_detections_equal_the_original(model, batch, winograd_however_small):
    optimized = model.optimize_for_inference("float32")
    optimized(batch[0])
    assert _kept_weights(optimized) > {"winograd"}  # and some that are packed for an input shape
    for found, expected in zip(optimized(batch[0]), model(batch[0]), strict=True):
        assert len(found["labels"]) == len(expected["labels"]) > 20
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=0, atol=1e-4)
        # By class: detections of different classes can have nearly equal scores.
        for detections in (found, expected):
            order = detections["labels"].argsort(stable=True)
            detections |= {name: values[order] for name, values in detections.items()}
        assert torch.equal(found["labels"], expected["labels"])
        torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=0, atol=0.02)


def test_bfloat16_is_no_worse_than_autocast(model):
    """At most twice autocast's error."""
    x = torch.rand(1, 3, 64, 96)
    optimized = model.optimize_for_inference("bfloat16")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        autocast = model.network(x)
        outputs = optimized.network(x)
    exact = model.double().network(x.double())
    for maps, other, reference in zip(outputs, autocast, exact, strict=True):
        assert all(x.dtype == torch.bfloat16 for x in maps)
        assert 0 < _error(maps, reference) < 2 * _error(other, reference)


def test_bfloat16_detections_are_float32(model, batch):
    optimized = model.optimize_for_inference("bfloat16")
    detections = optimized(batch[0])
    assert "winograd" not in _kept_weights(optimized)
    for found in detections:
        assert found["boxes"].dtype == found["scores"].dtype == torch.float32
        assert len(found["scores"]) > 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_batch_norm_conversion_or_copy_is_left(small_model, precision):
    for norm in ("batch", "frozen"):
        optimized = small_model(norm=norm).optimize_for_inference(precision)
        assert not any(isinstance(m, (nn.BatchNorm2d, FrozenBatchNorm2d)) for m in optimized.modules())
        x = torch.rand(1, 3, 64, 96)
        with torch.no_grad():  # inference mode does not decompose operators
            optimized.network(x)  # packs the weights
            with Operators() as ran:
                optimized.network(x)
        names = " ".join(ran.names)
        assert "mkldnn::_convolution_pointwise" in names
        assert "mkldnn::_reorder_convolution_weight" not in names
        assert "batch_norm" not in names
        assert names.count("_to_copy") == (precision == "bfloat16")  # the image's pixels
        assert names.count("aten::clone") == 1  # the image becomes channels-last


def test_every_map_is_channels_last(small_model):
    optimized = small_model().optimize_for_inference("float32")
    for maps in optimized.network(torch.rand(2, 3, 64, 96)):
        assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


def test_images_of_several_sizes(small_model, make_talkative, batch):
    model = small_model(min_size=100, max_size=150)
    make_talkative(model)
    optimized = model.optimize_for_inference("float32")
    for found, image in zip(optimized(batch[0]), batch[0], strict=True):
        (alone,) = optimized([image])
        assert len(alone["scores"]) > 20
        for key, value in alone.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-2)


def test_the_original_is_not_changed(small_model):
    model = small_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimized = model.optimize_for_inference("float32")
    with torch.no_grad():
        for parameter in optimized.parameters():
            parameter.zero_()
    assert model.training
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_copy_cannot_be_trained(small_model):
    optimized = small_model().optimize_for_inference("float32")
    assert not optimized.eval().training
    assert not any(parameter.requires_grad for parameter in optimized.parameters())
    with pytest.raises(
        RuntimeError, match="made by optimize_for_inference.*train the original model instead"
    ):
        optimized.train()
    with pytest.raises(RuntimeError, match="optimize the original model instead"):
        optimized.optimize_for_inference()


def test_auto_precision(small_model, monkeypatch):
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda fast=fast: fast)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        optimized = small_model().optimize_for_inference()
        assert optimized.inference_dtype == optimized.backbone.body.conv1.weight.dtype == dtype
        assert optimized.transform.mean.dtype == torch.float32


def test_the_network_compiles_to_one_graph(small_model):
    optimized = small_model(backbone="resnet18").optimize_for_inference("float32")
    compiled = torch.compile(optimized.network, backend="eager", fullgraph=True)
    x = torch.rand(1, 3, 64, 96)
    for maps, expected in zip(compiled(x), optimized.network(x), strict=True):
        torch.testing.assert_close(list(maps), list(expected))
