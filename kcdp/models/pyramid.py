"""Feature pyramid (Lin et al., CVPR 2017) over the diffusion levels, and its pooled vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.models.diffusion_features import FeatureLevel


class FeaturePyramid(nn.Module):
    """Lateral 1x1 convolutions, a top-down path of nearest up-sampling and sums, a 3x3 convolution per level.

    Args:
        levels: the levels it is fed, fine to coarse, each half the resolution of the one before.
        channels: width of every pyramid level.
    """

    def __init__(self, levels: Sequence[FeatureLevel], channels: int = 256) -> None:
        super().__init__()
        self.names = [level.name for level in levels]
        self.lateral = nn.ModuleList(nn.Conv2d(level.channels, channels, 1) for level in levels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in levels)

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """name -> [N, channels, H, W] of the level of that name."""
        merged = [conv(features[name]) for name, conv in zip(self.names, self.lateral, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], scale_factor=2.0, mode="nearest")
        outputs = (conv(level) for conv, level in zip(self.output, merged, strict=True))
        return dict(zip(self.names, outputs, strict=True))


def pool_levels(pyramid: dict[str, torch.Tensor]) -> torch.Tensor:
    """Global average of every level, joined: v, [N, levels * channels]."""
    return torch.cat([level.mean(dim=(2, 3)) for level in pyramid.values()], dim=1)
