"""The mistakes that the model was surest of, as rows and as a sheet of pictures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.cards import Card, Layout, draw_sheet, fitted
from kcdp.files import atomic_file
from kcdp.labels import LABELS
from kcdp.preprocess import to_rgb
from kcdp.training.reports.measurement import Answers

#: Cards of a sheet at most, cards a row, and the side of a picture in pixels.
MOST, COLUMNS, TILE = 32, 8, 104


def confident_mistakes(answers: Answers, most: int = MOST) -> list[dict[str, Any]]:
    """The wrong answers of the largest confidence, the surest first.

    Returns:
        rows of ``index`` in the dataset, ``key``, ``true``, ``predicted`` and ``confidence``.
    """
    predicted, confidence = answers.predicted, answers.predictions.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != answers.data.labels)
    surest = wrong[np.argsort(-confidence[wrong], kind="stable")][:most]
    return [
        {
            "index": int(i),
            "key": answers.data.samples[i].key,
            "true": LABELS[answers.data.labels[i]],
            "predicted": LABELS[predicted[i]],
            "confidence": float(confidence[i]),
        }
        for i in surest
    ]


def write_mistakes(path: Path, answers: Answers, rows: list[dict[str, Any]]) -> None:
    """A sheet of cards: the picture on white, what was predicted and how surely, what is true, and the key.

    The pictures are read again, one at a time.

    Args:
        path: of the PNG.
        rows: of ``confident_mistakes``; at least one.
    """
    wrong = int((answers.predicted != answers.data.labels).sum())
    title = f"{wrong} of {len(answers.data)} wrong; the {len(rows)} surest: predicted, with confidence; truth; picture"
    layout = Layout(TILE, min(COLUMNS, max(4, len(rows))), notes=True)
    legend = {name: sum(row["predicted"] == name for row in rows) for name in LABELS}
    found = {name: count for name, count in legend.items() if count}
    sheet = draw_sheet(_cards(answers, rows), len(rows), layout, title, found)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _cards(answers: Answers, rows: list[dict[str, Any]]) -> Iterator[Card]:
    for row in rows:
        yield Card(
            fitted(to_rgb(answers.data.image(row["index"])), TILE),
            bar=row["predicted"],
            share=f"{100 * row['confidence']:.0f} %",
            caption=f"truth: {row['true']}",
            note=row["key"],
        )
