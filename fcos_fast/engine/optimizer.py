"""The optimizer and which parameters it decays."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcos_fast.engine.config import OptimizerConfig

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict]:
    """Trainable parameters as weights, normalisation weights and biases, in the order of ``model.modules()``.

    Each group has its ``weight_decay`` and ``base_lr``, which :func:`set_learning_rate` multiplies.
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
    """The optimizer over ``model``'s trainable parameters, one fused kernel per step where torch has one."""
    groups = parameter_groups(model, config)
    if not groups:
        raise ValueError("the model has no trainable parameter; lower the number of frozen stages")
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.momentum:
        # Otherwise the first step makes it of unwritten memory, which stays where that step is skipped.
        for parameter in (p for group in groups for p in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def prepare_for_device(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Learning rates as numbers on the CPU and, so that a CUDA graph reads them anew, as tensors on a GPU.

    After ``load_state_dict``, which brings what the saved run had.
    """
    on_gpu = device.type == "cuda"
    for group in optimizer.param_groups:
        rate = float(group["lr"])
        group["lr"] = torch.tensor(rate, device=device) if on_gpu else rate
        if "capturable" in group:
            group["capturable"] = on_gpu


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its base learning rate times ``factor``."""
    for group in optimizer.param_groups:
        rate = group["base_lr"] * factor
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
