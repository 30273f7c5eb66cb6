"""Learning rates over time and over parameters, and the weights of classes."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from kcdp.labels import NUM_CLASSES
from kcdp.models.network import EmotionNetwork
from kcdp.settings import TrainingConfig


def make_optimizer(model: EmotionNetwork, step: nn.Module, training: TrainingConfig) -> torch.optim.AdamW | None:
    """AdamW over what the network and the step train; None where nothing does.

    Each group's ``lr_scale`` multiplies the learning rate; see ``EmotionNetwork.parameter_groups``.
    """
    groups = model.parameter_groups(training.weight_decay, training.backbone_lr_scale)
    own = [p for p in step.parameters() if p.requires_grad]
    if own:
        groups.append({"params": own, "weight_decay": training.weight_decay, "lr_scale": 1.0})
    return torch.optim.AdamW(groups, lr=training.learning_rate) if groups else None


def set_learning_rate(
    optimizer: torch.optim.Optimizer, training: TrainingConfig, step: int, total: int, per_epoch: int
) -> None:
    """Before step number ``step``, counted from 0; see ``training.schedule_unit``."""
    if training.schedule_unit == "epoch":
        step //= per_epoch
    rate = learning_rate(step, total, training.warmup_steps, training.learning_rate, training.schedule)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(step: int, total: int, warmup: int, peak: float, schedule: str = "cosine") -> float:
    """Linear from 0 over the warm-up (at most a fifth of the run), then the schedule, down to 0 at ``total``.

    "cosine": half a cosine; "poly": (1 - t)^0.9; "constant": the peak.
    """
    warmup = min(warmup, max(1, total // 5))
    if step < warmup:
        return peak * (step + 1) / warmup
    t = min(1.0, (step - warmup) / max(1, total - warmup))
    if schedule == "constant":
        return peak
    return peak * ((1 - t) ** 0.9 if schedule == "poly" else 0.5 * (1 + math.cos(math.pi * t)))


def class_shares(labels: np.ndarray) -> torch.Tensor:
    """float32 [6]: share of each class among labelled pictures."""
    counts = np.bincount(labels[labels >= 0], minlength=NUM_CLASSES)
    return torch.tensor(counts / max(1, counts.sum()), dtype=torch.float32)


def class_weights(labels: np.ndarray, weighting: str) -> torch.Tensor:
    """float32 [6]: weights of the cross-entropy, with mean 1 over the pictures; 0 for a class without one."""
    counts = np.bincount(labels, minlength=NUM_CLASSES).astype(np.float64)
    power = {"none": 0.0, "sqrt": 0.5, "balanced": 1.0}[weighting]
    weights = np.where(counts > 0, np.maximum(counts, 1.0) ** -power, 0.0)
    weights *= counts.sum() / (weights * counts).sum()
    return torch.tensor(weights, dtype=torch.float32)
