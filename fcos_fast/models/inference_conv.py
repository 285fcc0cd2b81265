"""Convolutions for inference on CPUs that keep their weights in the form in which they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fcos_fast.models import winograd

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

KEPT_WEIGHTS = 5
"""Kept weights per convolution: one for each of the five levels on which the head runs."""

MIN_TILES = 16
"""For fewer tiles, reading the kept transformed weight, four times as large, costs more than it saves."""


class InferenceConv2d(nn.Conv2d):
    """A convolution by Winograd's method if that is faster, else by oneDNN with a packed weight.

    Kept between calls: the weight transformed for Winograd's method, four times as large as the weight, and the weight
    in the memory format that oneDNN chooses, for each of the latest input shapes: another shape's format can be
    several times slower. PyTorch's convolution reorders the weight in every call, and does not use oneDNN for few
    pixels.

    Kept weights are dropped when the weight changes: by loading a state dict, by moving the module, or in place. Like
    autograd, the convolution does not notice writes through ``weight.data``.
    """

    _kept: dict[Any, Tensor] | None = None  # "winograd" or an input shape, the latest last, to a weight
    _kept_from: tuple[Tensor, int] | None = None  # the weight and its version

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not _can_keep(x, weight, bias):
            return super()._conv_forward(x, weight, bias)
        if winograd.gains(self) and winograd.is_worth_it(x, weight, MIN_TILES):
            return winograd.convolve(x, self._keep("winograd", weight, winograd.transform_weight), bias)
        if not _runs_in_onednn(x.dtype):
            return super()._conv_forward(x, weight, bias)
        where = self.padding, self.stride, self.dilation, self.groups

        def pack(weight: Tensor) -> Tensor:
            return torch.ops.mkldnn._reorder_convolution_weight(weight, *where, list(x.shape))

        packed = self._keep(x.shape, weight, pack)
        x = x.contiguous(memory_format=torch.channels_last)
        return torch.ops.mkldnn._convolution_pointwise(x, packed, bias, *where, "none", [], "")

    def _keep(self, key: Any, weight: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
        of = self._kept_from
        if self._kept is None or of is None or of[0] is not weight or of[1] != weight._version:
            self._kept, self._kept_from = {}, (weight, weight._version)
        kept = self._kept.pop(key, None)
        if kept is None:
            with torch.inference_mode(False), torch.no_grad():
                kept = convert(weight)
            for oldest in [*self._kept][: 1 - KEPT_WEIGHTS]:
                self._kept.pop(oldest, None)  # another thread may have done so
        self._kept[key] = kept
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = None  # moving a parameter keeps its object and version
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        # The weight of a copy has version 0, even if this one was changed.
        return {name: value for name, value in vars(self).items() if name not in ("_kept", "_kept_from")}


def use_inference_convolutions(module: nn.Module) -> None:
    """Change the class of every plain convolution of ``module``; parameters and keys stay."""
    plain = (nn.Conv2d, winograd.WinogradConv2d)  # the second in a model that was trained
    for conv in module.modules():
        if type(conv) in plain and conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
            conv.__class__ = InferenceConv2d


def _can_keep(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [t for t in (x, weight, bias) if t is not None]
    return (
        not winograd.is_recorded()
        and x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > 0
        and all(t.dtype == x.dtype for t in tensors)
        and not weight.is_inference()  # an inference tensor has no version
        and not torch.is_autocast_enabled("cpu")
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
    )


def _runs_in_onednn(dtype: torch.dtype) -> bool:
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
