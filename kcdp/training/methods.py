"""Which step trains a run: the setting of the method, or one of the baselines it is compared with."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

import torch

from kcdp.config import Config
from kcdp.errors import KcdpError
from kcdp.models.network import EmotionNetwork
from kcdp.training.steps.adaptation import AdaptationStep
from kcdp.training.steps.distillation import DistillationStep
from kcdp.training.steps.source import SourceStep
from kcdp.training.steps.step import Step

#: ``training.method`` -> where the class of its step stands; each is made as ``Step(config, class_weights, model)``.
BASELINES: Mapping[str, str] = MappingProxyType({
    "dann": "kcdp.training.baselines.dann:DannStep",
    "cdan": "kcdp.training.baselines.cdan:CdanStep",
    "mcc": "kcdp.training.baselines.mcc:MccStep",
    "fixmatch": "kcdp.training.baselines.fixmatch:FixMatchStep",
})  # fmt: skip


def leaves_out(config: Config) -> bool:
    """Whether a step may leave trained parameters without a gradient, which several processes have to look for.

    With all experts computed at once, everything that trains of the paper's network takes part in every step.
    """
    model = config.model
    return model.network != "kadap" or model.head.routing != "dense" or config.training.method in BASELINES


def make_step(
    config: Config, class_weights: torch.Tensor, shares: torch.Tensor, model: EmotionNetwork, adapts: bool
) -> Step:
    """The step of a configuration.

    Args:
        class_weights: float [6], of the cross-entropy.
        shares: float [6], class shares of the source.
        model: tells sizes.
        adapts: whether there is an unlabelled target: the setting DA, else UC.

    Raises:
        KcdpError: a method that adapts and no target, or a target for one that cannot use it.
    """
    method = config.training.method
    if config.model.knowledge.mode == "implicit" and config.training.implicit == "distill":
        return DistillationStep(config, class_weights)
    if method == "source-only" and adapts:
        raise KcdpError(
            "training.method is 'source-only' and a target is given", "labelled source pictures alone",
            "leave out --target, or choose another method",
        )  # fmt: skip
    if method in BASELINES:
        module, _, name = BASELINES[method].partition(":")
        step: Step = getattr(importlib.import_module(module), name)(config, class_weights, model)
        if step.needs_target and not adapts:
            raise KcdpError(
                f"training.method is {method!r} and no target is given", "unlabelled pictures to adapt to",
                "add --target SPEC",
            )  # fmt: skip
        return step
    return AdaptationStep(config, class_weights, shares) if adapts else SourceStep(config, class_weights)
