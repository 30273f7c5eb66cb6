"""Rows on disk that outlive an interrupt: written to ``FILE.partial`` as they come, renamed when all are there.

A run that is taken up again reads what is there, repairs a torn last line and skips the pictures that have a row.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kcdp.errors import KcdpError
from kcdp.files import make_folder
from kcdp.runtime.output import TEXT, make_writer
from kcdp.runtime.rows import COLUMNS, DIGEST_DIGITS, fields_of_cells, tag_of_row

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

#: Formats whose rows can be read back.
READABLE: tuple[str, ...] = ("jsonl", "csv")


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


def partial(path: str | Path) -> Path:
    """Where the rows of ``path`` are until all are there."""
    return Path(f"{_followed(path)}.partial")


def check_start(path: str, *, resume: bool, append: bool) -> None:
    """Refuses to begin where rows of an earlier run would be lost.

    Raises:
        KcdpError: there are such rows, and ``resume`` does not say that they are to be continued.
    """
    begun = Path(path) if append else partial(path)
    if resume or not begun.exists() or (append and not begun.stat().st_size):
        return
    if append:
        raise KcdpError(f"{begun} is there already", fix="add --resume to go on with its rows, or choose another --out")
    raise KcdpError(
        f"{begun} is left from a run that did not end", fix=f"add --resume to go on with it, or delete {begun}"
    )


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


class RowsFile:
    """A file of rows, open for more of them.

    As a context manager: where the block ends well ``path`` is there, whole; where it does not, the rows that were
    written stay in ``FILE.partial`` and a line on standard error says so (no rows: no file).

    Args:
        path: of the file; its folder is made.
        form: one of ``READABLE``.
        model: digest of the bundle; every row holds its beginning.
        resume: go on with ``FILE.partial``, or else with ``path``; neither has to be there.
        append: write to ``path`` itself, line by line: for runs without an end.
        keep: keep the earlier tags, see ``Earlier.tags``.

    Raises:
        KcdpError: see ``check_start`` and ``read_earlier``; or the file cannot be written.
    """

    def __init__(
        self, path: str, form: str, model: str, *, resume: bool = False, append: bool = False, keep: bool = False
    ) -> None:
        check_start(path, resume=resume, append=append)
        self._path, self._append = _followed(path), append
        self._working = self._path if append else partial(path)
        source = self._working if append or self._working.exists() else self._path
        self.earlier = Earlier()
        if resume and source.exists():
            self.earlier = read_earlier(source, form, model, keep=keep)
        make_folder(self._path.parent)
        try:
            if resume and source != self._working and self.earlier.end:
                shutil.copyfile(source, self._working)
            self._stream: IO[str] = self._working.open("r+" if self.earlier.end else "w", **TEXT)
            self._stream.truncate(self.earlier.end)
            self._stream.seek(0, os.SEEK_END)
            start = self.earlier.end
            self._writer = make_writer(form, self._stream, model=model[:DIGEST_DIGITS], begun=bool(start))
        except OSError as error:
            raise self._failure(error) from error
        self.rows = self.earlier.tagged + self.earlier.failed

    def write(self, tag: Tag) -> None:
        """One row, which is in the file when this returns."""
        try:
            self._writer.write(tag)
        except OSError as error:
            raise self._failure(error) from error
        self.rows += 1

    def __enter__(self) -> RowsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is None:
            try:
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
                if not self._append:
                    self._working.replace(self._path)
            except OSError as error:
                raise self._failure(error) from error
            return
        with suppress(OSError):  # a full disk: what could be written is there
            self._stream.close()
        if self.rows:
            next_step = "the same command with --resume"
            print(f"kcdp: {self.rows} rows are in {self._working}; next: {next_step}", file=sys.stderr)
        elif not self._append:
            self._working.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> KcdpError:
        return KcdpError(
            f"writing {self._working} failed ({error.strerror or error})", fix="free some space or choose another place"
        )


def _check_beginning(file: Path, form: str) -> None:
    """What holds no whole row is going to be replaced: it must be the torn beginning of ours, or nothing."""
    begins = b'{"path": ' if form == "jsonl" else ",".join(COLUMNS).encode()
    with file.open("rb") as stream:
        head = stream.read(len(begins))
    if not begins.startswith(head):
        raise KcdpError(f"{file} begins with {head[:20]!r}", f"rows of kcdp tag as {form}", "choose another --out")


def _followed(path: str | Path) -> Path:
    """The path as it was given; of a symbolic link, where it leads."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


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
