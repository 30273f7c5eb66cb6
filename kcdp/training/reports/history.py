"""What a run's log tells of its training: losses, validations, and how many pseudo-labels were right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LOG = "log.jsonl"
#: Columns that are drawn; the pseudo-labels' are there in the setting DA alone.
PSEUDO = ("pseudo_accuracy", "pseudo_accuracy_counted", "pseudo_share")
VALIDATED = ("balanced_accuracy", "accuracy", "macro_f1")


def read_history(run: Path) -> dict[str, dict[str, list[float]]] | None:
    """The log of a run as curves.

    Args:
        run: the run's folder.

    Returns:
        by name ("loss", "validation balanced_accuracy", "pseudo_accuracy", ...): ``step`` and ``value``, of equal
        length. Rows that are no whole JSON, as an interrupted one, are passed over. None without a log.
    """
    try:
        lines = (run / LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    curves: dict[str, dict[str, list[float]]] = {}

    def add(name: str, step: Any, value: Any) -> None:
        numbers = [x for x in (step, value) if isinstance(x, (int, float)) and not isinstance(x, bool)]
        if len(numbers) == 2 and np.isfinite(numbers).all():
            curve = curves.setdefault(name, {"step": [], "value": []})
            curve["step"].append(step)
            curve["value"].append(value)

    for line in lines:
        try:
            row = json.loads(line)
            validation = row.get("validation") or {}
            for name in ("loss", *PSEUDO):
                add(name, row.get("step"), row.get(name))
            for name in VALIDATED:
                add(f"validation {name}", row.get("step"), validation.get(name))
        except (ValueError, AttributeError):
            continue
    return curves or None


def smoothed(values: list[float], width: int) -> np.ndarray:
    """The mean of each value and its neighbours, ``width`` of them in all; fewer at the ends.

    Returns:
        float64, as many as there are values.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    low, high = np.maximum(places - width // 2, 0), np.minimum(places + width // 2 + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def pseudo_summary(curves: dict[str, dict[str, list[float]]] | None) -> dict[str, Any] | None:
    """How good pseudo-labels were at the beginning, in the middle and at the end of training.

    Returns:
        by column of ``PSEUDO`` that the log has: the means over the first, middle and last third of its rows, the
        numbers of rows behind them, and the steps of the first and last row. None where there were none.
    """
    found = {}
    for name in PSEUDO:
        if curves is None or name not in curves:
            continue
        steps, values = curves[name]["step"], curves[name]["value"]
        thirds = [part for part in np.array_split(np.array(values, np.float64), 3) if len(part)]
        found[name] = {
            "first_step": steps[0],
            "last_step": steps[-1],
            "rows": len(values),
            "thirds": [float(part.mean()) for part in thirds],
        }
    return found or None
