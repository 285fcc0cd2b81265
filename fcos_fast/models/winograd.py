"""3x3 convolutions by Winograd's method (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).

F(4x4, 3x3): a tile of 4x4 outputs is computed from 6x6 inputs with 36 products per pair of channels instead of 144.
The products of all tiles are 36 matrix products, which run at peak speed; the transforms, operators in C++, cost little
if there are many channels. The gradient of the input is such a convolution with the flipped weight; the gradient of the
weight sums the products of transformed inputs and output gradients over all tiles. For CPUs in float32: the transforms
need more than 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fcos_fast.ops.winograd import transforms
from fcos_fast.reference.winograd import WEIGHT, tiles_along

MIN_CHANNELS = 64
"""With fewer channels, in or out, transforming inputs and gradients costs what the products save."""
MIN_TILES = 48
"""For fewer tiles, transforming the weight costs more than it saves."""
TILES_AT_ONCE = 512
"""Tiles per block: few enough for the caches, many enough to make the matrix products efficient."""


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution that uses Winograd's method if that is faster; equal up to a few units in the last place.

    :func:`use_winograd` changes the class of a convolution; its parameters and keys stay.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_worth_it(x, weight, MIN_TILES):
            return super()._conv_forward(x, weight, bias)
        return _Convolution.apply(x, weight, bias)


def use_winograd(module: nn.Module) -> list[tuple[nn.Module, type[nn.Module]]]:
    """Make every convolution of ``module`` that gains from it use Winograd's method.

    Returns:
        The convolutions, changed in place, with their previous class; setting ``__class__`` to it undoes the change.
    """
    convs = [conv for conv in module.modules() if type(conv) is nn.Conv2d and gains(conv)]
    for conv in convs:
        conv.__class__ = WinogradConv2d
    return [(conv, nn.Conv2d) for conv in convs]


def gains(conv: nn.Conv2d) -> bool:
    """Whether this is an ungrouped, undilated 3x3 convolution of stride 1 with many channels."""
    plain = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return (
        conv.kernel_size == (3, 3)
        and plain == ((1, 1), (1, 1), (1, 1), 1, "zeros")
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


def is_worth_it(x: Tensor, weight: Tensor, min_tiles: int) -> bool:
    """Whether an input has at least this number of tiles and fits the weight; otherwise PyTorch computes or raises."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not is_recorded()
        and x.ndim == 4
        and (x.dtype, x.shape[1]) == (weight.dtype, weight.shape[1])
        and _tiles(x) >= min_tiles
    )


def is_recorded() -> bool:
    """Whether PyTorch records this call, to compile, export or trace it: with its own operators, for any image size."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


class _Convolution(torch.autograd.Function):
    """Maps (B, C, H, W), weight (K, C, 3, 3), bias (K,) or None to (B, K, H, W), channels-last."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return convolve(x, transform_weight(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        flipped = weight.flip(2, 3).transpose(0, 1)
        with torch.autocast("cpu", enabled=False):  # backward can be called under autocast
            return (
                convolve(grad, transform_weight(flipped), None) if of_x else None,
                _weight_gradient(x, grad) if of_weight else None,
                grad.sum((0, 2, 3)) if of_bias else None,
            )


def convolve(x: Tensor, transformed: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W) and a weight (36, C, K) to (B, K, H, W)."""
    out = torch.empty(
        (x.shape[0], transformed.shape[2], *x.shape[2:]),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    x, operators = x.contiguous(memory_format=torch.channels_last), transforms(x)
    for begin, count in _blocks(x):
        squares = _squares(x, count)
        operators.winograd_input(x, begin, squares)
        operators.winograd_output(torch.bmm(squares, transformed), bias, begin, out)
    return out


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Inputs (B, C, H, W) and gradients of the outputs (B, K, H, W) to the gradient of the weight (K, C, 3, 3)."""
    x, grad = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad))
    operators = transforms(x)
    total = x.new_zeros(36, x.shape[1], grad.shape[1])
    for begin, count in _blocks(x):
        of_inputs, of_products = _squares(x, count), _squares(grad, count)
        operators.winograd_input(x, begin, of_inputs)
        operators.winograd_gradient(grad, begin, of_products)
        total.baddbmm_(of_inputs.transpose(1, 2), of_products)
    weight = _weight_transform(x).t() @ total.flatten(1)
    return weight.view(3, 3, *total.shape[1:]).permute(3, 2, 0, 1)


def transform_weight(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) to (36, C, K)."""
    outputs, inputs = weight.shape[:2]
    flat = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_weight_transform(weight) @ flat).view(36, inputs, outputs)


def _weight_transform(like: Tensor) -> Tensor:
    """The matrix (36, 9) that transforms both the rows and the columns of flattened weights."""
    matrix = torch.tensor(WEIGHT, dtype=torch.float64, device=like.device)
    return torch.kron(matrix, matrix).to(like)


def _tiles(x: Tensor) -> int:
    return x.shape[0] * tiles_along(x.shape[2]) * tiles_along(x.shape[3])


def _squares(x: Tensor, tiles: int) -> Tensor:
    """(36, tiles, C), uninitialized. The gap keeps the 36 squares of a tile in different sets of the caches."""
    channels, gap = x.shape[1], 16
    return x.new_empty_strided((36, tiles, channels), (tiles * channels + gap, channels, 1))


def _blocks(x: Tensor) -> Iterator[tuple[int, int]]:
    """The first tile of each block and the number of its tiles."""
    tiles = _tiles(x)
    blocks = -(-tiles // TILES_AT_ONCE)
    for i in range(blocks):
        begin, end = tiles * i // blocks, tiles * (i + 1) // blocks
        yield begin, end - begin
