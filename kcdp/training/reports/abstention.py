"""When to give no answer: a confidence below which a picture counts as showing none of the six emotions.

Pictures without an emotion (neutral ones) never become a seventh class: the model is as it was trained, and only its
confidence, the largest of six probabilities, decides (Hendrycks and Gimpel, A Baseline for Detecting Misclassified and
Out-of-Distribution Examples in Neural Networks, ICLR 2017). The threshold is chosen on one half of the pictures and
measured on the other half.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score

#: Fewer pictures of either sort than this are not worth halving.
FEWEST = 4


def choosing_half(keys: Sequence[str], seed: int) -> np.ndarray:
    """Which pictures choose the threshold: bool [N], half of them (rounded down), by the hash of their keys.

    A picture's place in its dataset makes no difference, nor does the library's random generator.
    """
    order = sorted(range(len(keys)), key=lambda i: _digest(seed, keys[i]))
    chosen = np.zeros(len(keys), bool)
    chosen[order[: len(keys) // 2]] = True
    return chosen


def best_threshold(emotional: np.ndarray, neutral: np.ndarray) -> float:
    """The threshold with the largest (share of emotional kept + share of neutral rejected) (Youden's index).

    Args:
        emotional, neutral: float [N], [M], confidences 0..1; each at least one. What is at or above the threshold is
            kept.

    Returns:
        a threshold half-way between two confidences; of several that are equally good, the lowest.
    """
    values = np.unique(np.concatenate([emotional, neutral]))
    candidates = np.concatenate([[0.0], (values[1:] + values[:-1]) / 2])
    kept = 1 - np.searchsorted(np.sort(emotional), candidates, side="left") / len(emotional)
    rejected = np.searchsorted(np.sort(neutral), candidates, side="left") / len(neutral)
    return float(candidates[np.argmax(np.round(kept + rejected, 12))])


def abstention(
    emotional: np.ndarray,
    labels: np.ndarray,
    keys: Sequence[str],
    neutral: np.ndarray,
    neutral_keys: Sequence[str],
    *,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Choose a threshold on one half of the pictures, measure it on the other.

    Args:
        emotional: float [N, 6], probabilities of pictures with an emotion.
        labels: int [N], their emotions.
        keys: their keys.
        neutral: float [M, 6], probabilities of pictures without one.
        neutral_keys: their keys.
        seed: which half is which.

    Returns:
        ``chosen_on`` and ``measured_on``, each the numbers of ``emotional`` and ``neutral`` pictures; ``threshold``;
        all else of the measuring half: ``auroc`` of emotional against neutral, ``neutral_rejected``,
        ``emotional_kept``, ``accuracy_all``, ``accuracy_kept`` (None where nothing is kept), and ``curve``, see
        ``risk_coverage``. None where there are fewer than ``FEWEST`` pictures of either sort.
    """
    if min(len(emotional), len(neutral)) < FEWEST:
        return None
    choosing, neutral_choosing = choosing_half(keys, seed), choosing_half(neutral_keys, seed)
    confidence, neutral_confidence = emotional.max(axis=1), neutral.max(axis=1)
    threshold = best_threshold(confidence[choosing], neutral_confidence[neutral_choosing])

    right = (emotional.argmax(axis=1) == labels)[~choosing]
    confidence, neutral_confidence = confidence[~choosing], neutral_confidence[~neutral_choosing]
    kept = confidence >= threshold
    truth = np.concatenate([np.ones(len(confidence)), np.zeros(len(neutral_confidence))])
    return {
        "chosen_on": {"emotional": int(choosing.sum()), "neutral": int(neutral_choosing.sum())},
        "measured_on": {"emotional": len(confidence), "neutral": len(neutral_confidence)},
        "threshold": threshold,
        "auroc": float(roc_auc_score(truth, np.concatenate([confidence, neutral_confidence]))),
        "neutral_rejected": float((neutral_confidence < threshold).mean()),
        "emotional_kept": float(kept.mean()),
        "accuracy_all": float(right.mean()),
        "accuracy_kept": float(right[kept].mean()) if kept.any() else None,
        "curve": risk_coverage(confidence, right, neutral_confidence),
    }


def risk_coverage(
    confidence: np.ndarray, right: np.ndarray, neutral: np.ndarray, points: int = 101
) -> dict[str, list[float]]:
    """What abstaining costs and brings, from answering everything down to answering the surest picture alone.

    Risk and coverage as in El-Yaniv and Wiener, On the Foundations of Noise-free Selective Classification, JMLR 2010.

    Args:
        confidence: float [N], of emotional pictures.
        right: bool [N], whether they were answered rightly.
        neutral: float [M], confidences of neutral pictures: any answer to them is wrong.
        points: how many points of the curve at most.

    Returns:
        ``coverage``, falling: share of emotional pictures answered; ``threshold``: for it; ``risk``: share of wrong
        answers among them; ``risk_with_neutral``: the same with the neutral pictures that pass the threshold counted
        as wrong answers.
    """
    order = np.argsort(-confidence, kind="stable")
    wrong = np.cumsum(~right[order])
    counts = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(int))[::-1]
    thresholds = confidence[order][counts - 1]
    counts = np.searchsorted(-confidence[order], -thresholds, side="right")  # all of equal confidence pass together
    passing = len(neutral) - np.searchsorted(np.sort(neutral), thresholds, side="left")
    return {
        "coverage": (counts / len(order)).tolist(),
        "threshold": thresholds.tolist(),
        "risk": (wrong[counts - 1] / counts).tolist(),
        "risk_with_neutral": ((wrong[counts - 1] + passing) / (counts + passing)).tolist(),
    }


def _digest(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"abstention\0{seed}\0{key}".encode("utf-8", "surrogateescape")).digest()
