"""3x3 convolutions by Winograd's minimal filtering: a quarter of the multiplications, in operators every runtime has.

F(4x4, 3x3) of Lavin and Gray ("Fast Algorithms for Convolutional Neural Networks", CVPR 2016): tiles of 6 x 6 inputs
give 4 x 4 outputs. Y = A' [(G w G') * (B' d B)] A, with matrices from Cook and Toom's construction; the sum over input
channels makes the product in the middle 36 matrix products. Tiles are cut out and transformed by one convolution of a
single channel, which needs no copy of them; the rest is Reshape, Transpose and MatMul. Processors spend their time in
convolutions at the speed of their arithmetic, so this is the way to be faster there; GPU libraries choose such
algorithms themselves.

The points 0, +-2/3, +-3/2 and infinity halve the rounding error that the usual 0, +-1, +-2 have (measured in float32
with 512 channels: 1.4e-6 of the output's deviation against 3.2e-6; a direct sum has about 0.3e-6). After Barabasz et
al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep Neural Networks", 2020.
"""

from __future__ import annotations

from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import parameter
from kcdp.export.passes.worthwhile import find_modules

TILE = 4
POINTS = (Fraction(0), Fraction(2, 3), Fraction(-2, 3), Fraction(3, 2), Fraction(-3, 2))
#: Where it pays, measured with ONNX Runtime and OpenVINO in float32 on two cores with AVX-512: with fewer channels (in
#: times out) moving tiles about costs what the multiplications save, with fewer cells a side reading the weights does.
LEAST_CHANNELS, LEAST_CELLS = 128 * 256, 16


def matrices(
    points: tuple[Fraction, ...] = POINTS, tile: int = TILE
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A' [tile, n], G [n, 3] and B' [n, n] in float64, n = tile + 2; the last point is infinity.

    Args:
        points: n - 1 different numbers.
    """
    size = tile + 2
    if len(points) != size - 1 or len(set(points)) != len(points):
        raise ValueError(f"{len(points)} points for a tile of {tile}; expected {size - 1} different ones")
    last = [Fraction(0)] * (size - 1) + [Fraction(1)]
    output = [[point**i for point in points] + [Fraction(int(i == tile - 1))] for i in range(tile)]
    kernel, data = [], []
    for point in points:
        others = [other for other in points if other != point]
        scale = Fraction(1)
        for other in others:
            scale *= point - other
        kernel.append([point**k / scale for k in range(3)])
        data.append([*_polynomial(others), Fraction(0)])
    kernel.append(last[-3:])
    data.append(_polynomial(list(points)))
    a, g, b = (torch.tensor([[float(x) for x in row] for row in rows], dtype=torch.float64)
               for rows in (output, kernel, data))  # fmt: skip
    # Powers of two between kernel and data change no rounding and keep both sides of a size.
    balance = torch.exp2(torch.round(torch.log2(g.abs().sum(1) / b.abs().sum(1)) / 2))[:, None]
    return a, g / balance, b * balance


def _polynomial(roots: list[Fraction]) -> list[Fraction]:
    """Coefficients of the product of (x - root), lowest first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [root * c for c in coefficients] + [Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


class WinogradConv(nn.Module):
    """A 3x3 convolution, stride 1, zero padding 1, of pictures whose sides are multiples of 4.

    The file holds the 3x3 weights; their transform is a product of constants, which a runtime computes once when it
    opens the graph.

    Args:
        conv: the convolution.
    """

    kernel: torch.Tensor
    tiles: torch.Tensor
    output: torch.Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        dtype, device = conv.weight.dtype, conv.weight.device
        self.outputs, self.inputs = conv.weight.shape[:2]
        self.weight = parameter(conv.weight.permute(2, 3, 0, 1).reshape(9, -1))
        self.bias = None if conv.bias is None else parameter(conv.bias.reshape(-1, 1, 1))
        a, g, b = (torch.kron(matrix, matrix).to(dtype).to(device) for matrix in matrices())
        self.register_buffer("kernel", g, persistent=False)
        self.register_buffer("tiles", b.reshape(-1, 1, TILE + 2, TILE + 2), persistent=False)
        columns_first = a.unflatten(0, (TILE, TILE)).transpose(0, 1).flatten(0, 1)
        self.register_buffer("output", columns_first, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, K, H, W]."""
        count, channels, height, width = x.shape
        rows, columns = height // TILE, width // TILE
        # Every channel is a picture of its own here, a tile a cell of it, B' d B what a convolution of stride 4 gives.
        data = F.conv2d(x.reshape(-1, 1, height, width), self.tiles, stride=TILE, padding=1)
        data = data.flatten(2).transpose(0, 1).reshape(-1, count, channels, rows * columns)
        weight = (self.kernel @ self.weight).reshape(-1, 1, self.outputs, self.inputs)
        mixed = self.output @ (weight @ data).flatten(1)
        # One axis at a time, and a view between: a runtime moves one axis fast and a mixture of axes slowly.
        y = mixed.reshape(TILE, -1, columns).permute(1, 2, 0)  # the column in the tile goes in
        y = y.reshape(TILE, -1, rows, width).permute(1, 2, 0, 3).reshape(count, self.outputs, height, width)
        return y if self.bias is None else y + self.bias


def fits(conv: nn.Conv2d, shape: torch.Size) -> bool:
    """Whether ``WinogradConv`` can take its place, and is worth it.

    Args:
        shape: of what comes in, [N, C, H, W].
    """
    height, width = shape[2:]
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups) == (
        (3, 3), (1, 1), (1, 1), (1, 1), 1,
    )  # fmt: skip
    return (
        plain
        and conv.in_channels * conv.out_channels >= LEAST_CHANNELS
        and min(height, width) >= LEAST_CELLS
        and height % TILE == width % TILE == 0
    )


def filter_minimally(model: DeviceModel, size: int) -> None:
    """Replace the convolutions for which it pays, at this size of pictures."""
    for name, conv in find_modules(model, size, nn.Conv2d, fits):
        model.set_submodule(name, WinogradConv(conv))
