"""Folds batch norms into the convolutions before them, permanently: an inference-only network has no norms.

:mod:`fcos_fast.integrations.layers` folds reversibly, for models that keep training. Both use the arithmetic of
:func:`fcos_fast.models.norm.folded`.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import torch
from torch import nn

from fcos_fast.models.deform_conv import DeformConv2d
from fcos_fast.models.norm import folded


def fold_batch_norms(module: nn.Module, pairs: Iterable[tuple[str, str]]) -> None:
    """Fold batch norms of ``module`` into their convolutions, in place and for good.

    The convolution gets new weights and a bias, without gradient; the norm becomes ``nn.Identity``. Products are
    computed in float64 and rounded once to the convolution's dtype, so outputs change by rounding only.

    Args:
        module: contains the layers; its norms are in evaluation mode.
        pairs: dotted names of a convolution and of the only norm that reads its output, for example
            ``("layer1.0.conv1", "layer1.0.bn1")``, as :func:`conv_norm_pairs` finds them. Norms are ``nn.BatchNorm2d``,
            ``nn.SyncBatchNorm``, and ``FrozenBatchNorm2d`` of this project or torchvision.

    Raises:
        TypeError, ValueError: another kind of layer, or a norm without running statistics.
    """
    for conv_name, norm_name in pairs:
        conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
        _fold(_check(conv_name, conv, norm_name, norm), norm)
        parent, _, child = norm_name.rpartition(".")
        setattr(module.get_submodule(parent), child, nn.Identity())


def conv_norm_pairs(module: nn.Module) -> list[tuple[str, str]]:
    """The names of every convolution and of the batch norm registered directly after it.

    In the backbones of this project and of torchvision, that norm is the one that reads the convolution's output.
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
    # By its class name, which also covers torchvision's. Not subclasses: timm's BatchNormAct2d applies an activation.
    return type(layer).__name__ in ("BatchNorm2d", "SyncBatchNorm", "FrozenBatchNorm2d")


def _check(conv_name: str, conv: nn.Module, norm_name: str, norm: nn.Module) -> nn.Conv2d:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"{conv_name}: got {type(conv).__name__}; a batch norm folds into an nn.Conv2d")
    if not _is_batch_norm(norm):
        raise TypeError(f"{norm_name}: got {type(norm).__name__}; expected a batch norm, plain or frozen")
    variance = dict(norm.named_buffers(recurse=False)).get("running_var")
    if variance is None:
        raise ValueError(
            f"{norm_name}: has no running statistics (track_running_stats=False), so it cannot be folded"
        )
    if isinstance(norm, nn.BatchNorm2d) and norm.training:
        raise ValueError(f"{norm_name}: is in training mode; call .eval() before folding")
    if variance.shape != (conv.out_channels,):
        raise ValueError(
            f"{norm_name}: has {variance.numel()} channels, but {conv_name} has {conv.out_channels}; "
            "name the norm that reads its output"
        )
    return conv


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    weight, shift = folded(conv, norm, torch.float64)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=False)
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=False)
