"""A folder of Parquet files, each written whole, that an interrupted run goes on with."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcdp.errors import KcdpError, require
from kcdp.files import atomic_file, make_folder, read_json, write_json
from kcdp.labels import LABELS
from kcdp.runtime.rows import COLUMNS, row

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

#: What the parts belong to. Its name begins with "_": readers of Parquet folders leave it out.
STATE = "_collection.json"
_PART = re.compile(r"part-\d{6,}\.parquet")


class Parts:
    """Tags as rows of ``part-000000.parquet``, ``part-000001.parquet``, ..., in order, ``rows`` in each but the last.

    Columns: ``kcdp.runtime.rows.COLUMNS``, as in a CSV file; null where there is nothing. Names that are not Unicode
    have escapes.

    Args:
        folder: made if it is not there.
        belongs_to: JSON data: what the rows were made of. Parts in the folder that were made of the same are kept.
        rows: of a part.
        model: what every row holds as ``model``: the beginning of the bundle's digest.

    Attributes:
        kept: rows in parts that are there already.
        failed: how many of them have an error.

    Raises:
        KcdpError: the folder holds something else, or rows of another run.
    """

    def __init__(self, folder: str | Path, belongs_to: dict[str, Any], rows: int, model: str) -> None:
        self._folder, self._rows, self._model = Path(folder), rows, model
        make_folder(self._folder)
        there = sorted(name for name in os.listdir(self._folder) if not name.startswith("."))
        state = {**belongs_to, "part_rows": rows, "columns": list(COLUMNS)}
        if not there:
            write_json(self._folder / STATE, state)
        elif STATE not in there or (strange := [name for name in there if name != STATE and not _PART.fullmatch(name)]):
            what = "no " + STATE if STATE not in there else strange[0]
            raise KcdpError(f"{self._folder} holds files already, and {what}", "an empty or a new folder",
                            "choose another --out")  # fmt: skip
        elif (found := read_json(self._folder / STATE)) != state:
            different = sorted(key for key in state if not isinstance(found, dict) or found.get(key) != state[key])
            raise KcdpError(f"{self._folder} holds rows of another run ({', '.join(different)} differ)",
                            "the same collection, model and settings", "choose another --out")  # fmt: skip
        self.kept = self.failed = self._next = 0
        while self._path(self._next).name in there:
            self._count(self._path(self._next))
            self._next += 1
        last = [name for name in there if name != STATE and name >= self._path(self._next).name]
        if last:
            raise KcdpError(f"{self._folder} holds {last[0]} but not {self._path(self._next).name}",
                            "all parts before it", "delete the later ones")  # fmt: skip

    def write(self, tags: Iterable[Tag]) -> Iterator[Tag]:
        """The tags again, once they are on disk. They are those that follow the rows that were kept."""
        parquet = require("pyarrow.parquet", "ray")
        remaining = iter(tags)
        while part := list(islice(remaining, self._rows)):
            with atomic_file(self._path(self._next)) as temporary:
                parquet.write_table(_table(part, self._model), temporary)
            self._next += 1
            yield from part

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:06}.parquet"

    def _count(self, path: Path) -> None:
        parquet = require("pyarrow.parquet", "ray")
        errors = parquet.read_table(path, columns=["error"])["error"]
        self.kept += len(errors)
        self.failed += len(errors) - errors.null_count


def _table(tags: Sequence[Tag], model: str) -> Any:
    arrow = require("pyarrow", "ray")
    text, fields = arrow.string(), [row(tag, model) for tag in tags]
    kinds = dict.fromkeys(COLUMNS, text) | dict.fromkeys(("confidence", *LABELS, "spread"), arrow.float32())
    kinds["frames"] = arrow.int32()
    cells = [{**one, **one["scores"]} for one in fields]
    return arrow.table({
        name: arrow.array([_unicode(one.get(name)) for one in cells], kind) for name, kind in kinds.items()
    })  # fmt: skip


def _unicode(value: Any) -> Any:
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value
