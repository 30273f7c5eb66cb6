"""Folders that are looked at again and again: which pictures are new or changed, and have come to rest.

By polling: modification time, size and file number work on every file system, network drives and containers included,
where change notifications do not arrive. A look takes no more than a tenth of the time.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcdp.runtime.items import Item


#: Seconds for which a file must not have changed, and least seconds between two looks.
QUIET, INTERVAL = 0.5, 0.25
_SHARE = 10  # a look may take one part in so many of the time

_Signature = tuple[int, int, int]


@dataclass
class _Seen:
    signature: _Signature | None
    since: float
    done: bool = False


class Watcher:
    """Remembers what was given out already.

    Args:
        find: lists the items anew.
        own: paths of files that the caller writes: never given out.
        known: names that were tagged in an earlier run; they are given out only when they change.
        clock, now: seconds, monotonic, and since the epoch.
    """

    def __init__(
        self, find: Callable[[], Iterable[Item]], *, own: Collection[str] = (), known: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._find, self._own, self._known = find, {os.path.realpath(path) for path in own}, known
        self._clock, self._now = clock, now
        self._seen: dict[str, _Seen] | None = None

    def look(self) -> list[Item]:
        """The items that have come to rest since the last look, in the order of ``find``; at first all that rest."""
        before = {} if self._seen is None else self._seen
        first, moment, after, ready = self._seen is None, self._clock(), {}, []
        for item in self._find():
            if item.name in after or self._is_own(item):
                continue
            signature = _signature(item)
            seen = before.get(item.name)
            if seen is None or seen.signature != signature:
                known = first and item.name in self._known
                seen = _Seen(signature, moment - QUIET if first and self._rests(signature) else moment, known)
            if not seen.done and moment - seen.since >= QUIET:
                seen.done = True
                ready.append(item)
            after[item.name] = seen
        self._seen = after  # what has gone is forgotten: when it comes back it is new
        return ready

    def _rests(self, signature: _Signature | None) -> bool:
        return signature is None or not 0 <= self._now() - signature[0] / 1e9 < QUIET

    def _is_own(self, item: Item) -> bool:
        return isinstance(item.source, (str, os.PathLike)) and os.path.realpath(item.source) in self._own


def rounds(watcher: Watcher, stopped: Callable[[], bool], sleep: Callable[[float], None] = time.sleep) -> Iterator[Any]:
    """Lists of items that rest, for ever or until ``stopped`` says so; looks in between cost little time."""
    while not stopped():
        begun = time.monotonic()
        ready = watcher.look()
        took = time.monotonic() - begun
        if ready:
            yield ready
        end = time.monotonic() + max(INTERVAL, _SHARE * took)
        while not stopped() and (left := end - time.monotonic()) > 0:
            sleep(min(left, INTERVAL))


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """In the block, Ctrl-C and SIGTERM only make the function that it gets say True; a second one interrupts."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {
        number: signal.signal(number, ask)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _signature(item: Item) -> _Signature | None:
    """Modification time, size and number of the item's file; of an archive's entry, of the archive. None: no file."""
    path = os.fspath(item.source) if isinstance(item.source, (str, os.PathLike)) else item.name
    while path:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            above = os.path.dirname(path)
            if isinstance(item.source, (str, os.PathLike)) or above == path:
                return None
            path = above
            continue
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None
