"""CDAN+E: a discriminator that sees features together with what the classifier makes of them.

Long et al., "Conditional Adversarial Domain Adaptation", NeurIPS 2018.
"""

from __future__ import annotations

import torch
from torch import nn

from kcdp.config import Config
from kcdp.data.loader import Item
from kcdp.labels import NUM_CLASSES
from kcdp.models.network import EmotionNetwork, NetworkOutput
from kcdp.training.baselines.adversary import Discriminator, domain_loss, reversal_ramp, reverse_gradient
from kcdp.training.baselines.both import BothStep, certainty, expect_trained
from kcdp.training.steps.step import StepResult

#: The outer product is taken where it has at most so many entries (the paper), ...
LARGEST_PRODUCT = 4096
#: ... else a randomised map with so many (the authors' code).
RANDOM_WIDTH = 1024


class MultilinearMap(nn.Module):
    """Features and class probabilities as one vector: the outer product, or where that is large a randomised map.

    The latter is (R_f f) * (R_g g) / sqrt(d), entry by entry, with fixed random matrices, normal ones here;
    its inner products are those of outer products, in expectation.

    Args:
        features, classes: entries of the two.

    Attributes:
        width: entries of the result.
    """

    of_features: torch.Tensor
    of_classes: torch.Tensor

    def __init__(self, features: int, classes: int = NUM_CLASSES) -> None:
        super().__init__()
        self.randomised = features * classes > LARGEST_PRODUCT
        self.width = RANDOM_WIDTH if self.randomised else features * classes
        if self.randomised:
            self.register_buffer("of_features", torch.randn(features, RANDOM_WIDTH))
            self.register_buffer("of_classes", torch.randn(classes, RANDOM_WIDTH))

    def forward(self, features: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
        """float [N, features] and [N, classes] to [N, width].

        Of the outer product, entry i x features + j is probability i times feature j.
        """
        if not self.randomised:
            return (probabilities.unsqueeze(2) * features.unsqueeze(1)).flatten(1)
        mapped: torch.Tensor = (features @ self.of_features) * (probabilities @ self.of_classes)
        return mapped / self.width**0.5


class CdanStep(BothStep):
    """As DANN, on the multilinear map of v and probabilities; certain pictures count more.

    As in the authors' code, probabilities and weights are given to the discriminator as they are: only v learns from
    it; and the weights of each domain are brought to the sum 1. Arguments and errors as for ``BothStep``.
    """

    def __init__(self, config: Config, class_weights: torch.Tensor, model: EmotionNetwork) -> None:
        super().__init__(config, class_weights, model)
        self.map = MultilinearMap(model.visual)
        self.discriminator = Discriminator(self.map.width)

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
        probabilities = [torch.softmax(x.logits.detach().float(), dim=1) for x in (here, there)]
        features = [reverse_gradient(x.v, factor).float() for x in (here, there)]
        loss, told = domain_loss(
            self.discriminator,
            self.map(features[0], probabilities[0]), self.map(features[1], probabilities[1]),
            (certainty(probabilities[0]), certainty(probabilities[1])),
        )  # fmt: skip
        result.parts |= {"domain": loss, "domain_accuracy": told, "reversal": torch.tensor(factor)}
        return loss
