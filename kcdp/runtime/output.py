"""Tags as text: a table for people, JSON lines and CSV for programs. Rows are written as they come."""

from __future__ import annotations

import csv
import sys
import unicodedata
from abc import ABC, abstractmethod
from typing import IO, TYPE_CHECKING, Any

from kcdp.errors import KcdpError, nearest
from kcdp.labels import LABELS
from kcdp.runtime.rows import COLUMNS, cells, json_line, row

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

_WIDEST_PATH = 72  # columns; a longer path pushes its own row to the right, nothing is cut


class TagWriter(ABC):
    """Writes tags to a text stream, flushing after each.

    Args:
        stream: opened with ``newline=""``, encoding UTF-8, ``errors="surrogateescape"`` (see ``TEXT``).
        path_width: columns of the longest path, where it is known; only the table uses it.
        model: stands in every row as ``model``; empty: there is no such field. The table has none.
        begun: the stream holds rows already, nothing is written above them.
    """

    def __init__(self, stream: IO[str], path_width: int = 0, *, model: str = "", begun: bool = False) -> None:
        self._stream, self._path_width, self._model = stream, path_width, model
        if not begun:
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
    """Aligned columns: path, emotion, confidence; the reason where a picture failed, an animation's frames."""

    def __init__(self, stream: IO[str], path_width: int = 0, *, model: str = "", begun: bool = False) -> None:
        super().__init__(stream, min(max(path_width, len("path")), _WIDEST_PATH), model=model, begun=begun)

    def _begin(self) -> None:
        self._line("path", "emotion", "confidence")

    def _row(self, tag: Tag) -> None:
        if tag.error is None:
            moves = f"  {tag.frames} frames, spread {tag.spread or 0:.2f}" if tag.frames > 1 else ""
            self._line(printable(tag.path), str(tag.label), f"{tag.confidence:>10.3f}{moves}")
        else:
            reason = tag.error.removeprefix(tag.path).lstrip(": ")  # the path stands in its own column
            self._line(printable(tag.path), "-", f"{'-':>10}  {printable(reason)}")

    def _line(self, path: str, emotion: str, rest: str) -> None:
        padding = " " * max(0, self._path_width - display_width(path))
        emotions = max(map(len, (*LABELS, "emotion")))
        self._stream.write(f"{path}{padding}  {emotion:<{emotions}}  {rest}\n")


class JsonLinesWriter(TagWriter):
    """One object a line, with the fields of ``kcdp.runtime.rows.row``."""

    def _begin(self) -> None:
        pass

    def _row(self, tag: Tag) -> None:
        self._stream.write(json_line(row(tag, self._model)) + "\n")


class CsvWriter(TagWriter):
    """Comma-separated as in RFC 4180 with a header; numbers with 6 digits, empty cells where there is nothing."""

    def _begin(self) -> None:
        csv.writer(self._stream).writerow(COLUMNS if self._model else COLUMNS[:-1])
        self._stream.flush()

    def _row(self, tag: Tag) -> None:
        csv.writer(self._stream).writerow(cells(row(tag, self._model)))


#: name of a format -> its writer.
FORMATS: dict[str, type[TagWriter]] = {"table": TableWriter, "jsonl": JsonLinesWriter, "csv": CsvWriter}

#: How a stream for a writer is opened: any file name survives, and line ends are the writer's own.
TEXT: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def make_writer(name: str, stream: IO[str], path_width: int = 0, *, model: str = "", begun: bool = False) -> TagWriter:
    """The writer of a format; see ``TagWriter``.

    Raises:
        KcdpError: there is no such format.
    """
    if name not in FORMATS:
        raise KcdpError(f"format is {name!r}{nearest(name, FORMATS)}", f"one of {', '.join(FORMATS)}")
    return FORMATS[name](stream, path_width, model=model, begun=begun)


def printable(text: str) -> str:
    """The text with everything a terminal would act on (line ends, escapes) written as an escape."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def display_width(text: str) -> int:
    """Columns a terminal gives the text: 2 for East Asian wide characters and emoji, 0 for combining marks."""
    marks = sum(unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(char) in "WF" for char in text)


def standard_output() -> IO[str]:
    """sys.stdout, made to carry any file name."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # a terminal keeps its own encoding; programs that read a pipe or a file get UTF-8
        reconfigure(**({"errors": "backslashreplace"} if sys.stdout.isatty() else TEXT))
    return sys.stdout
