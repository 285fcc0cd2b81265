"""3x3 convolutions by Winograd's method (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).

F(4x4, 3x3): a tile of 4x4 outputs is computed from 6x6 inputs with 36 products per pair of channels instead of 144.
The products of all tiles are 36 matrix products, which run at peak speed; the transforms cost little if there are many
channels. The gradient of the input is such a convolution with the flipped weight; the gradient of the weight sums the
products of transformed inputs and output gradients over all tiles. For CPUs in float32: the transforms need more than
16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Matrix = list[list[float]]

TILE = 4
MIN_CHANNELS = 128
"""With fewer channels, in or out, the transforms cost what the products save."""
MIN_TILES = 48
"""For fewer tiles, reading the transformed weights, four times as large, costs more than it saves."""
TILES_AT_ONCE = 512
"""Tiles per block: the intermediate results of a block should fit into the caches."""

# The transforms of a row of inputs, weights and outputs, for the interpolation points 0, 1, -1, 2, -2 and infinity.
INPUT: Matrix = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
WEIGHT: Matrix = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
OUTPUT: Matrix = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
ADDED_TO_EVERY_OUTPUT = 7  # row 1, column 1 of 6x6: the second column of OUTPUT is all ones


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution that uses Winograd's method if that is faster; equal up to a few units in the last place.

    :func:`use_winograd` changes the class of a convolution; its parameters and keys stay.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not is_worth_it(x):
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


def is_worth_it(x: Tensor) -> bool:
    """Whether an input is large enough, and its dtype and device fit."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and x.ndim == 4
        and x.shape[0] * _tiles(x.shape[2]) * _tiles(x.shape[3]) >= MIN_TILES
    )


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
    batch, _, height, width = x.shape
    down, across, channels = _tiles(height), _tiles(width), transformed.shape[2]
    # Not a view: the ReLU after it can be in-place.
    out = torch.empty(
        (batch, channels, height, width),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )
    fits = (height, width) == (down * TILE, across * TILE)
    whole = out.permute(0, 2, 3, 1) if fits else x.new_empty(batch, down * TILE, across * TILE, channels)
    squares = whole.view(batch, down, TILE, across, TILE, channels)

    to_products, to_output = _squared(INPUT, x), _squared(OUTPUT, x)
    tiles = _input_tiles(x)
    for images, rows in _parts(batch, down, across):
        part = squares[images, rows]
        products = torch.bmm(
            _transform(to_products, tiles[:, :, images, rows]), transformed
        )  # (36, tiles, K)
        if bias is not None:
            products[ADDED_TO_EVERY_OUTPUT] += bias
        outputs = (to_output @ products.flatten(1)).view(TILE, TILE, *part.shape[:2], across, channels)
        part.copy_(outputs.permute(2, 3, 0, 4, 1, 5))
    if not fits:
        out.copy_(whole[:, :height, :width].permute(0, 3, 1, 2))
    return out


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Inputs (B, C, H, W) and gradients of the outputs (B, K, H, W) to the gradient of the weight (K, C, 3, 3)."""
    to_products, to_output = _squared(INPUT, x), _squared(OUTPUT, x).t().contiguous()
    inputs, outputs = _input_tiles(x), _output_tiles(grad)
    total = x.new_zeros(36, x.shape[1], grad.shape[1])
    for images, rows in _parts(x.shape[0], _tiles(x.shape[2]), _tiles(x.shape[3])):
        of_products = _transform(to_output, outputs[:, :, images, rows])  # (36, tiles, K)
        of_inputs = _transform(to_products, inputs[:, :, images, rows])
        total.baddbmm_(of_inputs.transpose(1, 2), of_products)
    weight = _squared(WEIGHT, x).t() @ total.flatten(1)
    return weight.view(3, 3, *total.shape[1:]).permute(3, 2, 0, 1)


def transform_weight(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) to (36, C, K)."""
    outputs, inputs = weight.shape[:2]
    return (_squared(WEIGHT, weight) @ weight.permute(2, 3, 1, 0).reshape(9, -1)).view(36, inputs, outputs)


def _squared(rows: Matrix, like: Tensor) -> Tensor:
    """The transform of flattened squares that transforms both rows and columns."""
    matrix = torch.tensor(rows, dtype=torch.float64, device=like.device)
    return torch.kron(matrix, matrix).to(like)


def _tiles(side: int) -> int:
    return -(-side // TILE)


def _input_tiles(x: Tensor) -> Tensor:
    """(B, C, H, W) to overlapping squares (6, 6, B, h, w, C), a view where possible."""
    height, width = x.shape[2:]
    right, below = _tiles(width) * TILE + 1 - width, _tiles(height) * TILE + 1 - height
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
    return padded.unfold(1, 6, TILE).unfold(2, 6, TILE).permute(4, 5, 0, 1, 2, 3)


def _output_tiles(x: Tensor) -> Tensor:
    """(B, K, H, W) to squares (4, 4, B, h, w, K), a view where possible."""
    batch, _, height, width = x.shape
    down, across = _tiles(height), _tiles(width)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, across * TILE - width, 0, down * TILE - height))
    return padded.reshape(batch, down, TILE, across, TILE, -1).permute(2, 4, 0, 1, 3, 5)


def _parts(batch: int, down: int, across: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and of rows of tiles for each block."""
    rows = max(1, TILES_AT_ONCE // across)
    images = max(1, TILES_AT_ONCE // (down * across))
    for b in range(0, batch, images):
        for r in range(0, down, rows):
            yield slice(b, b + images), slice(r, r + rows)


def _transform(matrix: Tensor, squares: Tensor) -> Tensor:
    """Squares (n, n, B, h, w, C) to (36, B * h * w, C)."""
    n, _, images, down, across, channels = squares.shape
    return (matrix @ squares.reshape(n * n, -1)).view(36, images * down * across, channels)
