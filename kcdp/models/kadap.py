"""KADAP: knowledge tokens, diffusion features, pyramid and predictor, joined to one model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from kcdp.config import HeadConfig
from kcdp.models.diffusion_features import DiffusionFeatures
from kcdp.models.moe import MixtureOfExperts, MoEOutput
from kcdp.models.pyramid import FeaturePyramid, pool_levels


@dataclass(frozen=True)
class KadapOutput:
    """What the model says of a batch.

    Attributes:
        logits: [N, 6], in the order of ``kcdp.labels.LABELS``.
        v: [N, 4 * pyramid channels], the pooled visual feature.
        levels: the diffusion levels by name, fine to coarse.
        moe: gates and choices.
    """

    logits: torch.Tensor
    v: torch.Tensor
    levels: dict[str, torch.Tensor]
    moe: MoEOutput


class ConstantKnowledge(nn.Module):
    """One set of learned knowledge tokens, the same for every picture."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(1, tokens, width))

    def forward(self) -> torch.Tensor:
        """[1, tokens, width]."""
        return self.embedding


class Kadap(nn.Module):
    """The whole model, from bytes to logits.

    Args:
        features: the feature extractor.
        head: sizes of pyramid and predictor.
        value_range: what 0..255 is mapped to.
    """

    def __init__(
        self, features: DiffusionFeatures, head: HeadConfig, value_range: tuple[float, float] = (-1.0, 1.0)
    ) -> None:
        super().__init__()
        self.features = features
        self.knowledge = ConstantKnowledge(features.tokens, features.width)
        self.pyramid = FeaturePyramid(features.levels, head.pyramid_channels)
        width = len(features.levels) * head.pyramid_channels
        self.norm = nn.BatchNorm1d(width) if head.normalize_v else nn.Identity()
        self.moe = MixtureOfExperts(
            width,
            experts=head.experts, hidden=head.hidden, top_k=head.top_k, renormalize=head.renormalize,
        )  # fmt: skip
        self.low, self.high = value_range

    def forward(self, images: torch.Tensor) -> KadapOutput:
        """images: uint8 [N, H, W, 3], RGB, as ``PreprocessSpec.apply`` gives them."""
        scaled = images.permute(0, 3, 1, 2).to(self.knowledge.embedding.dtype)
        scaled = scaled * ((self.high - self.low) / 255.0) + self.low
        levels = self.features(scaled, self.knowledge())
        v = pool_levels(self.pyramid(levels))
        moe = self.moe(self.norm(v))
        return KadapOutput(moe.logits, v, levels, moe)
