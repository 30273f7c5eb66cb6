"""Tags as text: a table for people, JSON lines and CSV for programs. Rows are written as they come."""

from __future__ import annotations

import csv
import json
import unicodedata
from abc import ABC, abstractmethod
from typing import IO, TYPE_CHECKING, Any

from kcdp.errors import KcdpError, nearest
from kcdp.labels import LABELS

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

_DIGITS = 6
_WIDEST_PATH = 72  # columns; a longer path pushes its own row to the right, nothing is cut


class TagWriter(ABC):
    """Writes tags to a text stream, flushing after each.

    Args:
        stream: opened with ``newline=""``, encoding UTF-8, ``errors="surrogateescape"`` (see ``TEXT``).
        path_width: columns of the longest path, where it is known; only the table uses it.
    """

    def __init__(self, stream: IO[str], path_width: int = 0) -> None:
        self._stream, self._path_width = stream, path_width
        self._begin()

    def write(self, tag: Tag) -> None:
        """One row."""
        self._row(tag)
        self._stream.flush()

    @abstractmethod
    def _begin(self) -> None:
        """Writes what stands above the rows."""

    @abstractmethod
    def _row(self, tag: Tag) -> None:
        """Writes one row."""


class TableWriter(TagWriter):
    """Aligned columns: path, emotion, confidence, and the reason where a picture failed."""

    def _begin(self) -> None:
        self._path_width = min(max(self._path_width, len("path")), _WIDEST_PATH)
        self._line("path", "emotion", "confidence")

    def _row(self, tag: Tag) -> None:
        if tag.error is None:
            self._line(printable(tag.path), str(tag.label), f"{tag.confidence:>10.3f}")
        else:
            reason = tag.error.removeprefix(tag.path).lstrip(": ")  # the path stands in its own column
            self._line(printable(tag.path), "-", f"{'-':>10}  {printable(reason)}")

    def _line(self, path: str, emotion: str, rest: str) -> None:
        padding = " " * max(0, self._path_width - display_width(path))
        emotions = max(map(len, (*LABELS, "emotion")))
        self._stream.write(f"{path}{padding}  {emotion:<{emotions}}  {rest}\n")


class JsonLinesWriter(TagWriter):
    """One object a line: path, label, confidence, scores, error; numbers rounded to 6 digits."""

    def _begin(self) -> None:
        pass

    def _row(self, tag: Tag) -> None:
        row = {
            "path": tag.path,
            "label": tag.label,
            "confidence": None if tag.confidence is None else round(tag.confidence, _DIGITS),
            "scores": {label: round(score, _DIGITS) for label, score in tag.scores.items()},
            "error": tag.error,
        }
        # a file name that is not UTF-8 holds lone surrogates; escaped, the line stays valid UTF-8
        text = f"{tag.path}{tag.error}"
        escape = not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)
        self._stream.write(json.dumps(row, ensure_ascii=escape, allow_nan=False) + "\n")


class CsvWriter(TagWriter):
    """Comma-separated as in RFC 4180 with a header; numbers rounded to 6 digits, empty cells where there is none."""

    def _begin(self) -> None:
        self._csv = csv.writer(self._stream)
        self._csv.writerow(["path", "label", "confidence", *LABELS, "error"])
        self._stream.flush()

    def _row(self, tag: Tag) -> None:
        numbers = [tag.confidence, *(tag.scores.get(label) for label in LABELS)]
        cells = ["" if n is None else f"{n:.{_DIGITS}f}" for n in numbers]
        self._csv.writerow([tag.path, tag.label or "", *cells, tag.error or ""])


#: name of a format -> its writer.
FORMATS: dict[str, type[TagWriter]] = {"table": TableWriter, "jsonl": JsonLinesWriter, "csv": CsvWriter}

#: How a stream for a writer is opened: any file name survives, and line ends are the writer's own.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def make_writer(name: str, stream: IO[str], path_width: int = 0) -> TagWriter:
    """The writer of a format.

    Raises:
        KcdpError: there is no such format.
    """
    if name not in FORMATS:
        raise KcdpError(f"format is {name!r}{nearest(name, FORMATS)}", f"one of {', '.join(FORMATS)}")
    return FORMATS[name](stream, path_width)


def printable(text: str) -> str:
    """The text with everything a terminal would act on (line ends, escapes) written as an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def display_width(text: str) -> int:
    """Columns a terminal gives the text: 2 for East Asian wide characters and emoji, 0 for combining marks."""
    marks = sum(unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(char) in "WF" for char in text)
