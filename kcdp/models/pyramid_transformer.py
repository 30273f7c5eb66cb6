"""A pyramid vision transformer that knowledge tokens guide: a baseline in the spirit of TGCA-PVT.

PVT v2 (Wang et al., Computational Visual Media 2022) by timm; each of its four stages asks the knowledge tokens by
cross-attention; what the stages then hold is pooled to v, and one linear layer answers. TGCA-PVT (Chen et al., ACM MM
2024) guides the same tower with text and with the other stickers of a topic. Topics are no part of the task here, and
neither is its attention in the frequency domain nor its local re-attention: this is not that network, and no number of
its paper may be expected of this one.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch
from torch import nn

from kcdp.config import Config
from kcdp.errors import KcdpError, nearest, require
from kcdp.labels import NUM_CLASSES
from kcdp.models.kadap import IMAGENET_MEAN, IMAGENET_STD, ConstantKnowledge
from kcdp.models.network import EmotionNetwork, NetworkOutput, one_expert
from kcdp.models.text_side import TextSide

#: Of the coarsest stage's positions, one is so many pixels wide; the first stage's attention needs as many, too.
MULTIPLE = 32


class GuidedStage(nn.Module):
    """Positions of one stage ask the knowledge tokens; what comes back is added, and all positions are averaged.

    Args:
        channels: of the stage.
        width: of a knowledge token.
        out: entries of the result, and the attention's width.
    """

    def __init__(self, channels: int, width: int, out: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, out)
        self.norm = nn.LayerNorm(out)
        self.attention = nn.MultiheadAttention(out, math.gcd(8, out), kdim=width, vdim=width, batch_first=True)
        self.final = nn.LayerNorm(out)

    def forward(self, stage: torch.Tensor, knowledge: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] and [N, T, W] to [N, out]."""
        positions = self.project(stage.flatten(2).transpose(1, 2))
        told, _ = self.attention(self.norm(positions), knowledge, knowledge, need_weights=False)
        pooled: torch.Tensor = self.final(positions + told).mean(dim=1)
        return pooled


class PyramidTransformer(EmotionNetwork):
    """From bytes to logits.

    Args:
        tower: timm's PVT v2, without its classifier.
        out: entries that each of the four stages gives to v.
        tokens, width: of the knowledge.
        knowledge: one set of tokens for all pictures; None: the caller gives them.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self, tower: Any, out: int, tokens: int, width: int, knowledge: ConstantKnowledge | None = None
    ) -> None:
        super().__init__()
        self.tower, self.knowledge = tower, knowledge
        self.shape = (tokens, width)
        channels = [stage["num_chs"] for stage in tower.feature_info]
        self.guides = nn.ModuleList(GuidedStage(count, width, out) for count in channels)
        self.visual = len(channels) * out
        self.classifier = nn.Linear(self.visual, NUM_CLASSES)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(IMAGENET_STD).reshape(3, 1, 1), persistent=False)

    def forward(
        self,
        images: torch.Tensor,
        knowledge: torch.Tensor | None = None,
        align: bool = False,
        latents: torch.Tensor | None = None,
    ) -> NetworkOutput:
        """See ``EmotionNetwork.forward``; there are no latents, and nothing to align.

        Raises:
            KcdpError: no knowledge given in the mode "explicit", or knowledge of another shape.
        """
        scaled = (images.permute(0, 3, 1, 2).to(self.mean.dtype) / 255.0 - self.mean) / self.deviation
        tokens = self._tokens(scaled, knowledge)
        told = tokens.expand(len(scaled), -1, -1)
        stages = self.tower.forward_intermediates(scaled, intermediates_only=True)
        v = torch.cat([guide(stage, told) for guide, stage in zip(self.guides, stages, strict=True)], dim=1)
        logits = self.classifier(v)
        return NetworkOutput(logits, v, one_expert(logits), tokens, shared_knowledge=len(tokens) == 1)

    def is_backbone(self, name: str) -> bool:
        """The tower."""
        return name.startswith("tower.")

    def _tokens(self, images: torch.Tensor, given: torch.Tensor | None) -> torch.Tensor:
        """What was given, else the network's own: [N or 1, T, W]."""
        if given is None and self.knowledge is not None:
            own: torch.Tensor = self.knowledge(images)
            return own
        shape = [len(images), *self.shape]
        if given is None:
            raise KcdpError(
                'no knowledge given to a model of the mode "explicit"', f"knowledge tokens {shape}",
                "give captions, or train in another model.knowledge.mode",
            )  # fmt: skip
        if tuple(given.shape[1:]) != self.shape or given.shape[0] not in (1, len(images)):
            raise KcdpError(
                f"knowledge of the shape {list(given.shape)}", f"{shape}",
                "encode the captions with this model's text settings",
            )  # fmt: skip
        return given


