"""Files as a collection."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from kcdp.errors import KcdpError
from kcdp.runtime.collections.units import pack
from kcdp.runtime.items import Item
from kcdp.runtime.output import display_width, printable

#: Units that travel together at most.
_UNITS = 16


class Files:
    """Pictures in files. A worker reads them: only their paths travel.

    Args:
        items: in the order of the rows.

    Attributes:
        count: how many there are.
        read: None: what ``blocks`` gives are units already.
    """

    read = None

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items
        self.count = len(items)

    @property
    def paths(self) -> list[str]:
        """The files, as far as there are any."""
        return [item.source for item in self._items if isinstance(item.source, str)]

    @property
    def width(self) -> int:
        """Columns that the longest name takes on a terminal."""
        return max((display_width(printable(item.name)) for item in self._items), default=0)

    def blocks(self, start: int, batch: int, workers: int) -> Iterator[Any]:
        """Tables of units from item ``start`` on, a multiple of ``batch``; as many for each worker as there can be."""
        batches = -(-(self.count - start) // batch)
        rows = batch * min(_UNITS, max(1, batches // (4 * workers)))
        for first in range(start, self.count, rows):
            last = min(first + rows, self.count)
            yield pack([(n, [_portable(item) for item in self._items[n : min(n + batch, last)]])
                        for n in range(first, last, batch)])  # fmt: skip

    def fingerprint(self) -> str:
        """Hexadecimal SHA-256 of the names, in order."""
        digest = hashlib.sha256()
        for item in self._items:
            digest.update(item.name.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def _portable(item: Item) -> Item:
    """An item that a process with another current folder can read: of an archive's entry, the bytes."""
    if isinstance(item.source, (str, os.PathLike)):
        return replace(item, source=os.path.abspath(item.source))
    if not callable(item.source):
        return item
    try:
        return replace(item, source=item.source())
    except KcdpError as error:
        return replace(item, source=b"", error=error)
