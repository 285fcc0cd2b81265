"""The optimizer, and its parameter groups."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fcos_fast.engine.config import OptimizerConfig

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Trainable parameters in three groups: weights, normalization weights and biases.

    Each group has a ``weight_decay`` and a ``base_lr``, which :func:`set_learning_rate` multiplies.
    """
    weights, norms, biases = [], [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if name == "bias":
                biases.append(parameter)
            elif isinstance(module, _NORMS) or parameter.ndim <= 1:
                norms.append(parameter)
            else:
                weights.append(parameter)
    groups = [
        {"params": weights, "weight_decay": config.weight_decay, "base_lr": config.lr},
        {"params": norms, "weight_decay": config.decay_norm * config.weight_decay, "base_lr": config.lr},
        {
            "params": biases,
            "weight_decay": config.decay_bias * config.weight_decay,
            "base_lr": config.lr * config.bias_lr_factor,
        },
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer of the trainable parameters of ``model``, with torch's fused kernels.

    Raises:
        ValueError: no parameter is trainable.
    """
    groups = parameter_groups(model, config)
    if not groups:
        raise ValueError("the model has no trainable parameter; increase model.trainable_stages")
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.momentum:
        # Otherwise the first step allocates it uninitialized, and it stays so if that step is skipped.
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def prepare_for_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Make learning rates tensors on a GPU, so that a CUDA graph reads their current values, and numbers on a CPU.

    Call it after ``load_state_dict``, which restores the form that the saved run had.
    """
    on_gpu = device.type == "cuda"
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["lr"] = torch.tensor(rate, device=device) if on_gpu else rate
        if "capturable" in group:
            group["capturable"] = on_gpu


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set the learning rate of every group to its base learning rate times ``factor``."""
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
