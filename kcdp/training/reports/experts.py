"""How the mixture's experts were used."""

from __future__ import annotations

from typing import Any

import numpy as np

from kcdp.labels import LABELS


def expert_use(gates: np.ndarray, chosen: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Which experts answered, for all pictures and for each class.

    Args:
        gates: float [N, experts], the softmax gate.
        chosen: float [N, experts], 1 where an expert answered.
        labels: int [N].

    Returns:
        ``chosen``: share of pictures that each expert answered for (the shares sum to top_k); ``gate``: its mean
        gate; ``chosen_by_class``: the former by class name, None for a class without a picture; ``entropy``: of the
        mean gate, 1 where all are used alike, 0 where one is used alone.
    """
    mean = gates.mean(axis=0)
    entropy = -(mean * np.log(np.maximum(mean, 1e-12))).sum() / max(np.log(len(mean)), 1e-12)
    by_class = {}
    for number, name in enumerate(LABELS):
        inside = labels == number
        by_class[name] = [round(float(x), 4) for x in chosen[inside].mean(axis=0)] if inside.any() else None
    return {
        "chosen": [round(float(x), 4) for x in chosen.mean(axis=0)],
        "gate": [round(float(x), 4) for x in mean],
        "chosen_by_class": by_class,
        "entropy": round(float(entropy), 4),
    }
