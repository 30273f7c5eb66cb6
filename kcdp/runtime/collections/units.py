"""What travels between the processes: numbered units of items one way, their tags the other, as rows of tables."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kcdp.errors import KcdpError, require

if TYPE_CHECKING:
    from kcdp.runtime.items import Item
    from kcdp.runtime.tagger import Tag

#: Columns: the number of a unit's first item, and what it holds, pickled. Arrow's own strings could not carry names
#: that are not Unicode, and its columns neither errors nor None beside bytes.
FIRST, CONTENT = "first", "content"


def pack(units: Sequence[tuple[int, Sequence[Item] | Sequence[Tag] | KcdpError]]) -> Any:
    """A pyarrow.Table of units, one a row: (number of its first item, items, or their tags, or why the run ends)."""
    arrow = require("pyarrow", "ray")
    first = arrow.array([number for number, _ in units], arrow.int64())
    content = arrow.array([pickle.dumps(what) for _, what in units], arrow.large_binary())
    return arrow.table({FIRST: first, CONTENT: content})


def unpack(table: Any) -> Iterator[tuple[int, Any]]:
    """What ``pack`` was given, unit by unit."""
    for first, content in zip(table[FIRST], table[CONTENT], strict=True):
        yield first.as_py(), pickle.loads(content.as_buffer())
