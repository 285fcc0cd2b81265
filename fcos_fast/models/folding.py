"""Batch norms folded into the convolutions before them: in evaluation the two are one convolution."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn

from fcos_fast.models.deform_conv import DeformConv2d
from fcos_fast.models.norm import folded


def fold_batch_norms(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fold batch norms of ``module`` into their convolutions, once and in place.

    The convolution gets new weights and a bias, without gradient; ``nn.Identity`` takes the place of the norm. The
    products are computed in float64 and rounded once to the convolution's dtype: outputs change by rounding alone.

    Args:
        module: holds the layers; its norms are in evaluation mode.
        pairs: dotted names of a convolution and of the one norm that takes its output, for example
            ``("layer1.0.conv1", "layer1.0.bn1")``. A norm is whatever has ``running_mean``, ``running_var`` and
            ``eps``, and ``weight`` and ``bias`` or None: ``nn.BatchNorm2d``, this project's and torchvision's
            ``FrozenBatchNorm2d``.

    Raises:
        TypeError, ValueError: for another kind of layer, or a norm whose statistics are those of each batch.
    """
    for conv_name, norm_name in pairs:
        conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
        _check(conv_name, conv, norm_name, norm)
        _fold(conv, norm)
        parent, _, child = norm_name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())


def conv_norm_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """The names of every convolution and batch norm that were registered in a row: what :func:`fold_batch_norms` takes.

    The backbones here and those of torchvision register a norm right behind the convolution whose output it takes. A
    network that does otherwise needs its pairs written down.
    """
    pairs = []
    for path, parent in module.named_modules():
        prefix = f"{path}." if path else ""
        for (name, layer), (next_name, next_layer) in pairwise(parent.named_children()):
            inner = ".conv" if isinstance(layer, DeformConv2d) else ""
            if (inner or isinstance(layer, nn.Conv2d)) and _is_batch_norm(next_layer):
                pairs.append((prefix + name + inner, prefix + next_name))
    return pairs


def _is_batch_norm(layer: nn.Module) -> bool:
    # By its name, not by what it has: timm's BatchNormAct2d applies an activation too.
    return type(layer).__name__ in ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d")


def _check(conv_name: str, conv: nn.Module, norm_name: str, norm: nn.Module) -> None:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"{conv_name}: got {type(conv).__name__}; a batch norm folds into an nn.Conv2d")
    if not _is_batch_norm(norm):
        raise TypeError(f"{norm_name}: got {type(norm).__name__}; expected a batch norm, plain or frozen")
    if norm.running_var is None:
        raise ValueError(
            f"{norm_name}: keeps no statistics (track_running_stats=False), so it cannot be folded"
        )
    if isinstance(norm, nn.BatchNorm2d) and norm.training:
        raise ValueError(f"{norm_name}: is in training mode; call .eval() before folding")
    if norm.running_var.shape != (conv.out_channels,):
        raise ValueError(
            f"{norm_name}: has {norm.running_var.numel()} channels, {conv_name} gives {conv.out_channels}; "
            "name the norm that takes its output"
        )


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    weight, shift = folded(conv, norm, torch.float64)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
