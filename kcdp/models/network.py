"""What every network is to training, evaluation and export: bytes in, six logits and a visual feature out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from kcdp.models.alignment import AlignmentOutput
from kcdp.models.moe import MoEOutput


@dataclass(frozen=True)
class NetworkOutput:
    """What a network says of a batch.

    Attributes:
        logits: [N, 6], in the order of ``kcdp.labels.LABELS``.
        v: [N, V], the pooled visual feature.
        moe: gates and choices; of a network without experts, ``one_expert``.
        knowledge: [N or 1, T, W], the knowledge tokens that were used; None where there are none.
        levels: the diffusion levels by name, fine to coarse; empty where there are none.
        alignment: the six prompts' scores, where they were asked for.
        shared_knowledge: whether one set of knowledge tokens serves all pictures, so that ``knowledge`` has one row.
    """

    logits: torch.Tensor
    v: torch.Tensor
    moe: MoEOutput
    knowledge: torch.Tensor | None = None
    levels: dict[str, torch.Tensor] = field(default_factory=dict)
    alignment: AlignmentOutput | None = None
    shared_knowledge: bool = False


class EmotionNetwork(nn.Module, ABC):
    """A network that a training step, an evaluation and the export can take.

    Attributes:
        external: names of the parameters that came from elsewhere and do not train; no checkpoint holds them.
        visual: V, the number of entries of v.
        knowledge: predicts knowledge tokens; None where the caller gives them or there are none.
        alignment: scores prompts; None where there are none.
    """

    external: frozenset[str] = frozenset()
    visual: int
    knowledge: nn.Module | None
    alignment: nn.Module | None

    def __init__(self) -> None:
        super().__init__()
        self.knowledge = self.alignment = None  # not of the class: that would hide the modules set later

    @abstractmethod
    def forward(
        self,
        images: torch.Tensor,
        knowledge: torch.Tensor | None = None,
        align: bool = False,
        latents: torch.Tensor | None = None,
    ) -> NetworkOutput:
        """Answer a batch.

        Args:
            images: uint8 [N, H, W, 3], RGB, as ``PreprocessSpec.apply`` gives them.
            knowledge: float [N or 1, T, W]; None: the network's own, if any.
            align: also score the six prompts.
            latents: float [N, C, h, w], what the frozen encoder makes of the images; they are then not looked at.
        """

    def is_backbone(self, name: str) -> bool:
        """Whether the parameter belongs to what was, or could have been, pretrained elsewhere."""
        return False

    def parameter_groups(self, weight_decay: float, backbone_lr_scale: float) -> list[dict[str, Any]]:
        """The trained parameters as AdamW takes them, each group with its factor on the learning rate, ``lr_scale``.

        Weight decay is for matrices and kernels, not for norms and biases.
        """
        named = [(name, p) for name, p in self.named_parameters() if p.requires_grad]
        groups = []
        for backbone in (True, False):
            parameters = [p for name, p in named if self.is_backbone(name) == backbone]
            for matrices in (True, False):
                part = [p for p in parameters if (p.ndim > 1) == matrices]
                if part:
                    decay = weight_decay if matrices else 0.0
                    groups.append(
                        {"params": part, "weight_decay": decay, "lr_scale": backbone_lr_scale if backbone else 1.0}
                    )
        return groups


def one_expert(logits: torch.Tensor) -> MoEOutput:
    """Logits [N, 6] as the answer of a mixture of one."""
    always = torch.ones(len(logits), 1, dtype=logits.dtype, device=logits.device)
    return MoEOutput(logits, always, always)
