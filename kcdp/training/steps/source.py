"""The setting UC: labelled source pictures alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.config import Config
from kcdp.data.loader import Item
from kcdp.models.alignment import contrastive_loss
from kcdp.models.collective import gather_rows
from kcdp.models.implicit_knowledge import distillation_loss
from kcdp.models.moe import BALANCE
from kcdp.models.network import EmotionNetwork, NetworkOutput
from kcdp.training.steps.step import Step, StepResult, run_source


class SourceStep(Step):
    """Predictor, expert balance, alignment; and the adapter's distance from the captions where it trains jointly."""

    def __init__(self, config: Config, class_weights: torch.Tensor) -> None:
        super().__init__(config, class_weights)
        self.aligns = config.model.alignment.kind != "none"

    def forward(
        self, model: nn.Module, teacher: EmotionNetwork, source: Item, target: Item | None, progress: float
    ) -> StepResult:
        """See ``Step.forward``."""
        return self.on_source(run_source(model, source, self.given(source), self.aligns), source)

    def given(self, batch: Item) -> torch.Tensor | None:
        """Explicit knowledge steers the model; that of an implicit model is only a goal."""
        return batch.knowledge if self.config.model.knowledge.mode == "explicit" else None

    def on_source(self, output: NetworkOutput, source: Item) -> StepResult:
        """The losses of the source.

        Args:
            output: the rows of all processes.
            source: this process's share.
        """
        training, labels = self.config.training, gather_rows(source.labels)
        classification = F.cross_entropy(
            output.logits.float(), labels, self.class_weights, label_smoothing=training.label_smoothing
        )
        balance = BALANCE[training.balance](output.moe, self.config.model.head.top_k).float()
        loss = training.classification_weight * classification + training.balance_weight * balance
        parts = {"classification": classification, "balance": balance}
        if output.alignment is not None:
            parts["alignment"] = contrastive_loss(
                output.alignment.similarity, labels, self.config.model.alignment.temperature
            )
            loss = loss + training.alignment_weight * parts["alignment"]
        distance = self.distance(output, source)
        if distance is not None:
            parts["distillation"] = distance
            loss = loss + training.distill_weight * distance
        return StepResult(loss, parts)

    def distance(self, output: NetworkOutput, batch: Item) -> torch.Tensor | None:
        """Of predicted knowledge from the captions', in the mode "implicit" where there are captions."""
        if self.config.model.knowledge.mode != "implicit" or batch.knowledge is None or output.knowledge is None:
            return None
        return distillation_loss(output.knowledge, gather_rows(batch.knowledge))
