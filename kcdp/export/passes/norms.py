"""Group normalisation as one scaling and one shift of each channel, from sums along the rows of a picture.

Runtimes for processors compute convolutions with channels last, and group normalisation with them first: two copies of
the whole picture around each. Means and lengths of rows, and y = x * scale + shift, need none, and the activation
behind it goes into the same loop. Measured with OpenVINO at Stable Diffusion 1.5's size, see ``benchmarks/export.py``.

The variance is that within rows plus that between rows, each taken around its mean: E[x^2] - mean^2 would lose its
digits where the mean is much larger than the deviation, most of all in bfloat16 and on flat pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.export.device.model import DeviceModel
from kcdp.export.passes.worthwhile import find_modules

#: Where it pays: smaller pictures are copied in no time.
LEAST_CELLS, LEAST_CHANNELS = 16, 64


class ChannelNorm(nn.Module):
    """``torch.nn.GroupNorm`` of pictures; sums over the channels of a group are 1x1 convolutions of ones.

    Args:
        norm: the group normalisation, with weights.
    """

    gather: torch.Tensor
    spread: torch.Tensor

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps
        self.channels = norm.num_channels // norm.num_groups
        members = torch.eye(norm.num_groups, dtype=norm.weight.dtype, device=norm.weight.device)
        members = members.repeat_interleave(self.channels, 0)[:, :, None, None]
        self.register_buffer("gather", members.transpose(0, 1).contiguous(), persistent=False)
        self.register_buffer("spread", members, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to the same."""
        rows = x.mean(3, keepdim=True)
        lengths = torch.linalg.vector_norm(x - rows, dim=3, keepdim=True)
        mean = F.conv2d(self._of_groups(rows), self.spread)
        apart = rows - mean
        squares = lengths * lengths * (1.0 / x.shape[3]) + apart * apart
        inverse = torch.rsqrt(self._of_groups(squares) + self.eps)
        scale = F.conv2d(inverse, self.spread) * self.weight[:, None, None]
        return x * scale + (self.bias[:, None, None] - mean * scale)

    def _of_groups(self, rows: torch.Tensor) -> torch.Tensor:
        """Means of groups [N, G, 1, 1] from those of rows [N, C, H, 1]."""
        return F.conv2d(rows.mean(2, keepdim=True), self.gather) * (1.0 / self.channels)


def fits(norm: nn.GroupNorm, shape: torch.Size) -> bool:
    """Whether ``ChannelNorm`` can take its place, and is worth it."""
    return len(shape) == 4 and norm.affine and shape[1] >= LEAST_CHANNELS and min(shape[2:]) >= LEAST_CELLS


def scale_channels(model: DeviceModel, size: int) -> None:
    """Replace the group normalisations for which it pays, at this size of pictures."""
    for name, norm in find_modules(model, size, nn.GroupNorm, fits):
        model.set_submodule(name, ChannelNorm(norm))
