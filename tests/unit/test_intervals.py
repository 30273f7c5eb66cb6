"""Bootstrap intervals: against the metrics, against resampled pictures, and how often they hold the truth."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from kcdp.training.metrics import classification_metrics
from kcdp.training.reports.intervals import FIGURES, bootstrap_intervals, figures, paired_differences


def answers(seed: int, counts: tuple[int, ...], right: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels with so many pictures a class, and predictions that are right with a probability, else anything."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    guessed = generator.integers(0, 6, len(labels))
    return labels, np.where(generator.random(len(labels)) < right, labels, guessed)


def confusion_of(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return np.array(classification_metrics(labels, predictions)["confusion"])


@pytest.mark.parametrize("counts", [(30, 50, 4, 7, 20, 11), (0, 5, 0, 0, 3, 2), (0, 0, 1, 0, 0, 0)])
def test_figures_of_confusion_counts_are_those_of_the_pictures(counts):
    for seed in range(4):
        labels, predictions = answers(seed, counts, 0.4)
        found = figures(confusion_of(labels, predictions)[None])
        metrics = classification_metrics(labels, predictions)
        assert {name: pytest.approx(metrics[name]) for name in FIGURES} == {k: v[0] for k, v in found.items()}
        assert found["accuracy"][0] == pytest.approx(accuracy_score(labels, predictions))
        present = np.unique(labels)
        macro = f1_score(labels, predictions, labels=present, average="macro", zero_division=0.0)
        assert found["macro_f1"][0] == pytest.approx(macro)
        if set(predictions) <= set(present):
            assert found["balanced_accuracy"][0] == pytest.approx(balanced_accuracy_score(labels, predictions))


def test_the_interval_is_that_of_resampling_pictures_within_their_class():
    """The slow way: picture by picture, with the metrics of the report."""
    labels, predictions = answers(1, (30, 60, 12, 20, 25, 18), 0.45)
    generator = np.random.default_rng(5)
    slow: dict[str, list[float]] = {name: [] for name in FIGURES}
    for _ in range(1200):
        rows = np.concatenate([generator.choice(np.flatnonzero(labels == c), (labels == c).sum()) for c in range(6)])
        one = figures(confusion_of_fast(labels[rows], predictions[rows])[None])
        for name in FIGURES:
            slow[name].append(float(one[name][0]))
    fast = bootstrap_intervals(confusion_of(labels, predictions), resamples=4000, seed=2)
    for name in FIGURES:
        want = np.percentile(slow[name], [2.5, 97.5])
        assert fast[name] == pytest.approx(want, abs=0.015)
        assert fast[name][0] < classification_metrics(labels, predictions)[name] < fast[name][1]


def confusion_of_fast(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return np.bincount(labels * 6 + predictions, minlength=36).reshape(6, 6)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """Many test sets are drawn from a known model; the share of intervals that hold its true figure."""
    counts, right = (40, 80, 30, 30, 50, 40), 0.5
    truth = right + (1 - right) / 6  # of recall in every class, and so of balanced accuracy and accuracy
    held = {"balanced_accuracy": 0, "accuracy": 0}
    for seed in range(300):
        found = bootstrap_intervals(confusion_of_fast(*answers(seed, counts, right)), resamples=400, seed=seed)
        for name in held:
            held[name] += found[name][0] <= truth <= found[name][1]
    assert all(0.90 <= count / 300 <= 0.985 for count in held.values()), held


def test_intervals_shrink_with_the_root_of_the_pictures():
    confusion = confusion_of(*answers(3, (40, 80, 30, 30, 50, 40), 0.5))
    narrow, wide = (bootstrap_intervals(confusion * factor, seed=0) for factor in (16, 1))
    for name in FIGURES:
        ratio = (wide[name][1] - wide[name][0]) / (narrow[name][1] - narrow[name][0])
        assert 3.4 < ratio < 4.6


def test_class_counts_stay_and_a_constant_answer_has_no_spread():
    labels = np.repeat(np.arange(6), [76, 565, 11, 41, 169, 138])
    found = bootstrap_intervals(confusion_of(labels, np.ones(1000, dtype=int)))
    assert found["accuracy"] == [0.565, 0.565] and found["balanced_accuracy"] == pytest.approx([1 / 6, 1 / 6])
    rare = bootstrap_intervals(confusion_of(np.array([0, 1, 1, 1]), np.array([0, 1, 1, 0])))
    assert rare["balanced_accuracy"][0] >= 0.5  # the only picture of class 0 is in every resample


def test_the_seed_decides_and_nothing_else():
    confusion = confusion_of(*answers(0, (30, 50, 4, 7, 20, 11), 0.4))
    assert bootstrap_intervals(confusion, seed=3) == bootstrap_intervals(confusion, seed=3)
    assert bootstrap_intervals(confusion, seed=3) != bootstrap_intervals(confusion, seed=4)


def test_twenty_thousand_pictures_take_no_time():
    confusion = np.random.default_rng(0).integers(0, 1200, (6, 6))
    started = time.perf_counter()
    bootstrap_intervals(confusion)
    assert time.perf_counter() - started < 1


def test_a_paired_difference_by_hand():
    labels = np.array([0, 0, 0, 0, 1, 1])
    first, second = np.array([0, 0, 1, 1, 1, 0]), np.array([0, 0, 0, 1, 1, 0])
    found = paired_differences(labels, first, second)
    assert found["accuracy"]["difference"] == pytest.approx(1 / 6)
    assert found["balanced_accuracy"]["difference"] == pytest.approx((3 / 4 - 2 / 4) / 2)
    low, high = found["accuracy"]["interval"]
    assert low == pytest.approx(0) and 1 / 6 <= high <= 4 / 6  # the one picture they differ on, drawn 0 to 4 times


def test_pairing_tells_apart_what_two_intervals_do_not():
    """The second is the first with 2 % of its mistakes mended: hardly apart, but better on the same pictures."""
    labels, first = answers(0, (200, 200, 200, 200, 200, 200), 0.4)
    wrong = np.flatnonzero(first != labels)[::50]
    second = first.copy()
    second[wrong] = labels[wrong]
    apart = [bootstrap_intervals(confusion_of(labels, p))["accuracy"] for p in (first, second)]
    assert apart[0][1] > apart[1][0]
    assert paired_differences(labels, first, second)["accuracy"]["interval"][0] > 0
    same = paired_differences(labels, first, first)
    assert all(one == {"difference": 0.0, "interval": [0.0, 0.0]} for one in same.values())
    back = paired_differences(labels, second, first)
    assert back["accuracy"]["difference"] == -paired_differences(labels, first, second)["accuracy"]["difference"]
