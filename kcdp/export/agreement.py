"""How near two sets of outputs are, in the numbers of the tolerance table; and which pictures get another answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kcdp.graph import Tolerance
from kcdp.labels import LABELS

#: Two classes whose probabilities are no further apart, 0..1, are nearly tied. It is for reading: a changed answer
#: counts as changed either way.
NEAR_TIE = 0.02


@dataclass(frozen=True)
class Closeness:
    """Of one output, float64 [N] each, a number for every picture.

    Attributes:
        cosine: between got and wanted; 1 where both are all zeros.
        length: norm of what was got over the norm of what was wanted.
        max_abs: largest difference of any number.
        finite: all numbers are, on both sides (bool).
    """

    cosine: np.ndarray
    length: np.ndarray
    max_abs: np.ndarray
    finite: np.ndarray

    def row(self) -> dict[str, Any]:
        """The worst picture's numbers, JSON; None where they are not finite."""
        if not self.finite.all():
            return {"cosine": None, "length": None, "max_abs": None}
        off = float(np.abs(self.length - 1).max())
        return {"cosine": float(self.cosine.min()), "length": off, "max_abs": float(self.max_abs.max())}

    def failures(self, name: str, least: float) -> list[str]:
        """Against a least cosine and the difference in length that goes with it."""
        if not self.finite.all():
            return [f"{name} of {int((~self.finite).sum())} pictures are not finite"]
        found, allowed = [], float(np.sqrt(2 * (1 - least)))
        if self.cosine.min() < least:
            found.append(f"{name} has cosine {self.cosine.min():.6f}, needed {least}")
        off = np.abs(self.length - 1).max()
        if off > allowed:
            found.append(f"{name} is longer or shorter by {off:.2%}, allowed {allowed:.2%}")
        return found


def closeness(want: np.ndarray, got: np.ndarray) -> Closeness:
    """Of two arrays [N, ...] of one shape."""
    a, b = (x.reshape(len(x), -1).astype(np.float64) for x in (want, got))
    finite = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        lengths = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
        both = (lengths[0] == 0) & (lengths[1] == 0)
        cosine = (a * b).sum(axis=1) / (lengths[0] * lengths[1])
        ratio = lengths[1] / lengths[0]
        difference = np.abs(a - b).max(axis=1)
    one = (lengths[0] == 0) ^ (lengths[1] == 0)
    cosine = np.where(both, 1.0, np.where(one, 0.0, cosine))
    return Closeness(cosine, np.where(both, 1.0, ratio), difference, np.asarray(finite))


def joined(parts: Sequence[Closeness]) -> Closeness:
    """Of batches, one after the other."""
    names = ("cosine", "length", "max_abs", "finite")
    return Closeness(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature), float64 [N, 6]."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def error_of(want: np.ndarray, got: np.ndarray) -> float:
    """Root mean square of the differences over that of what was wanted."""
    difference = got.astype(np.float64) - want
    size = float(np.sqrt((want.astype(np.float64) ** 2).mean()))
    return float(np.sqrt((difference**2).mean())) / max(size, np.finfo(np.float32).tiny)


def near_ties(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Pictures whose two most probable classes are within ``NEAR_TIE``, bool [N]."""
    best = np.sort(probabilities(logits, temperature), axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0] <= NEAR_TIE)


def compare_logits(
    want: np.ndarray, got: np.ndarray, tolerance: Tolerance, temperature: float
) -> tuple[dict[str, Any], list[str]]:
    """Numbers and failures of logits, probabilities and decisions.

    Args:
        want, got: [N, 6].
        temperature: of the probabilities.
    """
    nothing: dict[str, Any] = {"logits": None, "probabilities": None, "decisions": None}
    broken = ~np.isfinite(got).all(axis=1) | ~np.isfinite(want).all(axis=1)
    if broken.any():
        return nothing, [f"{int(broken.sum())} pictures have logits that are not finite"]
    failures: list[str] = []
    difference = np.abs(got.astype(np.float64) - want)
    if tolerance.atol is not None and tolerance.rtol is not None:
        over = int((difference > tolerance.atol + tolerance.rtol * np.abs(want)).any(axis=1).sum())
        if over:
            failures.append(f"logits of {over} pictures differ by up to {difference.max():.2e}, "
                            f"allowed {tolerance.atol:.0e} + {tolerance.rtol:.0e} x value")  # fmt: skip
    error = error_of(want, got)
    if error > tolerance.logits_error:
        failures.append(f"logits are off by {error:.2%} of their size, allowed {tolerance.logits_error:.2%}")
    moved = np.abs(probabilities(got, temperature) - probabilities(want, temperature)).max(axis=1)
    if moved.mean() > tolerance.probability:
        failures.append(f"probabilities move by {moved.mean():.2e} in the mean, allowed {tolerance.probability:.0e}")
    changed = got.argmax(axis=1) != want.argmax(axis=1)
    agree, near = float((~changed).mean()), near_ties(want, temperature)
    if agree < tolerance.decisions:
        failures.append(f"{agree:.2%} of decisions agree, needed {tolerance.decisions:.2%}; of {int(changed.sum())} "
                        f"changed ones {int((changed & near).sum())} are near ties")  # fmt: skip
    return {
        "logits": {"max_abs": float(difference.max()), "mean_abs": float(difference.mean()), "error": error},
        "probabilities": {"max_abs": float(moved.max()), "mean": float(moved.mean())},
        "decisions": {"agree": agree, "changed": int(changed.sum()), "changed_near_ties": int((changed & near).sum())},
    }, failures  # fmt: skip


@dataclass(frozen=True)
class Flip:
    """A picture that gets another answer.

    Attributes:
        place: among the check pictures.
        key: its name.
        before, after: emotions.
        confidence_before, confidence_after: their probabilities, 0..1.
        margin: how far the trained model's probability of its answer is above that of the other.
        near_tie: no further than ``NEAR_TIE``.
        label: the right emotion, where it is known.
    """

    place: int
    key: str
    before: str
    after: str
    confidence_before: float
    confidence_after: float
    margin: float
    near_tie: bool
    label: str | None = None


def flips(
    want: np.ndarray, got: np.ndarray, temperature: float, keys: Sequence[str], labels: np.ndarray
) -> tuple[Flip, ...]:
    """All of them, the most decided first. Logits that are not finite have no answer."""
    usable = np.isfinite(got).all(axis=1) & np.isfinite(want).all(axis=1)
    places = [int(i) for i in np.flatnonzero(usable & (got.argmax(axis=1) != want.argmax(axis=1)))]
    if not places:
        return ()
    before, after = probabilities(want[places], temperature), probabilities(got[places], temperature)
    found = []
    for row, place in enumerate(places):
        a, b = int(want[place].argmax()), int(got[place].argmax())
        margin = float(before[row, a] - before[row, b])
        label = int(labels[place])
        found.append(Flip(
            place, keys[place], LABELS[a], LABELS[b], float(before[row, a]), float(after[row, b]), margin,
            margin <= NEAR_TIE, LABELS[label] if label >= 0 else None,
        ))  # fmt: skip
    return tuple(sorted(found, key=lambda flip: -flip.margin))
