"""FixMatch: what the model is sure of in a weak view is the label of the strong one (Sohn et al., NeurIPS 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.data.loader import Item
from kcdp.models.network import NetworkOutput
from kcdp.training.baselines.both import BothStep
from kcdp.training.steps.step import StepResult, in_evaluation


class FixMatchStep(BothStep):
    """No teacher, no alignment, one fixed threshold: ``training.pseudo_labels.confidence``, 0.95 in the paper.

    The mean is over all pictures of the target, those below the threshold counting 0 (eq. 4). Arguments and errors as
    for ``BothStep``.
    """

    views = "weak-strong"

    def on_both(
        self,
        here: NetworkOutput,
        there: NetworkOutput,
        model: nn.Module,
        target: Item,
        progress: float,
        result: StepResult,
    ) -> torch.Tensor:
        """See ``BothStep.on_both``."""
        weak = in_evaluation(model, target, self.given(target), False)
        sure, labels = torch.softmax(weak.logits.float(), dim=1).max(dim=1)
        counted = (sure >= self.config.training.pseudo_labels.confidence).float()
        pseudo = (F.cross_entropy(there.logits.float(), labels, reduction="none") * counted).mean()
        result.parts |= {"pseudo": pseudo, "pseudo_share": counted.mean()}
        result.pseudo_labels, result.counted = labels, counted
        return pseudo
