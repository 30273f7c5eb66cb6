"""What a set of predictions is worth, with what a constant answer would have got beside it."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from kcdp.errors import KcdpError
from kcdp.labels import LABELS, NUM_CLASSES


def classification_metrics(labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    """Metrics of six-class predictions.

    Means over classes are over the classes that occur in ``labels``: a class without a picture has no recall.

    Args:
        labels, predictions: int [N], index in ``LABELS``; N >= 1, none negative.

    Returns:
        ``n``, ``accuracy``, ``balanced_accuracy`` (mean recall), ``macro_f1``, ``recall``, ``precision``, ``f1`` and
        ``support`` by class name (recall and F1 None where support is 0), ``confusion`` [6][6] (row true, column
        predicted), and ``constant_baseline``: always answering the most frequent class of ``labels``.

    Raises:
        KcdpError: no picture has a label.
    """
    if len(labels) == 0:
        raise KcdpError("no picture has a label", "labelled pictures to measure on", "name a labelled dataset")
    result = _scores(labels, predictions)
    constant = int(np.bincount(labels, minlength=NUM_CLASSES).argmax())
    baseline = _scores(labels, np.full_like(labels, constant))
    result["constant_baseline"] = {
        "answer": LABELS[constant], **{k: baseline[k] for k in ("accuracy", "balanced_accuracy", "macro_f1")}
    }  # fmt: skip
    return result


def _scores(labels: np.ndarray, predictions: np.ndarray) -> dict[str, Any]:
    matrix = confusion_matrix(labels, predictions, labels=range(NUM_CLASSES))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=range(NUM_CLASSES), zero_division=0.0
    )
    present = support > 0
    return {
        "n": len(labels),
        "accuracy": float((labels == predictions).mean()),
        "balanced_accuracy": float(recall[present].mean()),
        "macro_f1": float(f1[present].mean()),
        "recall": {c: float(recall[i]) if present[i] else None for i, c in enumerate(LABELS)},
        "precision": {c: float(precision[i]) for i, c in enumerate(LABELS)},
        "f1": {c: float(f1[i]) if present[i] else None for i, c in enumerate(LABELS)},
        "support": {c: int(support[i]) for i, c in enumerate(LABELS)},
        "confusion": matrix.tolist(),
    }
