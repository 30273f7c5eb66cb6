"""Reliability and temperature: by hand, at the ends, and on answers that are calibrated by construction."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import log_loss

from kcdp.training.predict import softmax
from kcdp.training.reports.calibration import BINS, HIGHEST, LOWEST, calibration, fit_temperature, reliability


def rows(*confidences: float) -> np.ndarray:
    """Probabilities whose largest is the first; the others share the rest."""
    return np.array([[c, *[(1 - c) / 5] * 5] for c in confidences])


def drawn(seed: int, count: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from their own softmax: calibrated by construction."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, spread, (count, 6))
    probabilities = softmax(logits)
    labels = (probabilities.cumsum(axis=1) < generator.random((count, 1))).sum(axis=1)
    return logits, np.minimum(labels, 5)


def test_the_error_by_hand():
    """Bin 13 of 15, (0.8, 0.8667]: 0.85 right, 0.81 wrong; bin 8, (0.4667, 0.5333]: 0.5 right."""
    found = reliability(rows(0.85, 0.81, 0.5), np.array([0, 3, 0]))
    assert found["ece"] == pytest.approx(2 / 3 * abs(0.5 - 0.83) + 1 / 3 * abs(1 - 0.5))
    assert found["accuracy"] == pytest.approx(2 / 3) and found["confidence"] == pytest.approx((0.85 + 0.81 + 0.5) / 3)
    used = {i: row for i, row in enumerate(found["bins"]) if row["n"]}
    assert len(found["bins"]) == BINS == 15 and sorted(used) == [7, 12]
    assert used[12] == {"low": 12 / 15, "high": 13 / 15, "n": 2, "confidence": pytest.approx(0.83), "accuracy": 0.5}
    assert found["bins"][0]["confidence"] is None and json.dumps(found, allow_nan=False)


def test_a_bin_holds_its_upper_end():
    found = reliability(rows(0.4, 1.0), np.array([0, 0]), bins=5)
    assert [row["n"] for row in found["bins"]] == [0, 1, 0, 0, 1]


def test_the_likelihood_is_that_of_the_library():
    logits, labels = drawn(0, 200, 1.5)
    found = reliability(softmax(logits), labels)
    assert found["nll"] == pytest.approx(log_loss(labels, softmax(logits), labels=range(6)))


def test_what_is_calibrated_has_a_small_error_and_needs_no_temperature():
    logits, labels = drawn(1, 30000, 2.0)
    assert reliability(softmax(logits), labels)["ece"] < 0.01
    assert fit_temperature(logits, labels) == pytest.approx(1.0, abs=0.03)
    assert reliability(softmax(logits * 3), labels)["ece"] > 0.1  # the twin: three times too sure


@pytest.mark.parametrize("factor", [0.3, 1.7, 4.0])
def test_a_temperature_undoes_what_was_done(factor):
    logits, labels = drawn(2, 20000, 2.0)
    found = fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.03)
    report = calibration(logits * factor, labels, found)
    assert report["after"]["ece"] < 0.015 < report["before"]["ece"]
    assert (
        report["after"]["nll"] < report["before"]["nll"] and report["after"]["accuracy"] == report["before"]["accuracy"]
    )


def test_the_temperature_is_where_the_likelihood_peaks():
    logits, labels = drawn(3, 500, 2.0)
    best = fit_temperature(logits * 2, labels)
    nll = {t: reliability(softmax(logits * 2, t), labels)["nll"] for t in (best, best * 1.02, best / 1.02)}
    assert min(nll, key=nll.__getitem__) == best


def test_where_no_temperature_is_best_it_ends_at_an_end():
    logits, labels = np.eye(6) * 5, np.arange(6)
    assert fit_temperature(logits, labels) == pytest.approx(LOWEST, rel=1e-3)
    assert fit_temperature(logits, (labels + 1) % 6) == pytest.approx(HIGHEST, rel=1e-3)
    assert np.isfinite(reliability(softmax(logits * 1000), (labels + 1) % 6)["nll"])


def test_without_a_temperature_there_is_no_after():
    found = calibration(*drawn(0, 20, 1.0), None)
    assert found["after"] is None and found["temperature"] is None and found["before"]["ece"] > 0
