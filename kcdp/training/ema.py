"""The moving average of a model's weights: the teacher, and what is validated and exported in the model's place."""

from __future__ import annotations

import copy

import torch

from kcdp.models.network import EmotionNetwork


def average_model(model: EmotionNetwork) -> EmotionNetwork:
    """A copy in evaluation mode, without gradients, to be moved by ``update_average``.

    What no checkpoint holds (``EmotionNetwork.external``: a frozen Stable Diffusion, say) is shared with the model.
    """
    shared = {id(p): p for name, p in model.named_parameters() if name in model.external}
    average = copy.deepcopy(model, memo=shared)
    return average.requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: EmotionNetwork, model: EmotionNetwork, decay: float, step: int) -> None:
    """Move towards the model by one step.

    Args:
        average: from ``average_model``.
        decay: weight of what was there; in the first steps (1 + step) / (10 + step) where that is less.
        step: optimiser steps done.
    """
    weight = 1.0 - min(decay, (1 + step) / (10 + step))
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(average.parameters(), model.parameters(), strict=True)
        if mine is not theirs
    ]
    if pairs:
        torch._foreach_lerp_([mine for mine, _ in pairs], [theirs.detach() for _, theirs in pairs], weight)
    for (name, mine), theirs in zip(average.named_buffers(), model.buffers(), strict=True):
        if "running_" in name:  # the statistics of a batch normalisation
            mine.lerp_(theirs, weight)
        else:
            mine.copy_(theirs)
