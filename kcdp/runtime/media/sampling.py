"""Which frames of an animation are looked at, and how much each counts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

#: Browsers show a frame that asks for 10 ms or less for 100 ms: Blink and Gecko both, in every animated format.
_SHORTEST_MS, _INSTEAD_MS = 10.0, 100.0


def as_shown(milliseconds: float) -> float:
    """How long browsers show a frame that asks for so long."""
    return milliseconds if milliseconds > _SHORTEST_MS else _INSTEAD_MS


def choose_frames(durations: Sequence[float], most: int) -> dict[int, float]:
    """The frames that stand for an animation, and the share of time that each stands for.

    Args:
        durations: of each frame, above 0, in any unit.
        most: how many frames may be chosen, from 1.

    Returns:
        index -> share, in ascending order, sum 1. Of at most ``most`` frames all, each with its exact share; of more,
        those that show in the middles of ``most`` equal parts of the playing time. A frame that shows in several
        of them counts as often.
    """
    total = float(sum(durations))
    if len(durations) <= most:
        return {index: duration / total for index, duration in enumerate(durations)}
    ends = list(accumulate(float(duration) for duration in durations))
    shares: dict[int, float] = {}
    for part in range(most):
        index = min(bisect_right(ends, (part + 0.5) / most * total), len(durations) - 1)
        shares[index] = shares.get(index, 0.0) + 1.0 / most
    return shares


@dataclass
class Gathered:
    """Frames as they are read; equal ones become one that counts for all of them."""

    _pixels: list[np.ndarray] = field(default_factory=list)
    _shares: list[float] = field(default_factory=list)
    _seen: dict[bytes, int] = field(default_factory=dict)

    def add(self, pixels: np.ndarray, share: float) -> None:
        """One frame, uint8 [S, S, 3], and the share of time it stands for."""
        place = self._seen.setdefault(pixels.tobytes(), len(self._pixels))
        if place < len(self._pixels):
            self._shares[place] += share
        else:
            self._pixels.append(pixels)
            self._shares.append(share)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """uint8 [F, S, S, 3] in the order of first showing, and float32 [F] of shares, sum 1. F is at least 1."""
        shares = np.array(self._shares, np.float64)
        return np.stack(self._pixels), (shares / shares.sum()).astype(np.float32)
