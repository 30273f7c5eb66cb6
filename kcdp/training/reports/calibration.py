"""Whether a confidence of 80 % means right in 80 of 100 cases: reliability, its error, and temperature scaling.

Definitions of Guo et al., On Calibration of Modern Neural Networks, ICML 2017. The confidence of an answer is the
largest of its six probabilities. With M = 15 bins of equal width, bin m = 1..M holds the answers whose confidence is
in ((m - 1) / M, m / M]. The expected calibration error (ECE) is the sum over bins of (share of all answers in the bin)
x |accuracy in the bin - mean confidence in the bin|.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kcdp.training.predict import softmax

BINS = 15
#: The temperatures that are searched.
LOWEST, HIGHEST = 0.05, 20.0


def reliability(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """Confidence against accuracy, bin by bin.

    Args:
        probabilities: float [N, C], rows sum to 1; N >= 1.
        labels: int [N].

    Returns:
        ``ece`` 0..1; ``confidence`` and ``accuracy``, means over all; ``nll``, the mean negative log-likelihood in
        nats; ``bins``: one row each with ``low``, ``high``, ``n``, and ``confidence`` and ``accuracy``, None where
        empty.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    numbers = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    rows, error = [], 0.0
    for number in range(bins):
        inside = numbers == number
        count = int(inside.sum())
        row: dict[str, Any] = {"low": number / bins, "high": (number + 1) / bins, "n": count}
        row |= {"confidence": None, "accuracy": None}
        if count:
            row |= {"confidence": float(confidence[inside].mean()), "accuracy": float(right[inside].mean())}
            error += count / len(labels) * abs(row["accuracy"] - row["confidence"])
        rows.append(row)
    return {
        "ece": float(error),
        "confidence": float(confidence.mean()),
        "accuracy": float(right.mean()),
        "nll": float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean()),
        "bins": rows,
    }


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature whose softmax gives the labels the largest likelihood.

    The likelihood is concave in the inverse of the temperature and so has one peak, which a golden-section search
    over its logarithm finds.

    Args:
        logits: float [N, C] of pictures that are **not** those the temperature is going to be judged on; N >= 1.
        labels: int [N].

    Returns:
        between ``LOWEST`` and ``HIGHEST``; near an end of that range where no temperature is best, as for answers
        that are all right.
    """
    rows = np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        top = scaled.max(axis=1)
        return float((np.log(np.exp(scaled - top[:, None]).sum(axis=1)) + top - scaled[rows, labels]).mean())

    low, high, golden = np.log(LOWEST), np.log(HIGHEST), (5**0.5 - 1) / 2
    inner = [high - golden * (high - low), low + golden * (high - low)]
    costs = [cost(x) for x in inner]
    while high - low > 1e-5:
        if costs[0] <= costs[1]:
            high, inner[1], costs[1] = inner[1], inner[0], costs[0]
            inner[0] = high - golden * (high - low)
            costs[0] = cost(inner[0])
        else:
            low, inner[0], costs[0] = inner[0], inner[1], costs[1]
            inner[1] = low + golden * (high - low)
            costs[1] = cost(inner[1])
    return float(np.exp((low + high) / 2))


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float | None) -> dict[str, Any]:
    """Reliability as it is and, where a temperature is given, with it.

    Returns:
        ``before``, ``after`` (None without a temperature), each of ``reliability``, and ``temperature``.
    """
    after = None if temperature is None else reliability(softmax(logits, temperature), labels)
    return {"temperature": temperature, "before": reliability(softmax(logits), labels), "after": after}
