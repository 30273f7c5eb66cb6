"""Thresholds of confidence: by hand, against the library, and never judged on the pictures that chose them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from kcdp.training.reports.abstention import abstention, best_threshold, choosing_half, risk_coverage


def rows(confidences: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """float [N, 6], the answer's probability the largest."""
    found = np.repeat((1 - np.asarray(confidences))[:, None] / 5, 6, axis=1)
    found[np.arange(len(found)), answers] = confidences
    return found


def keys(prefix: str, count: int) -> list[str]:
    return [f"{prefix}/{i}.png" for i in range(count)]


def test_a_threshold_by_hand():
    assert best_threshold(np.array([0.9, 0.8, 0.4]), np.array([0.3, 0.5, 0.6])) == pytest.approx(0.7)
    assert best_threshold(np.array([0.9, 0.8]), np.array([0.3])) == pytest.approx(0.55)
    assert best_threshold(np.array([0.3]), np.array([0.8, 0.9])) == 0.0  # turned round: better to keep everything


def test_the_halves_depend_on_keys_and_seed_alone():
    names = keys("a", 41)
    chosen = choosing_half(names, 0)
    assert chosen.sum() == 20
    order = np.random.default_rng(0).permutation(41)
    np.testing.assert_array_equal(choosing_half([names[i] for i in order], 0), chosen[order])
    assert (choosing_half(names, 1) != chosen).any()
    assert choosing_half(["\udcff", "b"], 0).sum() == 1


def test_what_chose_the_threshold_is_not_measured_on():
    """Noise in the measuring half changes the figures, not the threshold; in the choosing half the other way round."""
    generator = np.random.default_rng(0)
    confidence, neutral = generator.uniform(0.3, 1, 60), generator.uniform(0.2, 0.8, 40)
    labels = generator.integers(0, 6, 60)
    names, neutral_names = keys("e", 60), keys("n", 40)

    def measured(confidence: np.ndarray, neutral: np.ndarray) -> dict:
        found = abstention(rows(confidence, labels), labels, names, rows(neutral, np.zeros(40, int)), neutral_names)
        assert found is not None
        return found

    plain = measured(confidence, neutral)
    assert plain["chosen_on"] == {"emotional": 30, "neutral": 20} == plain["measured_on"]
    half = choosing_half(names, 0)
    other = measured(np.where(half, confidence, confidence * 0.6 + 0.2), neutral)
    assert other["threshold"] == plain["threshold"] and other["auroc"] != plain["auroc"]
    other = measured(np.where(half, confidence * 0.5 + 0.17, confidence), neutral)
    assert other["threshold"] != plain["threshold"] and other["auroc"] == plain["auroc"]


def test_the_figures_are_those_of_the_measuring_half():
    generator = np.random.default_rng(1)
    confidence, neutral = generator.uniform(0.3, 1, 80), generator.uniform(0.2, 0.9, 50)
    labels = generator.integers(0, 6, 80)
    answers = np.where(generator.random(80) < confidence, labels, (labels + 1) % 6)
    names, neutral_names = keys("e", 80), keys("n", 50)
    found = abstention(
        rows(confidence, answers), labels, names, rows(neutral, np.zeros(50, int)), neutral_names, seed=3
    )
    assert found is not None
    mine, theirs = ~choosing_half(names, 3), ~choosing_half(neutral_names, 3)
    truth = [1] * mine.sum() + [0] * theirs.sum()
    assert found["auroc"] == pytest.approx(roc_auc_score(truth, np.concatenate([confidence[mine], neutral[theirs]])))
    kept = confidence[mine] >= found["threshold"]
    assert found["emotional_kept"] == pytest.approx(kept.mean())
    assert found["neutral_rejected"] == pytest.approx((neutral[theirs] < found["threshold"]).mean())
    right = (answers == labels)[mine]
    assert found["accuracy_all"] == pytest.approx(right.mean()) and found["accuracy_kept"] == pytest.approx(
        right[kept].mean()
    )
    assert json.dumps(found, allow_nan=False)


def test_separable_confidences_are_separated():
    found = abstention(
        rows(np.full(20, 0.9), np.zeros(20, int)), np.zeros(20, int), keys("e", 20),
        rows(np.full(20, 0.4), np.zeros(20, int)), keys("n", 20),
    )  # fmt: skip
    assert found is not None and found["threshold"] == pytest.approx(0.65)
    assert found["auroc"] == found["neutral_rejected"] == found["emotional_kept"] == found["accuracy_kept"] == 1.0


def test_too_few_pictures_choose_nothing():
    few, many = rows(np.full(3, 0.5), np.zeros(3, int)), rows(np.full(9, 0.5), np.zeros(9, int))
    assert abstention(few, np.zeros(3, int), keys("e", 3), many, keys("n", 9)) is None
    assert abstention(many, np.zeros(9, int), keys("e", 9), few, keys("n", 3)) is None


def test_risk_and_coverage_by_hand():
    """From the surest: right, wrong, right, right; neutral pictures at 0.85 and 0.1."""
    confidence, right = np.array([0.7, 0.9, 0.8, 0.6]), np.array([True, True, False, True])
    found = risk_coverage(confidence, right, np.array([0.85, 0.1]))
    assert found["coverage"] == [1.0, 0.75, 0.5, 0.25] and found["threshold"] == [0.6, 0.7, 0.8, 0.9]
    assert found["risk"] == pytest.approx([1 / 4, 1 / 3, 1 / 2, 0])
    assert found["risk_with_neutral"] == pytest.approx([2 / 5, 2 / 4, 2 / 3, 0])


def test_pictures_of_equal_confidence_are_answered_together():
    found = risk_coverage(np.full(4, 0.5), np.array([True, False, True, True]), np.array([0.5]))
    assert set(found["coverage"]) == {1.0} and found["risk"] == pytest.approx([0.25] * 4)
    assert found["risk_with_neutral"] == pytest.approx([2 / 5] * 4)
    many = risk_coverage(np.linspace(0.2, 1, 5000), np.ones(5000, bool), np.zeros(1))
    assert len(many["coverage"]) == 101 and many["coverage"][0] == 1.0
