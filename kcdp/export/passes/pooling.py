"""Pyramid and global pooling are linear: nine means of each level and two small products take their place.

The mean of a zero-padded 3x3 convolution needs of its input only the mean over all cells, over the first and last row,
the first and last column, and the four corners; nearest up-sampling by 2 leaves each of the nine as it is.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from kcdp.errors import KcdpError
from kcdp.export.device.model import DeviceModel, PlainHead
from kcdp.export.device.sharing import linear

#: The regions, by rows x columns: "all" or one end of the axis (0 first, 1 last).
REGIONS = tuple((row, column) for row in ("all", 0, 1) for column in ("all", 0, 1))


def region_matrix(height: int, width: int, dtype: torch.dtype) -> torch.Tensor:
    """[height * width, 9]: a picture's cells times it are its nine region means."""

    def axis(length: int) -> dict[str | int, torch.Tensor]:
        eye = torch.eye(length, dtype=dtype)
        return {"all": torch.full((length,), 1.0 / length, dtype=dtype), 0: eye[0], 1: eye[-1]}

    rows, columns = axis(height), axis(width)
    return torch.stack([torch.outer(rows[r], columns[c]).flatten() for r, c in REGIONS], dim=1)


def pooled_kernel(weight: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What the mean of a 3x3 convolution (zero padding 1, stride 1) makes of the nine region means of its input.

    Args:
        weight: [out, in, 3, 3].

    Returns:
        [out, 9, in]: mean = sum over regions of it times the region's mean.
    """
    parts = []
    for row, column in REGIONS:
        # Kernel row 0 reads the cell above, so it never meets the last row; kernel row 2 never meets the first.
        rows = slice(None) if row == "all" else slice(2, 3) if row == 0 else slice(0, 1)
        columns = slice(None) if column == "all" else slice(2, 3) if column == 0 else slice(0, 1)
        factor = (1.0 if row == "all" else -1.0 / height) * (1.0 if column == "all" else -1.0 / width)
        parts.append(weight[:, :, rows, columns].sum(dim=(2, 3)) * factor)
    return torch.stack(parts, dim=1)


class RegionMeans(nn.Module):
    """Nine means of a level's features, and of its attention maps.

    Args:
        height, width: cells.
    """

    matrix: torch.Tensor

    def __init__(self, height: int, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("matrix", region_matrix(height, width, dtype), persistent=False)

    def forward(self, features: torch.Tensor, maps: torch.Tensor | None) -> torch.Tensor:
        """[N, C, H, W] and [N, H * W, T] to [N, 9, C + T]."""
        means = (features.flatten(2) @ self.matrix).transpose(1, 2)
        return means if maps is None else torch.cat([means, self.matrix.T @ maps], dim=2)


class PooledHead(nn.Module):
    """v from region means.

    Args:
        head: the plain one.
        cells: height and width of each level, fine to coarse.
    """

    def __init__(self, head: PlainHead, cells: dict[str, tuple[int, int]]) -> None:
        super().__init__()
        self.names = head.names
        pyramid = head.pyramid
        self.regions, self.lateral, self.output = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for name, lateral, output in zip(self.names, pyramid.lateral, pyramid.output, strict=True):
            assert isinstance(lateral, nn.Conv2d) and isinstance(output, nn.Conv2d)
            height, width = cells[name]
            self.regions.append(RegionMeans(height, width, lateral.weight.dtype))
            self.lateral.append(linear(lateral.weight[:, :, 0, 0], lateral.bias))
            self.output.append(linear(pooled_kernel(output.weight, height, width).flatten(1), output.bias))

    def forward(self, features: dict[str, torch.Tensor], maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """[N, C, H, W] and [N, H * W, T] by level to v [N, V]."""
        merged = [
            lateral(regions(features[name], maps.get(name)))
            for name, regions, lateral in zip(self.names, self.regions, self.lateral, strict=True)
        ]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + merged[i]
        pooled = [output(means.flatten(1)) for output, means in zip(self.output, merged, strict=True)]
        return torch.cat(pooled, dim=1)


def collapse_pyramid(model: DeviceModel, size: int) -> None:
    """Put region means in the pyramid's place.

    Args:
        size: side of the pictures.

    Raises:
        KcdpError: a level is not half as large as the one before.
    """
    head = model.head
    if not isinstance(head, PlainHead):
        return
    strides = [int(name[1:]) for name in head.names]
    if any(size % stride for stride in strides) or any(b != 2 * a for a, b in pairwise(strides)):
        raise KcdpError(f"levels of strides {strides} at {size} px", "each twice the one before, divisors of the size")
    cells = {name: (size // stride, size // stride) for name, stride in zip(head.names, strides, strict=True)}
    with torch.no_grad():
        model.head = PooledHead(head, cells)
