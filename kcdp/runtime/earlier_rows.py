"""Rows that an earlier run has written, read back: which pictures they are of, and where the last whole one ends."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kcdp.errors import KcdpError
from kcdp.runtime.output import TEXT
from kcdp.runtime.rows import COLUMNS, DIGEST_DIGITS, fields_of_cells, tag_of_row

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag


@dataclass
class Earlier:
    """What a file holds already.

    Attributes:
        paths: how many rows each path has.
        tagged, failed: how many rows there are without and with an error.
        end: bytes of the header and the whole rows; what follows is a torn line.
        tags: the rows of each path in their order, where they were asked for.
    """

    paths: Counter[str] = field(default_factory=Counter)
    tagged: int = 0
    failed: int = 0
    end: int = 0
    tags: dict[str, list[Tag]] = field(default_factory=dict)

    def take(self, path: str) -> tuple[bool, Tag | None]:
        """Whether a row of this path is left, which counts as used then; and its tag, where tags are kept."""
        if not self.paths[path]:
            return False, None
        self.paths[path] -= 1
        return True, self.tags[path].pop(0) if path in self.tags else None


def read_earlier(file: Path, form: str, model: str, *, keep: bool = False) -> Earlier:
    """Reads the rows of a file that this command has written.

    Args:
        model: digest of the bundle that goes on with them.
        keep: keep the tags, not only their paths.

    Raises:
        KcdpError: another header, a line in the middle that is no row, or rows of another model.
    """
    earlier, torn = Earlier(), 0
    for number, (end, fields) in enumerate(_json_rows(file) if form == "jsonl" else _csv_rows(file), 1):
        if torn:
            raise KcdpError(
                f"line {torn} of {file} is not a row of kcdp tag", "a file that an earlier run has written",
                "choose another --out, or mend the line",
            )  # fmt: skip
        try:
            tag = None if fields is None else tag_of_row(fields)
        except (KeyError, TypeError, ValueError):
            tag = None
        if tag is None or fields is None:
            torn = number
            continue
        if fields.get("model") != model[:DIGEST_DIGITS]:
            raise KcdpError(
                f"{file} holds rows of the model {fields.get('model')}", f"rows of {model[:DIGEST_DIGITS]}, of --model",
                f"choose another --out, or delete {file}, or give the model that wrote it",
            )  # fmt: skip
        earlier.end = end
        earlier.paths[tag.path] += 1
        earlier.tagged += tag.error is None
        earlier.failed += tag.error is not None
        if keep:
            earlier.tags.setdefault(tag.path, []).append(tag)
    if not earlier.end:
        _check_beginning(file, form)
    return earlier


def _check_beginning(file: Path, form: str) -> None:
    """What holds no whole row is going to be replaced: it must be the torn beginning of ours, or nothing."""
    begins = b'{"path": ' if form == "jsonl" else ",".join(COLUMNS).encode()
    with file.open("rb") as stream:
        head = stream.read(len(begins))
    if not begins.startswith(head):
        raise KcdpError(f"{file} begins with {head[:20]!r}", f"rows of kcdp tag as {form}", "choose another --out")


def _json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """For each line: where it ends, and its object; None where it is none, or has no end."""
    end = 0
    with file.open("rb") as stream:
        for line in stream:
            end += len(line)
            try:
                fields = json.loads(line) if line.endswith(b"\n") else None
            except (ValueError, RecursionError):
                fields = None
            yield end, fields if isinstance(fields, dict) else None


def _csv_rows(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """The same of CSV, without the header. A torn header counts as no row.

    Raises:
        KcdpError: a header, but another.
    """
    with file.open("rb") as stream:
        lines = _Lines(stream)
        records = csv.reader(lines)
        while True:
            begin = lines.end
            try:
                texts = next(records)
            except StopIteration:
                return
            except csv.Error:
                texts = []
            if begin == 0:
                if lines.last.endswith("\n") and tuple(texts) != COLUMNS:
                    raise KcdpError(
                        f"{file} begins with {','.join(texts)[:80]!r}", f"the header {','.join(COLUMNS)}",
                        "choose another --out",
                    )  # fmt: skip
                continue
            try:
                yield lines.end, fields_of_cells(texts) if lines.last.endswith("\n") else None
            except ValueError:
                yield lines.end, None


class _Lines:
    """Decoded lines of a binary stream; ``end`` and ``last`` tell how far the reader has come."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.end, self.last = stream, 0, ""

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        self.end += len(line)
        self.last = line.decode(TEXT["encoding"], TEXT["errors"])
        return self.last
