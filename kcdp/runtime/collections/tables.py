"""Pictures in Parquet files: bytes in a column, or structs of {bytes, path} as Hugging Face has them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

from kcdp.errors import KcdpError, nearest, require
from kcdp.files import sha256_json
from kcdp.runtime.collections.units import pack
from kcdp.runtime.items import Item

#: Endings of Parquet files, without regard to case.
EXTENSIONS = (".parquet", ".pq")
#: Names of columns that are tried first.
_USUAL = ("image", "bytes")
_WORK = "work"


@dataclass(frozen=True)
class Columns:
    """Names of columns.

    Attributes:
        picture: bytes, or structs of bytes and path; None: "image" or "bytes", or the only one that can be meant.
        name: what rows are called; None: the struct's path, else ``FILE#NUMBER``, counted in its file from 0.
        caption: what is said about a picture, for bundles that take captions; None: nothing.
    """

    picture: str | None = None
    name: str | None = None
    caption: str | None = None


_DEFAULT = Columns()


@dataclass(frozen=True)
class _Group:
    """A row group: the numbers of its first row in all and in its file, and how many it has; ``place``: absolute."""

    file: str
    place: str
    number: int
    first: int
    first_in_file: int
    rows: int


def find_tables(paths: Sequence[str], *, recursive: bool = False) -> list[str]:
    """Parquet files in the order of the paths, those of a folder sorted by name; hidden ones are left out."""
    found: list[str] = []
    for path in paths:
        if not os.path.isdir(path):
            found.append(path)
            continue
        found += [name for name in _listing(path, recursive) if name.lower().endswith(EXTENSIONS)]
    return found


class Tables:
    """Rows of Parquet files, in order.

    Args:
        files: paths, which every machine of a cluster has to have.
        columns: which of them are read.

    Attributes:
        count: rows of all files.
        columns: those that were found.
        width: 0: names are not known before they are read.

    Raises:
        KcdpError: a file cannot be read or is no Parquet; a column is not there or holds something else.
    """

    width = 0

    def __init__(self, files: Sequence[str], columns: Columns = _DEFAULT) -> None:
        parquet = require("pyarrow.parquet", "ray")
        self._groups: list[_Group] = []
        self._files: list[tuple[str, int, int]] = []
        self.count = 0
        for file in files:
            with _readable(file):
                metadata = parquet.read_metadata(file)
                schema = metadata.schema.to_arrow_schema()
                self._files.append((file, metadata.num_rows, os.path.getsize(file)))
            columns = _checked(schema, columns, file)
            before = self.count
            for group in range(metadata.num_row_groups):
                rows = metadata.row_group(group).num_rows
                self._groups.append(_Group(file, os.path.abspath(file), group, self.count, self.count - before, rows))
                self.count += rows
        self.columns = columns

    @property
    def paths(self) -> list[str]:
        """The files."""
        return [file for file, _, _ in self._files]

    @property
    def read(self) -> Callable[[Any], Iterator[Any]]:
        """What makes tables of units of those that ``blocks`` gives."""
        return _read

    def blocks(self, start: int, batch: int, workers: int) -> Iterator[Any]:
        """One table for each row group that has rows from ``start`` on: what ``read`` takes.

        The first unit begins with the multiple of ``batch`` in its group before or at ``start``.
        """
        arrow = require("pyarrow", "ray")
        for group in self._groups:
            if group.first + group.rows > start:
                skipped = max(0, start - group.first) // batch * batch
                work = pickle.dumps((group, self.columns, skipped, batch))
                yield arrow.table({_WORK: arrow.array([work], arrow.large_binary())})

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the files' names, rows and sizes, and of the columns."""
        return sha256_json([self._files, [self.columns.picture, self.columns.name, self.columns.caption]])


def _read(table: Any) -> Iterator[Any]:
    """Tables of units, of the row groups that a table of ``blocks`` names; runs anywhere in the cluster.

    What a group cannot be read for ends the run: a unit with the error.
    """
    for work in table[_WORK]:
        group, columns, skipped, batch = pickle.loads(work.as_buffer())
        first, items = group.first + skipped, islice(_items(group, columns, batch), skipped, None)
        try:
            while unit := list(islice(items, batch)):
                yield pack([(first, unit)])
                first += len(unit)
        except KcdpError as error:
            yield pack([(first, error)])


def _items(group: _Group, columns: Columns, batch: int) -> Iterator[Item]:
    parquet = require("pyarrow.parquet", "ray")
    names = [name for name in (columns.picture, columns.name, columns.caption) if name is not None]
    number = group.first_in_file
    with _readable(group.file), parquet.ParquetFile(group.place) as opened:
        for rows in opened.iter_batches(batch, row_groups=[group.number], columns=names):
            texts = [_texts(rows, column) for column in (columns.name, columns.caption)]
            for picture, name, caption in zip(rows[columns.picture], *texts, strict=True):
                yield _item(picture.as_py(), name, caption, f"{group.file}#{number}")
                number += 1
    if number != group.first_in_file + group.rows:
        raise KcdpError(f"{group.file} has changed since the run began", "a file that stays as it is")


def _item(picture: Any, name: str | None, caption: str | None, place: str) -> Item:
    data, path = (picture.get("bytes"), picture.get("path")) if isinstance(picture, dict) else (picture, None)
    name = name if name is not None else path or place
    if data is None:  # a path alone is not followed: whoever wrote the table does not decide what is read here
        return Item(name, error=KcdpError(f"{name} has no picture in its row", "its bytes"), caption=caption)
    return Item(name, data, caption)


def _texts(rows: Any, column: str | None) -> Iterator[str | None]:
    values = [None] * rows.num_rows if column is None else rows[column].to_pylist()
    return (None if value is None else str(value) for value in values)


def _checked(schema: Any, columns: Columns, file: str) -> Columns:
    """The columns, that of the pictures found. Raises KcdpError."""
    fitting = [field.name for field in schema if _is_picture(field.type)]
    picture = columns.picture
    if picture is None:
        usual = [name for name in _USUAL if name in fitting]
        if not usual and len(fitting) != 1:
            raise KcdpError(
                f"{file} has {'no column' if not fitting else 'several columns'} of bytes among "
                f"{', '.join(schema.names)}", "one with pictures", "name it by --column",
            )  # fmt: skip
        picture = (usual or fitting)[0]
    for name in (picture, columns.name, columns.caption):
        if name is not None and schema.names.count(name) != 1:
            raise KcdpError(f"{file} has no column {name!r}{nearest(name, schema.names)}",
                            f"one of {', '.join(schema.names)}")  # fmt: skip
    if picture not in fitting:
        raise KcdpError(f"the column {picture!r} of {file} holds {schema.field(picture).type}",
                        "bytes, or structs of bytes and path")  # fmt: skip
    return Columns(picture, columns.name, columns.caption)


def _is_picture(kind: Any) -> bool:
    types = require("pyarrow", "ray").types
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_picture(kind.field(index).type) and not types.is_struct(kind.field(index).type)
    tests = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


@contextmanager
def _readable(file: str) -> Iterator[None]:
    """OSError, which Arrow's errors of damaged files are too or beside, as one line."""
    arrow = require("pyarrow", "ray")
    try:
        yield
    except (OSError, arrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KcdpError(f"{file} cannot be read ({reason})", "a Parquet file", "copy or write it again") from None


def _listing(folder: str, recursive: bool) -> Iterator[str]:
    """Paths of the files in a folder, sorted, sub-folders among them."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive and not entry.is_symlink():
                yield from _listing(entry.path, recursive)
        else:
            yield entry.path
