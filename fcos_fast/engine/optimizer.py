"""The optimizer and which parameters it decays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum, or AdamW (Loshchilov and Hutter, 2019).

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: base learning rate, which the schedule multiplies.
        momentum: of SGD.
        betas: of AdamW.
        weight_decay: of every weight matrix and convolution kernel.
        decay_norm: decay the weights of normalisation layers too, as official FCOS and torchvision's script do.
        decay_bias: decay biases too, as torchvision's script does.
        bias_lr_factor: learning rate of biases relative to ``lr``; official FCOS has 2.
        clip_norm: largest norm of the gradient of all parameters together; 0 does not clip.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    decay_norm: bool = False
    decay_bias: bool = False
    bias_lr_factor: float = 1.0
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr is {self.lr}; it must be positive")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError(
                f"optimizer.weight_decay is {self.weight_decay} and clip_norm {self.clip_norm}; "
                "neither can be negative"
            )


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
