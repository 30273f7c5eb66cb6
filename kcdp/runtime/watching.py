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

_Signature = tuple[int, int, int, int]


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
        self._find, self._own, self._known = find, own, known
        self._clock, self._now = clock, now
        self._seen: dict[str, _Seen] | None = None

    def look(self) -> list[Item]:
        """The items that have come to rest since the last look, in the order of ``find``; at first all that rest."""
        before = {} if self._seen is None else self._seen
        first, moment, after, ready = self._seen is None, self._clock(), {}, []
        own = {_place(path) for path in self._own} - {None}
        for item in self._find():
            signature = None if item.name in after else _signature(item)
            if item.name in after or (signature is not None and signature[2:] in own):
                continue
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
    """Modification time, size, device and number of the item's file, or of its archive's. None: there is none."""
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
        return found.st_mtime_ns, found.st_size, found.st_dev, found.st_ino
    return None


def _place(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
