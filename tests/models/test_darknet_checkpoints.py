"""Checkpoints of notebooks with DarkNet19 in blocks: ``backbone.block1.0.weight`` and so on."""

from __future__ import annotations

import pytest
import torch

from fcos_fast.engine.checkpoint import model_from_checkpoint
from fcos_fast.engine.foreign import read_foreign
from fcos_fast.models import build_backbone, fcos
from fcos_fast.models.checkpoint_formats import find_format, to_format
from fcos_fast.models.darknet import read_in_order
from fcos_fast.models.pretrained import load_pretrained

SMALL = {"fpn_channels": 32, "head_channels": 32, "head_convs": 4, "min_size": None}
CONVS = (1, 1, 3, 3, 5, 5)  # convolutions per block, between the max pools of the paper's table 6
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def block_names(first_pool: bool, flat: bool):
    """A notebook's names: blocks of convolution, norm and leaky ReLU, with a max pool at either end."""
    for block, convs in enumerate(CONVS, start=1):
        at = 1 if first_pool and block > 1 else 0
        for k in range(convs):
            conv, norm = (f"{at + 3 * k}", f"{at + 3 * k + 1}") if flat else (f"{at + k}.0", f"{at + k}.1")
            yield f"block{block}.{conv}.weight"
            yield from (f"block{block}.{norm}.{name}" for name in NORM)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = fcos("darknet19", 20, "notebook", norm="batch", **SMALL).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "body" in name:
                tensor.add_(torch.rand_like(tensor) * 0.01)
    return model


def renamed(model, format, names):
    theirs, prefix = to_format(model.state_dict(), find_format(format)), ""
    if format == "notebook":
        prefix = "fcos_body."
    own = [key for key in theirs if key.startswith(prefix + "backbone.")]
    new = dict(zip(own, names, strict=True))
    return {prefix + "backbone." + new[key] if key in new else key: x for key, x in theirs.items()}


@pytest.mark.parametrize("format", ["bubbliiiing", "notebook"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("first_pool", [True, False])
def test_a_notebooks_checkpoint_is_read(model, format, flat, first_pool):
    state = renamed(model, format, block_names(first_pool, flat))
    assert any(key.endswith("backbone.block1.0.weight") for key in state) or not flat
    found = read_foreign({"model": state}, overrides=SMALL)
    assert found.presets == ("notebook",)
    again, categories = model_from_checkpoint(found.state)
    assert again.config.backbone == "darknet19"
    assert len(categories) == 20
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for ours, expected in zip(again.eval().network(image), model.network(image), strict=True):
            for x, y in zip(ours, expected, strict=True):
                torch.testing.assert_close(x, y)


def test_tensors_with_other_names_are_read_in_order():
    """A file of only the backbone, with DarkNet19's classifier at the end."""
    backbone = build_backbone("darknet19")
    tensors = {f"{i}": value for i, (_, value) in enumerate(backbone.state_dict().items()) if value.ndim}
    tensors |= {"conv19.weight": torch.zeros(1000, 1024, 1, 1), "conv19.bias": torch.zeros(1000)}
    read = read_in_order(tensors)
    own = build_backbone("darknet19", norm="frozen")
    own.load_state_dict(read)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, expected in zip(own(x), backbone.eval()(x), strict=True):
            torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_a_file_of_the_backbone_alone(norm, tmp_path):
    source = build_backbone("darknet19")
    names = [*block_names(True, False)]
    assert len(names) == len(source.state_dict())
    state = dict(zip(names, source.state_dict().values(), strict=True)) | {
        "head.weight": torch.zeros(1000, 1024, 1, 1)
    }
    torch.save(state, tmp_path / "darknet19.pt")
    backbone = build_backbone("darknet19", norm=norm)
    load_pretrained(backbone, tmp_path / "darknet19.pt")
    for key, value in backbone.state_dict().items():
        torch.testing.assert_close(value, source.state_dict()[key])


def test_errors_name_the_tensor(model):
    state = renamed(model, "bubbliiiing", block_names(False, True))
    state["backbone.block3.0.weight"] = torch.zeros(7, 64, 3, 3)
    with pytest.raises(
        ValueError, match=r"block3\.0\.weight has shape \(7, 64, 3, 3\); expected \(128, 64, 3, 3\)"
    ):
        read_foreign(state, overrides=SMALL)
    few = {key: value for key, value in state.items() if "block6" not in key}
    with pytest.raises(ValueError, match="DarkNet19 has 90 tensors"):
        read_foreign(few, overrides=SMALL)
