"""3x3 convolutions by Winograd's method (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2015).

F(4x4, 3x3): a tile of 4x4 outputs is computed from 6x6 inputs with 36 products per pair of channels in place of 144.
The products of all tiles are 36 matrix products, which run at the machine's peak, and the transforms cost little where
there are many channels. For CPUs in float32; 16 bits are too few for the transforms.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 4
MIN_CHANNELS = 128
"""With fewer channels, in or out, the transforms cost what the products save."""
MIN_TILES = 48
"""For fewer tiles the transformed weights, four times as large, are not worth reading."""
TILES_AT_ONCE = 512
"""So many are transformed and multiplied before the next. Fewer waste the matrix product, more the caches."""

# The transforms of a row of inputs, weights and outputs, from the interpolation points 0, 1, -1, 2, -2 and infinity.
INPUT = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
WEIGHT = [
    [1 / 4, 0, 0],
    [-1 / 6, -1 / 6, -1 / 6],
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
OUTPUT = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
ADDED_TO_EVERY_OUTPUT = 7  # row 1, column 1 of 6x6: the second column of OUTPUT is all ones


def use_winograd(module: nn.Module) -> None:
    """Put a :class:`WinogradConv2d` in the place of every convolution in ``module`` that gains from it."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d) and gains(child):
                setattr(parent, name, WinogradConv2d(child))


def gains(conv: nn.Conv2d) -> bool:
    """Whether it is a plain 3x3 convolution of stride 1 with many channels."""
    plain = (conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return (
        conv.kernel_size == (3, 3)
        and plain == ((1, 1), (1, 1), (1, 1), 1, "zeros")
        and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS
    )


class WinogradConv2d(nn.Module):
    """``conv`` for inference: the same map to a few units in the last places, the same state dict.

    Its float32 weights are kept twice, as they are for small maps, and transformed, four times as large.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        rows, columns, weight = (torch.tensor(m, dtype=torch.float64) for m in (INPUT, OUTPUT, WEIGHT))
        transformed = torch.einsum("ij,kcjl,ml->imck", weight, conv.weight.detach().double(), weight)
        buffers = {
            "transformed": transformed.reshape(36, conv.in_channels, conv.out_channels),
            "input_transform": torch.kron(rows, rows),  # (36, 36)
            "output_transform": torch.kron(columns, columns),  # (16, 36)
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer.to(conv.weight).contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) float32 to (B, K, H, W), channels-last."""
        batch, _, height, width = x.shape
        down, across = -(-height // TILE), -(-width // TILE)  # tiles of an image
        if batch * down * across < MIN_TILES:
            return F.conv2d(x, self.weight, self.bias, padding=1)
        right, below = across * TILE + 1 - width, down * TILE + 1 - height
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, right, 1, below))
        tiles = (
            padded.unfold(1, 6, TILE).unfold(2, 6, TILE).permute(4, 5, 0, 1, 2, 3)
        )  # (6, 6, B, h, w, C) views
        out = x.new_empty(batch, down, TILE, across, TILE, len(self.weight))
        rows = max(1, TILES_AT_ONCE // across)
        images = max(1, TILES_AT_ONCE // (down * across))
        for b in range(0, batch, images):
            for r in range(0, down, rows):
                part = (slice(b, b + images), slice(r, r + rows))
                out[part] = self._tiles(tiles[:, :, part[0], part[1]])
        # (B, H, W, K); a copy where the last tiles stand out
        out = out.view(batch, down * TILE, across * TILE, -1)[:, :height, :width]
        return out.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _tiles(self, x: Tensor) -> Tensor:
        """Inputs (6, 6, B, h, w, C) to outputs (B, h, 4, w, 4, K)."""
        images, down, across, channels = x.shape[2:]
        count = images * down * across
        x = self.input_transform @ x.reshape(36, count * channels)
        x = torch.bmm(x.view(36, count, channels), self.transformed)
        if self.bias is not None:
            x[ADDED_TO_EVERY_OUTPUT] += self.bias
        x = self.output_transform @ x.view(36, -1)
        return x.view(TILE, TILE, images, down, across, -1).permute(2, 3, 0, 4, 1, 5)
