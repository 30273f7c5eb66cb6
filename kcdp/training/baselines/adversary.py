"""Domain-adversarial training: gradient reversal, its ramp, and a discriminator of two domains."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

#: Width of the discriminator's layers, with Ganin et al. (JMLR 2016) as with Long et al. (NeurIPS 2018).
HIDDEN = 1024


def reversal_ramp(progress: float) -> float:
    """2 / (1 + exp(-10 p)) - 1: from 0 to nearly 1 (Ganin et al., JMLR 2016, section 5.2).

    Args:
        progress: p, share of all steps done, 0..1.
    """
    return 2.0 / (1.0 + math.exp(-10.0 * progress)) - 1.0


def reverse_gradient(x: torch.Tensor, factor: float) -> torch.Tensor:
    """The same; on the way back the gradient is multiplied by -factor."""
    reversed_: torch.Tensor = _Reversal.apply(x, factor)
    return reversed_


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor, factor: float) -> torch.Tensor:
        context.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -context.factor * gradient, None


class Discriminator(nn.Sequential):
    """Source or target: two hidden layers, one logit, positive for the source.

    Batch normalisation stands where the authors of CDAN have dropout, which would differ between processes. It sees
    the rows of all of them.

    Args:
        features: entries of what it looks at.
    """

    def __init__(self, features: int) -> None:
        super().__init__(
            nn.Linear(features, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, HIDDEN, bias=False), nn.BatchNorm1d(HIDDEN), nn.ReLU(),
            nn.Linear(HIDDEN, 1),
        )  # fmt: skip


def domain_loss(
    discriminator: nn.Module,
    source: torch.Tensor,
    target: torch.Tensor,
    weights: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy of the domains, half of it the source's mean and half the target's.

    Args:
        discriminator: gives [N, 1] for features [N, D]; both domains pass it as one batch.
        source, target: float [Ns, D] and [Nt, D].
        weights: float [Ns] and [Nt] of the pictures within their domain; None: all the same.

    Returns:
        the loss, and the share of pictures whose domain it tells.
    """
    logits = discriminator(torch.cat([source, target])).flatten().float()
    labels = torch.cat([torch.ones(len(source)), torch.zeros(len(target))]).to(logits.device)
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").split([len(source), len(target)])
    means = [
        part.mean() if weights is None else (part * weights[i]).sum() / weights[i].sum() for i, part in enumerate(each)
    ]
    told = ((logits > 0).float() == labels).float().mean()
    return (means[0] + means[1]) / 2, told
