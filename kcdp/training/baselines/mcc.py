"""MCC: predictions for the target that confuse classes as little as can be (Jin et al., ECCV 2020)."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.data.loader import Item
from kcdp.models.network import NetworkOutput
from kcdp.training.baselines.both import BothStep, certainty
from kcdp.training.steps.step import StepResult

#: Of the softmax; the paper's value on all of its data sets.
TEMPERATURE = 2.5


def class_confusion(logits: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """The share of each class's predictions that goes to other classes, averaged (section 3 of the paper).

    Probabilities are rescaled by the temperature, pictures weighted by their certainty with mean 1, class pairs
    correlated over the batch, and rows normalised to the sum 1. The weights carry no gradient, as in the authors' code.

    Args:
        logits: [N, C] of unlabelled pictures.

    Returns:
        scalar, 0 .. 1 - 1/C for one-hot and for even predictions.
    """
    probabilities = torch.softmax(logits.float() / temperature, dim=1)
    weights = certainty(probabilities.detach())
    weights = len(logits) * weights / weights.sum()
    confusion = (probabilities * weights.unsqueeze(1)).T @ probabilities
    confusion = confusion / confusion.sum(dim=1, keepdim=True)
    return (confusion.sum() - confusion.trace()) / len(confusion)


class MccStep(BothStep):
    """The losses of the source, and the class confusion of the target. Arguments and errors as for ``BothStep``."""

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
        result.parts["confusion"] = class_confusion(there.logits)
        return result.parts["confusion"]
