"""The setting DA: labelled source and unlabelled target pictures together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.config import Config
from kcdp.data.loader import Item
from kcdp.errors import KcdpError
from kcdp.models.network import EmotionNetwork, NetworkOutput
from kcdp.training.pseudo_labels import PseudoLabels, ramp_up
from kcdp.training.steps.source import SourceStep
from kcdp.training.steps.step import StepResult, in_evaluation, joined, run_both


class AdaptationStep(SourceStep):
    """The losses of the source, and the predictor's cross-entropy with pseudo-labels of the target.

    Args:
        config, class_weights: as for ``Step``.
        shares: float [6], class shares of the source.

    Attributes:
        labeller: its running means move with every step.

    Raises:
        KcdpError: pseudo-labels of the alignment, and there is none.
    """

    needs_target = True

    def __init__(self, config: Config, class_weights: torch.Tensor, shares: torch.Tensor) -> None:
        super().__init__(config, class_weights)
        self.pseudo = config.training.pseudo_labels
        self.labeller = PseudoLabels(self.pseudo, shares)
        if self.pseudo.source != "predictor" and not self.aligns:
            raise KcdpError(
                f"training.pseudo_labels.source is {self.pseudo.source!r} and model.alignment.kind 'none'",
                "an alignment, or pseudo-labels of the predictor",
                "add --set training.pseudo_labels.source=predictor",
            )

    def forward(
        self, model: nn.Module, teacher: EmotionNetwork, source: Item, target: Item | None, progress: float
    ) -> StepResult:
        """See ``Step.forward``."""
        assert target is not None
        here, there = run_both(model, source, target, joined(self.given(source), self.given(target)), self.aligns)
        result = self.on_source(here, source)
        with torch.no_grad():
            if self.pseudo.teacher != "student" or self.pseudo.views == "weak-strong":
                # Captions tell the teacher even where the model itself has to do without them (mode "implicit").
                taught = in_evaluation(teacher, target, target.knowledge, self.aligns)
            else:
                taught = there
            labels, counted = self.labeller(self.probabilities(taught))
        each = F.cross_entropy(there.logits.float(), labels, reduction="none")
        pseudo = (each * counted).mean()
        weight = self.pseudo.weight * ramp_up(progress, self.pseudo.ramp_up)
        result.loss = result.loss + weight * pseudo
        result.parts |= {"pseudo": pseudo, "pseudo_share": counted.mean()}
        result.pseudo_labels, result.counted = labels, counted
        distance = self.distance(there, target)
        if distance is not None:
            result.loss = result.loss + self.config.training.distill_weight * distance
        return result

    def probabilities(self, output: NetworkOutput) -> torch.Tensor:
        """What pseudo-labels are made of: float32 [N, 6]."""
        predicted = torch.softmax(output.logits.float(), dim=1)
        if self.pseudo.source == "predictor":
            return predicted
        assert output.alignment is not None
        aligned = torch.softmax(output.alignment.similarity.float() / self.config.model.alignment.temperature, dim=1)
        return aligned if self.pseudo.source == "alignment" else (aligned + predicted) / 2