def build_pyramid(config: Config, source: TextSide) -> PyramidTransformer:
    """The network "pvt" of a configuration.

    ``model.backbone`` is one of timm's names: "pvt_v2_b2" is made from scratch, with a tag, "pvt_v2_b2.in1k", it has
    the weights that timm fetches; a folder in timm's layout (``config.json``, ``model.safetensors``) has its own.
    ``model.head.pyramid_channels`` is what each stage gives to v.

    Raises:
        KcdpError: name unknown, weights missing or damaged, or a picture size that is no multiple of 32.
    """
    model, size = config.model, config.preprocess.size
    if size % MULTIPLE:
        raise KcdpError(
            f"preprocess.size is {size}", f"a multiple of {MULTIPLE} for the network 'pvt'",
            f"try {size // MULTIPLE * MULTIPLE or MULTIPLE}",
        )  # fmt: skip
    stored = any(name.startswith("tower.") for name in source.state)
    tower, pretrained = open_tower(model.backbone, stored)
    tower.set_grad_checkpointing(config.training.gradient_checkpointing)
    tower.requires_grad_(model.train_backbone)
    tokens, width, knowledge = model.knowledge_tokens, model.knowledge.width, None
    if model.knowledge.mode == "constant":
        knowledge = ConstantKnowledge(tokens, width, source.constant_knowledge(tokens))
    built = PyramidTransformer(tower, model.head.pyramid_channels, tokens, width, knowledge)
    if pretrained:  # what is made from scratch is nowhere else
        built.external = frozenset(name for name, p in built.named_parameters() if not p.requires_grad)
    return built


def open_tower(name: str, stored: bool = False) -> tuple[Any, bool]:
    """timm's PVT v2, and whether it has weights from elsewhere.

    Args:
        name: see ``build_pyramid``.
        stored: whether all of its weights come from a checkpoint: none are then fetched.

    Raises:
        KcdpError: see ``build_pyramid``.
    """
    timm = require("timm", "train")
    folder = os.path.isdir(name)
    known = timm.list_models("pvt_v2*")
    if folder and not os.path.isfile(os.path.join(name, "config.json")):
        raise KcdpError(f"{name} has no config.json", "a PVT v2 in timm's layout", "name its folder")
    if not folder and name.partition(".")[0] not in known:
        raise KcdpError(
            f"model.backbone is {name!r}{nearest(name, known)} and model.network 'pvt'",
            f"one of {', '.join(known)}, or a folder in timm's layout",
        )  # fmt: skip
    pretrained = folder or "." in name
    try:
        tower = timm.create_model(
            f"local-dir:{name}" if folder else name, pretrained=pretrained and not stored, num_classes=0
        )
    except Exception as error:  # timm meets files and hubs, and raises nearly anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise KcdpError(
            f"{name} cannot be loaded ({reason})", "a PVT v2 in timm's layout",
            "name a local folder, or one of timm's names where there is a network",
        ) from None  # fmt: skip
    if len(getattr(tower, "stages", ())) != 4:
        raise KcdpError(f"{name} is a {type(tower).__name__}", "a PVT v2", "name another folder")
    return tower, pretrained
