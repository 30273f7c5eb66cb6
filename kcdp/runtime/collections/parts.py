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

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

#: What the parts belong to. Its name begins with "_": readers of Parquet folders leave it out.
STATE = "_collection.json"
_PART = re.compile(r"part-\d{6,}\.parquet")


class Parts:
    """Tags as rows of ``part-000000.parquet``, ``part-000001.parquet``, ..., in order, ``rows`` in each but the last.

    Columns: path, label, confidence, one for each emotion, error, frames, spread; as in ``Tag``, null where there is
    nothing. Names that are not Unicode have escapes.

    Args:
        folder: made if it is not there.
        belongs_to: JSON data: what the rows were made of. Parts in the folder that were made of the same are kept.
        rows: of a part.

    Attributes:
        kept: rows in parts that are there already.
        failed: how many of them have an error.

    Raises:
        KcdpError: the folder holds something else, or rows of another run.
    """

    def __init__(self, folder: str | Path, belongs_to: dict[str, Any], rows: int) -> None:
        self._folder, self._rows = Path(folder), rows
        make_folder(self._folder)
        there = sorted(name for name in os.listdir(self._folder) if not name.startswith("."))
        state = {**belongs_to, "part_rows": rows}
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
                parquet.write_table(_table(part), temporary)
            self._next += 1
            yield from part

    def _path(self, number: int) -> Path:
        return self._folder / f"part-{number:06}.parquet"

    def _count(self, path: Path) -> None:
        parquet = require("pyarrow.parquet", "ray")
        errors = parquet.read_table(path, columns=["error"])["error"]
        self.kept += len(errors)
        self.failed += len(errors) - errors.null_count


def _table(tags: Sequence[Tag]) -> Any:
    arrow = require("pyarrow", "ray")
    number, text = arrow.float32(), arrow.string()
    columns: dict[str, tuple[Any, list[Any]]] = {
        "path": (text, [_unicode(tag.path) for tag in tags]),
        "label": (text, [tag.label for tag in tags]),
        "confidence": (number, [tag.confidence for tag in tags]),
        **{label: (number, [tag.scores.get(label) for tag in tags]) for label in LABELS},
        "error": (text, [None if tag.error is None else _unicode(tag.error) for tag in tags]),
        "frames": (arrow.int32(), [tag.frames for tag in tags]),
        "spread": (number, [tag.spread for tag in tags]),
    }
    return arrow.table({name: arrow.array(values, kind) for name, (kind, values) in columns.items()})


def _unicode(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
