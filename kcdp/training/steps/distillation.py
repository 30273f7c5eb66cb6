"""Distillation of the adapter of implicit knowledge: no labels at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.data.loader import Item
from kcdp.errors import KcdpError
from kcdp.models.collective import gather_rows
from kcdp.models.implicit_knowledge import distillation_loss
from kcdp.models.network import EmotionNetwork
from kcdp.training.steps.step import Step, StepResult, gathered, in_evaluation, joined


class DistillationStep(Step):
    """Implicit towards explicit: knowledge tokens towards the captions', logits towards those that the captions give.

    Everything but the adapter is frozen, statistics of normalisations included. Pictures of the target, where there
    are any, serve as well as those of the source.
    """

    def forward(
        self, model: nn.Module, teacher: EmotionNetwork, source: Item, target: Item | None, progress: float
    ) -> StepResult:
        """As ``Step.forward``; labels are not looked at.

        Raises:
            KcdpError: the pictures have no captions.
        """
        batches = [source] if target is None else [source, target]
        knowledge = joined(*(batch.knowledge for batch in batches))
        if knowledge is None:
            raise KcdpError(
                "training.implicit is 'distill' and there are no captions", "the explicit knowledge to learn from",
                "add --captions FILE",
            )  # fmt: skip
        images = torch.cat([batch.images for batch in batches])
        latents = joined(*(batch.latents for batch in batches))
        model.eval()
        explicit = in_evaluation(model, Item(images, images.new_empty(0), latents=latents), knowledge, False)
        implicit = gathered(model(images, latents=latents))
        assert implicit.knowledge is not None
        tokens = distillation_loss(implicit.knowledge, gather_rows(knowledge))
        logits = F.kl_div(
            torch.log_softmax(implicit.logits.float(), dim=1), torch.log_softmax(explicit.logits.float(), dim=1),
            log_target=True, reduction="batchmean",
        )  # fmt: skip
        agreement = (implicit.logits.argmax(1) == explicit.logits.argmax(1)).float().mean()
        parts = {"distillation": tokens, "divergence": logits, "agreement": agreement}
        return StepResult(self.config.training.distill_weight * tokens + logits, parts)
