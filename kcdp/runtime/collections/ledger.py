"""Which pictures kill the process that reads them: counted outside of it, so that they become rows, not endless tries.

The engine starts a worker anew that has died, and hands it the same units again. It cannot tell a worker that was
killed by chance from one that dies of a picture: this can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

#: How often a worker may die of units before they are tagged picture by picture, and then of one picture.
TRIES = 2


class Ledger:
    """How often work was begun that has not ended since. Lives in a process of its own, without a processor's share."""

    def __init__(self) -> None:
        self._begun: Counter[Hashable] = Counter()

    def begin(self, work: Hashable) -> int:
        """How often before the work was begun and not ended."""
        self._begun[work] += 1
        return self._begun[work] - 1

    def end(self, work: Hashable) -> None:
        """The work is done."""
        self._begun.pop(work, None)
