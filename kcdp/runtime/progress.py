"""A counter on one line of a terminal, rewritten while pictures are tagged."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO

_SECONDS = 0.1  # between two writes


class Counter:
    """Shows how far a run has come; silent where the stream is no terminal.

    Args:
        total: how many there will be; None: not known.
        stream: standard error by default.
        shown: False: silent, whatever the stream is (rows go to the same terminal).
    """

    def __init__(
        self, total: int | None = None, *, stream: IO[str] | None = None, shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._stream = sys.stderr if stream is None else stream
        self._total, self._clock = total, clock
        self._shown = shown and self._stream.isatty()
        self._begun = clock()
        self._written_at: float | None = None
        self.count = 0

    def step(self) -> None:
        """One more."""
        self.count += 1
        now = self._clock()
        if not self._shown or (self._written_at is not None and now - self._written_at < _SECONDS):
            return
        self._written_at = now
        of = "" if self._total is None else f" of {self._total}"
        rate = self.count / max(now - self._begun, 1e-3)
        self._stream.write(f"\r\x1b[K{self.count}{of}, {rate:.1f} a second")
        self._stream.flush()

    def clear(self) -> None:
        """Takes the line away, so that another can be printed."""
        if self._written_at is not None:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._written_at = None
