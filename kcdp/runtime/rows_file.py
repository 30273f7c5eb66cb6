"""Rows on disk that outlive an interrupt: written to ``FILE.partial`` as they come, renamed when all are there.

A run that is taken up again reads what is there, repairs a torn last line and skips the pictures that have a row.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kcdp.errors import KcdpError
from kcdp.files import make_folder
from kcdp.runtime.earlier_rows import Earlier, read_earlier
from kcdp.runtime.locking import is_taken, take
from kcdp.runtime.output import TEXT, make_writer
from kcdp.runtime.rows import DIGEST_DIGITS

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

#: Formats whose rows can be read back.
READABLE: tuple[str, ...] = ("jsonl", "csv")


def partial(path: str | Path) -> Path:
    """Where the rows of ``path`` are until all are there."""
    return Path(f"{_followed(path)}.partial")


def check_start(path: str, *, resume: bool, append: bool) -> None:
    """Refuses to begin where rows of an earlier run would be lost.

    Raises:
        KcdpError: there are such rows, and ``resume`` does not say that they are to be continued; or another run is
            writing them.
    """
    begun = Path(path) if append else partial(path)
    if is_taken(begun):
        raise _taken(begun)
    if resume or not begun.exists() or (append and not begun.stat().st_size):
        return
    if append:
        raise KcdpError(f"{begun} is there already", fix="add --resume to go on with its rows, or choose another --out")
    raise KcdpError(
        f"{begun} is left from a run that did not end", fix=f"add --resume to go on with it, or delete {begun}"
    )


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
            descriptor = os.open(self._working, os.O_RDWR | os.O_CREAT, 0o666)
            self._stream: IO[str] = os.fdopen(descriptor, "r+", **TEXT)
            if not take(descriptor):
                self._stream.close()
                raise _taken(self._working)
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
            print(f"kcdp: rows in {self._working}: {self.rows}; next: {next_step}", file=sys.stderr)
        elif not self._append:
            self._working.unlink(missing_ok=True)

    def _failure(self, error: OSError) -> KcdpError:
        return KcdpError(
            f"writing {self._working} failed ({error.strerror or error})", fix="free some space or choose another place"
        )


def _taken(path: Path) -> KcdpError:
    return KcdpError(f"{path} is being written by another run", fix="wait until it has ended, or choose another --out")


def _followed(path: str | Path) -> Path:
    """The path as it was given; of a symbolic link, where it leads."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)
