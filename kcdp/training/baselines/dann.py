"""DANN: features that tell classes and hide domains (Ganin et al., JMLR 2016)."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.config import Config
from kcdp.data.loader import Item
from kcdp.models.network import EmotionNetwork, NetworkOutput
from kcdp.training.baselines.adversary import Discriminator, domain_loss, reversal_ramp, reverse_gradient
from kcdp.training.baselines.both import BothStep, expect_trained
from kcdp.training.steps.step import StepResult


class DannStep(BothStep):
    """A discriminator reads the domain off v; its gradient reaches v reversed, and by the ramp's factor.

    Arguments and errors as for ``BothStep``.
    """

    def __init__(self, config: Config, class_weights: torch.Tensor, model: EmotionNetwork) -> None:
        super().__init__(config, class_weights, model)
        self.discriminator = Discriminator(model.visual)

    def on_both(
        self,
        here: NetworkOutput,
        there: NetworkOutput,
        model: nn.Module,
        target: Item,
        progress: float,
        result: StepResult,
    ) -> torch.Tensor:
        """See ``BothStep.on_both``.

        Raises:
            KcdpError: nothing in front of v trains.
        """
        expect_trained(here.v, self.config)
        factor = reversal_ramp(progress)
        source, goal = (reverse_gradient(x.v, factor) for x in (here, there))
        loss, told = domain_loss(self.discriminator, source, goal)
        result.parts |= {"domain": loss, "domain_accuracy": told, "reversal": torch.tensor(factor)}
        return loss
