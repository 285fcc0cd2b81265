"""Which parameters are decayed, and steps compared with torch's for-loop implementations."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcos_fast.engine.optimizer import OptimizerConfig, build_optimizer, parameter_groups, set_learning_rate


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))


def small_model():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.BatchNorm2d(8), nn.Linear(8, 2), Scale())
    model[3].weight.requires_grad_(False)
    return model


def decay_by_parameter(model, **options):
    names = {p: n for n, p in model.named_parameters()}
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1, lr=1.0, **options))
    return {names[p]: (g["weight_decay"], g["base_lr"]) for g in groups for p in g["params"]}


def test_norms_biases_and_scales_are_not_decayed():
    decay = decay_by_parameter(small_model())
    assert decay == {
        "0.weight": (0.1, 1.0),
        "0.bias": (0, 1.0),
        "1.weight": (0, 1.0),
        "1.bias": (0, 1.0),
        "2.weight": (0, 1.0),
        "2.bias": (0, 1.0),
        "3.bias": (0, 1.0),
        "4.scale": (0, 1.0),
    }


def test_official_fcos_decays_norms_and_doubles_the_rate_of_biases():
    decay = decay_by_parameter(small_model(), decay_norm=True, bias_lr_factor=2.0)
    assert decay["1.weight"] == (0.1, 1.0)
    assert decay["1.bias"] == (0, 2.0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_step_is_torchs_plain_step(name):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    other = nn.Linear(5, 3)
    other.load_state_dict(model.state_dict())
    config = OptimizerConfig(name=name, lr=0.1, weight_decay=0.02, decay_norm=True, decay_bias=True)
    optimizer = build_optimizer(model, config)
    plain = (
        torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, weight_decay=0.02, foreach=False)
        if name == "sgd"
        else torch.optim.AdamW(other.parameters(), lr=0.05, weight_decay=0.02, foreach=False)
    )
    set_learning_rate(optimizer, 0.5)
    for _ in range(3):
        x = torch.randn(4, 5)
        for m, o in ((model, optimizer), (other, plain)):
            o.zero_grad()
            m(x).square().mean().backward()
            o.step()
    torch.testing.assert_close(model.weight, other.weight)
    torch.testing.assert_close(model.bias, other.bias)


def test_frozen_model_is_rejected():
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimizerConfig())


def test_invalid_learning_rate():
    with pytest.raises(ValueError, match=r"optimizer\.lr=0; expected a positive number"):
        OptimizerConfig(lr=0)
