"""What the baselines of unsupervised adaptation share: a batch of both domains, and the source's losses."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import nn

from kcdp.config import Config
from kcdp.data.loader import Item
from kcdp.errors import KcdpError
from kcdp.models.network import EmotionNetwork, NetworkOutput
from kcdp.training.steps.source import SourceStep
from kcdp.training.steps.step import StepResult, joined, run_both


class BothStep(SourceStep):
    """The losses of the source, and what ``on_both`` adds to the result.

    Args:
        config, class_weights: as for ``Step``.
        model: tells sizes.

    Attributes:
        views: what ``training.pseudo_labels.views`` must be: the target's pictures are those of ``run_both``.

    Raises:
        KcdpError: other views.
    """

    needs_target = True
    views = "same"

    def __init__(self, config: Config, class_weights: torch.Tensor, model: EmotionNetwork) -> None:
        super().__init__(config, class_weights)
        method, found = config.training.method, config.training.pseudo_labels.views
        if found != self.views:
            raise KcdpError(
                f"training.method is {method!r} and training.pseudo_labels.views {found!r}", repr(self.views),
                f"choose it with --profile {method}, or add --set training.pseudo_labels.views={self.views}",
            )  # fmt: skip

    def forward(
        self, model: nn.Module, teacher: EmotionNetwork, source: Item, target: Item | None, progress: float
    ) -> StepResult:
        """See ``Step.forward``."""
        assert target is not None
        knowledge = joined(self.given(source), self.given(target))
        here, there = run_both(model, source, target, knowledge, self.aligns)
        result = self.on_source(here, source)
        added = self.on_both(here, there, model, target, progress, result)
        result.loss = result.loss + self.config.training.baseline_weight * added
        return result

    @abstractmethod
    def on_both(
        self,
        here: NetworkOutput,
        there: NetworkOutput,
        model: nn.Module,
        target: Item,
        progress: float,
        result: StepResult,
    ) -> torch.Tensor:
        """The loss that is added, times ``training.baseline_weight``; its measures go into ``result``.

        Args:
            here, there: source and target, the rows of all processes.
            model, target, progress: as for ``Step.forward``.
        """


def expect_trained(v: torch.Tensor, config: Config) -> None:
    """Raises KcdpError: nothing in front of v trains, so that no discriminator can change it."""
    if torch.is_grad_enabled() and not v.requires_grad:
        raise KcdpError(
            f"training.method is {config.training.method!r} and nothing in front of the visual feature trains",
            "a tower that trains", "add --set model.train_backbone=true",
        )  # fmt: skip


def certainty(probabilities: torch.Tensor) -> torch.Tensor:
    """1 + exp(-H), H the entropy of a picture's class probabilities: 1..2, 2 for a certain one.

    CDAN's entropy conditioning (Long et al., NeurIPS 2018); MCC weights pictures the same way.

    Args:
        probabilities: [N, classes].

    Returns:
        [N].
    """
    entropy = -torch.special.xlogy(probabilities, probabilities).sum(dim=1)
    return 1.0 + torch.exp(-entropy)
