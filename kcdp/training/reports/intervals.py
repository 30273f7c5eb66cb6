"""How far a figure might be off because the test set is finite: percentile bootstrap from confusion counts.

Accuracy, balanced accuracy and macro F1 depend on pictures through the confusion matrix alone, and a resample of the
pictures of one class is a multinomial draw from that class's row. So a resample costs a few random numbers however
many pictures there are, and thousands of them are one array.

Pictures are resampled within their true class: the number of pictures of each class is taken as given, as the
designer of the test set chose it, and a rare class never drops out of a resample, which would change what a mean over
classes is a mean of. The interval is that of Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 13:
the percentiles of the resampled figure. Pictures count as independent of one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kcdp.labels import NUM_CLASSES

RESAMPLES = 2000
LEVEL = 0.95
#: What intervals are given for, in the order of tables.
FIGURES = ("balanced_accuracy", "macro_f1", "accuracy")


def bootstrap_intervals(
    confusion: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> dict[str, list[float]]:
    """Intervals of accuracy, balanced accuracy and macro F1.

    Args:
        confusion: int [6, 6], row true, column predicted; at least one picture.
        resamples: how many.
        seed: fixes them.
        level: share of resamples inside, 0..1.

    Returns:
        ``[low, high]`` by figure, see ``FIGURES``.
    """
    generator = np.random.default_rng(seed)
    matrices = np.zeros((resamples, NUM_CLASSES, NUM_CLASSES), np.int64)
    for true, row in enumerate(np.asarray(confusion)):
        if row.sum():
            matrices[:, true] = generator.multinomial(row.sum(), row / row.sum(), size=resamples)
    return {name: _percentiles(values, level) for name, values in figures(matrices).items()}


def paired_differences(
    labels: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> dict[str, Any]:
    """How much better the second of two models is on the same pictures, with intervals.

    Both answer the same resampled pictures, so what is hard for both of them cancels out.

    Args:
        labels, first, second: int [N], true class and the two predictions; N >= 1.

    Returns:
        by figure: ``difference`` (second less first), ``interval`` [low, high]. The interval leaves out 0 where the
        test set tells the two apart.
    """
    joint = np.zeros((NUM_CLASSES, NUM_CLASSES, NUM_CLASSES), np.int64)
    np.add.at(joint, (labels, first, second), 1)
    generator = np.random.default_rng(seed)
    draws = np.zeros((resamples, *joint.shape), np.int64)
    for true, counts in enumerate(joint.reshape(NUM_CLASSES, -1)):
        if counts.sum():
            drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=resamples)
            draws[:, true] = drawn.reshape(resamples, NUM_CLASSES, NUM_CLASSES)
    resampled = (figures(draws.sum(axis=3)), figures(draws.sum(axis=2)))
    measured = (figures(joint.sum(axis=2)[None]), figures(joint.sum(axis=1)[None]))
    return {
        name: {
            "difference": float(measured[1][name][0] - measured[0][name][0]),
            "interval": _percentiles(resampled[1][name] - resampled[0][name], level),
        }
        for name in FIGURES
    }


def figures(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy and macro F1 of many confusion matrices at once.

    Args:
        matrices: int [R, 6, 6], row true, column predicted. All have pictures of the same classes; means over classes
            are over these, as in ``classification_metrics``.

    Returns:
        float64 [R] by figure, see ``FIGURES``.
    """
    right = np.diagonal(matrices, axis1=1, axis2=2).astype(np.float64)
    support, predicted = matrices.sum(axis=2), matrices.sum(axis=1)
    present = support[0] > 0
    recall = right[:, present] / support[:, present]
    f1 = 2 * right / np.maximum(support + predicted, 1)
    return {
        "balanced_accuracy": recall.mean(axis=1),
        "macro_f1": f1[:, present].mean(axis=1),
        "accuracy": right.sum(axis=1) / support.sum(axis=1),
    }


def _percentiles(values: np.ndarray, level: float) -> list[float]:
    tail = 50 * (1 - level)
    return [float(x) for x in np.percentile(values, [tail, 100 - tail])]
