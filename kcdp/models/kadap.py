"""KADAP: knowledge tokens, diffusion features, pyramid and predictor, joined to one model."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.errors import KcdpError
from kcdp.models.alignment import Alignment
from kcdp.models.collective import BatchNorm
from kcdp.models.diffusion_features import DiffusionFeatures
from kcdp.models.implicit_knowledge import ImplicitKnowledge
from kcdp.models.moe import MixtureOfExperts
from kcdp.models.network import EmotionNetwork, NetworkOutput
from kcdp.models.pyramid import FeaturePyramid, pool_levels
from kcdp.settings import HeadConfig

#: Of ImageNet's pictures scaled to 0..1, by channel.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ConstantKnowledge(nn.Module):
    """One set of knowledge tokens, the same for every picture.

    Args:
        tokens, width: how many, and how wide.
        fixed: float [1, tokens, width], the states of a text; None: learned tokens.
    """

    embedding: torch.Tensor

    def __init__(self, tokens: int, width: int, fixed: torch.Tensor | None = None) -> None:
        super().__init__()
        if fixed is None:
            self.embedding = nn.Parameter(torch.randn(1, tokens, width))
        else:
            self.register_buffer("embedding", fixed.clone())

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """[1, tokens, width]; the picture's latents make no difference."""
        return self.embedding


class Kadap(EmotionNetwork):
    """The whole model, from bytes to logits.

    Args:
        features: the feature extractor.
        head: sizes of pyramid and predictor.
        knowledge: predicts knowledge tokens [N or 1, T, W] from latents; None in the mode "explicit", where the
            caller gives them.
        alignment: prompts against pictures, for training; None: none.
        value_range: what 0..255 is mapped to; None: ImageNet's normalisation applied twice, as released.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        features: DiffusionFeatures,
        head: HeadConfig,
        knowledge: ConstantKnowledge | ImplicitKnowledge | None = None,
        alignment: Alignment | None = None,
        value_range: tuple[float, float] | None = (-1.0, 1.0),
    ) -> None:
        super().__init__()
        self.features = features
        self.knowledge = knowledge
        self.alignment = alignment
        self.pyramid = FeaturePyramid(features.levels, head.pyramid_channels)
        self.join = head.knowledge == "mean" and not isinstance(knowledge, ConstantKnowledge)
        self.visual = visual_width(features, head)
        width = self.visual + (features.width if self.join else 0)
        self.norm = BatchNorm(width) if head.normalize_v else nn.Identity()
        self.moe = MixtureOfExperts(
            width,
            experts=head.experts, hidden=head.hidden, top_k=head.top_k, renormalize=head.renormalize,
            routing=head.routing,
        )  # fmt: skip
        scale, shift = input_scaling(value_range)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(
        self,
        images: torch.Tensor,
        knowledge: torch.Tensor | None = None,
        align: bool = False,
        latents: torch.Tensor | None = None,
    ) -> NetworkOutput:
        """Logits and what led to them; see ``EmotionNetwork.forward``. Knowledge that is given wins in every mode.

        Raises:
            KcdpError: no knowledge given in the mode "explicit", or knowledge of another shape.
        """
        if latents is None:
            latents = self.encode(images)
        shared = len(knowledge) == 1 < len(latents) if knowledge is not None else (
            isinstance(self.knowledge, ConstantKnowledge)
        )  # fmt: skip
        knowledge = self._knowledge(latents, knowledge)
        levels = self.features.decode(latents, knowledge)
        v = pool_levels(self.pyramid(levels))
        joined = torch.cat([v, knowledge.mean(dim=1).expand(v.shape[0], -1)], dim=1) if self.join else v
        joined = self.norm(joined)
        moe = self.moe(joined)
        seen = joined[:, : v.shape[1]]
        alignment = self.alignment(seen, knowledge) if align and self.alignment is not None else None
        return NetworkOutput(moe.logits, v, moe, knowledge, levels, alignment, shared)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, H, W, 3] to latents [N, C, h, w]: all that the autoencoder's part of the work is."""
        scaled = images.permute(0, 3, 1, 2).to(self.scale.dtype) * self.scale + self.shift
        return self.features.encoder(scaled)

    def is_backbone(self, name: str) -> bool:
        """Encoder and U-Net, adapters apart."""
        return name.startswith("features.") and "lora_" not in name

    def _knowledge(self, latents: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        expected = (self.features.tokens, self.features.width)
        if given is None:
            if self.knowledge is None:
                raise KcdpError(
                    'no knowledge given to a model of the mode "explicit"', f"knowledge tokens [N, {expected[0]}, "
                    f"{expected[1]}]", "give captions, or train in another model.knowledge.mode",
                )  # fmt: skip
            return self.knowledge(latents)
        if given.ndim != 3 or tuple(given.shape[1:]) != expected or given.shape[0] not in (1, latents.shape[0]):
            raise KcdpError(
                f"knowledge of the shape {list(given.shape)}", f"[{latents.shape[0]}, {expected[0]}, {expected[1]}]",
                "encode the captions with this model's text settings",
            )  # fmt: skip
        return given


def visual_width(features: DiffusionFeatures, head: HeadConfig) -> int:
    """Entries of v."""
    return len(features.levels) * head.pyramid_channels


def input_scaling(value_range: tuple[float, float] | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand, each [3 or 1, 1, 1], that bring bytes to what the encoder gets; see ``Kadap``."""
    if value_range is not None:
        low, high = value_range
        return torch.tensor((high - low) / 255.0).reshape(1, 1, 1), torch.tensor(low).reshape(1, 1, 1)
    mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    # ((x / 255 - mean) / deviation - mean) / deviation
    return (
        (1 / (255.0 * deviation**2)).reshape(3, 1, 1),
        (-mean / deviation**2 - mean / deviation).reshape(3, 1, 1),
    )
