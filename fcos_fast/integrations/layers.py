"""Fused layers: a convolution with the batch norm after it, a group norm with its ReLU.

Only the class of a layer changes; its parameters, buffers, hooks, keys and all references to it stay.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from fcos_fast.models.norm import GroupNormReLU, folded
from fcos_fast.models.winograd import WinogradConv2d

Replaced = list[tuple[nn.Module, type[nn.Module]]]
"""Layers with their previous classes."""


class FoldedConv2d(nn.Conv2d):
    """A convolution that computes ``norm(conv(x))``, for a norm whose statistics are constant.

    The norm's scale multiplies the weight and its shift becomes the bias, which saves a pass over the activations. The
    gradient of ``weight``, which stays the same parameter, includes the scale. A norm in training mode is not folded.
    """

    norm: tuple[nn.Module]  # in a tuple, so that nn.Module does not register it a second time

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the output of the norm."""
        (norm,) = self.norm
        if not _is_constant(norm):
            return super().forward(x)
        return self._conv_forward(x, *folded(self, norm))


class FoldedWinogradConv2d(FoldedConv2d, WinogradConv2d):
    """A folded convolution that uses Winograd's method."""


class FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):  # type: ignore[misc]  # torchvision is not annotated
    """A frozen batch norm that is folded into the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm that in evaluation mode is folded into the convolution before it."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself in evaluation mode."""
        return super().forward(x) if self.training else x


_FOLDED_CONVS: dict[type, type[nn.Module]] = {nn.Conv2d: FoldedConv2d, WinogradConv2d: FoldedWinogradConv2d}
_FOLDED: dict[type, type[nn.Module]] = {
    FrozenBatchNorm2d: FoldedFrozenBatchNorm2d,
    nn.BatchNorm2d: FoldedBatchNorm2d,
}


def _is_constant(norm: nn.Module) -> bool:
    return isinstance(norm, FrozenBatchNorm2d) or not norm.training


def fold_reversibly(backbone: nn.Module) -> Replaced:
    """Fold batch norms of ``backbone`` into the convolutions before them; parameters and keys stay.

    Unlike :func:`fcos_fast.models.folding.fold_batch_norms`, the model can be trained and :func:`undo` undoes it.

    Raises:
        ValueError: no norm can be folded, or torch.fx cannot trace the backbone.
    """
    replaced: Replaced = []
    for conv, norm in _conv_norm_pairs(backbone):
        replaced += [_swap(conv, _FOLDED_CONVS[type(conv)]), _swap(norm, _FOLDED[type(norm)])]
        vars(conv)["norm"] = (norm,)
    if not replaced:
        raise ValueError(
            "accelerate: fold_frozen_bn=True, but no FrozenBatchNorm2d or BatchNorm2d of the backbone follows a "
            "convolution; omit the option"
        )
    return replaced


def _swap(layer: nn.Module, kind: type[nn.Module]) -> tuple[nn.Module, type[nn.Module]]:
    before = type(layer)
    layer.__class__ = kind
    return layer, before


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in (_FOLDED | _FOLDED_CONVS) or super().is_leaf_module(module, name)


def _conv_norm_pairs(backbone: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Convolutions and norms that read nothing but the convolution's output; each layer is called once.

    Traced, because foreign backbones register their layers in any order.
    """
    try:
        graph = _Tracer().trace(backbone)
    except Exception as error:  # of any kind, from the backbone's forward with symbolic values
        raise ValueError(
            f"accelerate: fold_frozen_bn=True needs a backbone that torch.fx can trace, but "
            f"{type(backbone).__name__} cannot be traced ({error}); omit the option"
        ) from error
    modules = dict(backbone.named_modules(remove_duplicate=False))
    called = {node: modules[str(node.target)] for node in graph.nodes if node.op == "call_module"}
    calls = Counter(map(id, called.values()))
    pairs = []
    for node, norm in called.items():
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before not in called or len(before.users) != 1:
            continue
        conv = called[before]
        if type(norm) not in _FOLDED or type(conv) not in _FOLDED_CONVS:
            continue
        is_called_once = calls[id(conv)] == calls[id(norm)] == 1
        if is_called_once and norm.running_var is not None:  # None without statistics
            pairs.append((conv, norm))
    return pairs


def fuse_group_norms(model: nn.Module) -> Replaced:
    """Fuse every group norm with the ReLU after it in an ``nn.Sequential``, if neither is used elsewhere.

    Raises:
        ValueError: there is no such pair.
    """
    replaced: Replaced = []
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue
        for norm, relu in pairwise(module):
            once = places[id(norm)] == places[id(relu)] == 1
            if once and type(norm) is nn.GroupNorm and type(relu) is nn.ReLU:
                replaced += [_swap(norm, GroupNormReLU), _swap(relu, nn.Identity)]
    if not replaced:
        raise ValueError(
            "accelerate: fuse_group_norm=True, but no ReLU of the model follows a GroupNorm; omit the option"
        )
    return replaced


def undo(replaced: Replaced) -> None:
    """Restore the previous classes, in reverse order."""
    for module, original in reversed(replaced):
        vars(module).pop("norm", None)
        module.__class__ = original
