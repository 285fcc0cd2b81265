"""Layers that do the work of two: a convolution with the batch norm after it, a group norm with its ReLU.

A layer is replaced by changing its class and nothing else, so that parameters, buffers, hooks, keys and every
reference to it stay what they are.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from torch import Tensor, fx, nn
from torchvision.ops import FrozenBatchNorm2d

from fcos_fast.models.norm import GroupNormReLU, folded
from fcos_fast.models.winograd import WinogradConv2d

Replaced = list[tuple[nn.Module, type[nn.Module]]]
"""Layers, each with the class that it had."""


class FoldedConv2d(nn.Conv2d):
    """A convolution that computes ``norm(conv(x))`` in one pass, for a norm whose statistics do not change.

    The norm's scale multiplies the weight, its shift becomes the bias: nothing passes over the activations, and
    autograd carries the scale to the gradient of ``weight``, which is the parameter that it was. A norm in training
    mode is left to itself.
    """

    norm: tuple[nn.Module]  # in a tuple, lest it be registered here a second time

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to what the norm would have made of the convolution's output."""
        if not _is_constant(self.norm[0]):
            return super().forward(x)
        return self._conv_forward(x, *folded(self, self.norm[0]))


class FoldedWinogradConv2d(FoldedConv2d, WinogradConv2d):
    """A folded convolution that takes Winograd's method."""


class FoldedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """A frozen batch norm whose work the convolution before it does."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself."""
        return x


class FoldedBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose work in evaluation mode the convolution before it does."""

    def forward(self, x: Tensor) -> Tensor:
        """``x`` itself in evaluation mode."""
        return super().forward(x) if self.training else x


_FOLDED_CONVS = {nn.Conv2d: FoldedConv2d, WinogradConv2d: FoldedWinogradConv2d}
"""What a convolution becomes that does the work of a norm."""
_FOLDED = {FrozenBatchNorm2d: FoldedFrozenBatchNorm2d, nn.BatchNorm2d: FoldedBatchNorm2d}


def _is_constant(norm: nn.Module) -> bool:
    return isinstance(norm, FrozenBatchNorm2d) or not norm.training


def fold_batch_norms(backbone: nn.Module) -> Replaced:
    """Fold every batch norm of ``backbone`` that follows a convolution, which feeds nothing else, into it.

    Raises:
        ValueError: there is none, or the backbone's forward cannot be traced.
    """
    replaced: Replaced = []
    for conv, norm in _conv_norm_pairs(backbone):
        replaced += [(conv, type(conv)), (norm, type(norm))]
        conv.__class__ = _FOLDED_CONVS[type(conv)]
        conv.norm = (norm,)
        norm.__class__ = _FOLDED[type(norm)]
    if not replaced:
        raise ValueError(
            "accelerate: fold_frozen_bn=True, but no FrozenBatchNorm2d or BatchNorm2d of the backbone follows a "
            "convolution; leave the option out"
        )
    return replaced


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in (_FOLDED | _FOLDED_CONVS) or super().is_leaf_module(module, name)


def _conv_norm_pairs(backbone: nn.Module) -> list[tuple[nn.Conv2d, nn.Module]]:
    try:
        graph = _Tracer().trace(backbone)
    except Exception as error:  # whatever the backbone's forward does with a symbolic value
        raise ValueError(
            f"accelerate: fold_frozen_bn=True needs a backbone that torch.fx can trace, which "
            f"{type(backbone).__name__} is not ({error}); leave the option out"
        ) from error
    modules = dict(backbone.named_modules(remove_duplicate=False))
    called = {node: modules[node.target] for node in graph.nodes if node.op == "call_module"}
    calls = Counter(map(id, called.values()))
    pairs = []
    for node, norm in called.items():
        before = node.args[0] if node.args else None
        conv = called.get(before)
        if type(norm) not in _FOLDED or type(conv) not in _FOLDED_CONVS or len(before.users) != 1:
            continue
        once = calls[id(conv)] == calls[id(norm)] == 1
        if once and norm.running_var is not None:  # a batch norm may be without statistics
            pairs.append((conv, norm))
    return pairs


def fuse_group_norms(model: nn.Module) -> Replaced:
    """Fuse every group norm with the ReLU that follows it in an ``nn.Sequential``, where neither is used elsewhere.

    Raises:
        ValueError: there is none.
    """
    replaced: Replaced = []
    places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
    for module in list(model.modules()):
        if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
            continue
        for norm, relu in pairwise(module):
            once = places[id(norm)] == places[id(relu)] == 1
            if once and type(norm) is nn.GroupNorm and type(relu) is nn.ReLU:
                replaced += [(norm, nn.GroupNorm), (relu, nn.ReLU)]
                norm.__class__ = GroupNormReLU
                relu.__class__ = nn.Identity
    if not replaced:
        raise ValueError(
            "accelerate: fuse_group_norm=True, but no ReLU of the model follows a GroupNorm; leave the option out"
        )
    return replaced


def undo(replaced: Replaced) -> None:
    """Give layers the class back that they had, the last that was replaced first."""
    for module, original in reversed(replaced):
        vars(module).pop("norm", None)
        module.__class__ = original
