"""The transforms of Winograd's convolution F(4x4, 3x3): see :mod:`fcos_fast.models.winograd`.

A tile is a square of 4x4 outputs; tiles are numbered by image, row and column. Used for float64 too.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Matrix = list[list[float]]

TILE = 4

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


def winograd_input(x: Tensor, begin: int, squares: Tensor) -> None:
    """Write the transformed 6x6 inputs, padded by zeros, of tiles of ``x`` (B, C, H, W) to ``squares`` (36, N, C)."""
    squares.copy_(_transformed_squares(x, INPUT, begin, squares.shape[1]))


def winograd_gradient(grad: Tensor, begin: int, squares: Tensor) -> None:
    """Write the transformed 4x4 gradients of outputs, ``grad`` (B, K, H, W), to ``squares`` (36, N, K)."""
    columns = [list(column) for column in zip(*OUTPUT, strict=True)]
    squares.copy_(_transformed_squares(grad, columns, begin, squares.shape[1]))


def winograd_output(squares: Tensor, bias: Tensor | None, begin: int, out: Tensor) -> None:
    """Transform the products (36, N, K), add ``bias`` (K,) and write the tiles to ``out`` (B, K, H, W)."""
    _, count, channels = squares.shape
    matrix = squares.new_tensor(OUTPUT)
    tiles = torch.einsum("ri,ijnk,cj->nrck", matrix, squares.reshape(6, 6, count, channels), matrix)
    if bias is not None:
        tiles = tiles + bias
    image, row, column = _places(out, begin, count)
    inner = torch.arange(TILE, device=out.device)
    index = torch.broadcast_tensors(
        image[:, None, None],
        TILE * row[:, None, None] + inner[:, None],
        TILE * column[:, None, None] + inner,
    )  # each (tiles, 4, 4)
    inside = (index[1] < out.shape[2]) & (index[2] < out.shape[3])
    out.permute(0, 2, 3, 1)[tuple(i[inside] for i in index)] = tiles[inside]


def _transformed_squares(x: Tensor, rows: Matrix, begin: int, count: int) -> Tensor:
    side = len(rows[0])
    margin = (side - TILE) // 2
    height, width = x.shape[2:]
    right, below = (tiles_along(n) * TILE - n + margin for n in (width, height))
    padded = F.pad(x, (margin, right, margin, below))
    squares = padded.unfold(2, side, TILE).unfold(3, side, TILE)  # (B, C, down, across, side, side)
    image, row, column = _places(x, begin, count)
    matrix = x.new_tensor(rows)
    chosen = squares.permute(0, 2, 3, 1, 4, 5)[image, row, column]
    return torch.einsum("ri,ncij,sj->rsnc", matrix, chosen, matrix).flatten(0, 1)


def _places(x: Tensor, begin: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image, row and column of each tile."""
    down, across = tiles_along(x.shape[2]), tiles_along(x.shape[3])
    tile = torch.arange(begin, begin + count, device=x.device)
    return tile // (down * across), tile // across % down, tile % across


def tiles_along(side: int) -> int:
    """Number of tiles along a side of a map."""
    return -(-side // TILE)
