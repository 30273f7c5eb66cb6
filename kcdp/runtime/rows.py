"""A tag as a row: the one place that says which fields a row has, how numbers are rounded, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kcdp.labels import LABELS

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

#: The label of a picture whose strongest emotion is weaker than was asked for; its scores are kept.
UNSURE = "unsure"
#: What a row may call a picture that was tagged.
TAGGED_AS: tuple[str, ...] = (*LABELS, UNSURE)
#: Columns of a CSV file, in their order.
COLUMNS: tuple[str, ...] = ("path", "label", "confidence", *LABELS, "frames", "spread", "error", "model")
#: Digits of a model's digest that stand in a row.
DIGEST_DIGITS = 12

_DIGITS = 6


def row(tag: Tag, model: str = "") -> dict[str, Any]:
    """The fields of a row: path, label, confidence, scores, frames, spread, error; numbers rounded to 6 digits.

    Args:
        model: what is written as ``model``, the digest of the bundle or its beginning; empty: no such field.
    """
    fields = {
        "path": tag.path,
        "label": tag.label,
        "confidence": _rounded(tag.confidence),
        "scores": {label: round(score, _DIGITS) for label, score in tag.scores.items()},
        "frames": tag.frames,
        "spread": _rounded(tag.spread),
        "error": tag.error,
    }
    return {**fields, "model": model} if model else fields


def json_line(fields: Mapping[str, Any]) -> str:
    """One line of JSON without its end. Readable where it can be, and UTF-8 whatever the file's name is."""
    # a file name that is not UTF-8 holds lone surrogates; escaped, the line stays valid UTF-8
    text = f"{fields['path']}{fields['error']}"
    escape = not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)
    return json.dumps(fields, ensure_ascii=escape, allow_nan=False)


def cells(fields: Mapping[str, Any]) -> list[str]:
    """A row as the cells of ``COLUMNS``; empty where there is nothing. Without ``model`` there is one cell less."""
    scores, tagged = fields["scores"], fields["error"] is None
    numbers = [fields["confidence"], *(scores.get(label) for label in LABELS)]
    tail = [str(fields["frames"]) if tagged else "", _number(fields["spread"]), fields["error"] or ""]
    return [fields["path"], fields["label"] or "", *map(_number, numbers), *tail, *_model(fields)]


def tag_of_row(fields: Mapping[str, Any]) -> Tag:
    """The tag that ``row`` was given, with rounded numbers.

    Raises:
        KeyError, TypeError, ValueError: it is no such row.
    """
    from kcdp.runtime.tagger import Tag

    label, error, scores = fields["label"], fields["error"], fields["scores"]
    if not isinstance(fields["path"], str) or (error is None) != (label in TAGGED_AS) or not isinstance(scores, dict):
        raise ValueError("not a row of kcdp")
    return Tag(
        fields["path"], label, None if error else float(fields["confidence"]),
        {str(name): float(score) for name, score in scores.items()}, error, int(fields["frames"]),
        None if fields["spread"] is None else float(fields["spread"]),
    )  # fmt: skip


def fields_of_cells(texts: Sequence[str]) -> dict[str, Any]:
    """The fields of a CSV row, as ``row`` gives them with a model.

    Raises:
        ValueError: too few or too many cells, or one that is no number.
    """
    named = dict(zip(COLUMNS, texts, strict=True))
    scores = {label: float(named[label]) for label in LABELS if named[label]}
    return {
        "path": named["path"], "label": named["label"] or None,
        "confidence": float(named["confidence"]) if named["confidence"] else None, "scores": scores,
        "frames": int(named["frames"] or 0), "spread": float(named["spread"]) if named["spread"] else None,
        "error": named["error"] or None, "model": named["model"],
    }  # fmt: skip


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, _DIGITS)


def _number(number: float | None) -> str:
    return "" if number is None else f"{number:.{_DIGITS}f}"


def _model(fields: Mapping[str, Any]) -> list[str]:
    return [fields["model"]] if "model" in fields else []
