"""Reading ahead: a few threads decode while the graph runs, results come in the order of the items, memory is bounded.

Nothing here knows what a picture is: functions read one item and finish a batch of what was read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.items import Prepared

_Result = TypeVar("_Result")
_Made = TypeVar("_Made")

#: More threads than this only wait for the disk and for one another.
MOST_READERS = 8


class Stats:
    """Where the time of tagging went. Several threads may add to one.

    Attributes:
        pictures: stickers that came out, failed ones included.
        frames: pictures that went through the graph.
        failed: stickers with an error.
        seconds: wall clock while at least one stream was at work; what callers do between two tags does not count.
        decode, preprocess, inference: seconds, summed over threads; they pass at the same time.
        batch_size: in use.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.pictures = self.frames = self.failed = self.batch_size = 0
        self.seconds = self.decode = self.preprocess = self.inference = 0.0
        self._active, self._since = 0, 0.0

    def add(self, **amounts: float) -> None:
        """Add to attributes of these names."""
        with self._lock:
            for name, amount in amounts.items():
                setattr(self, name, getattr(self, name) + amount)

    def begin(self) -> None:
        """A stream is at work."""
        with self._lock:
            if self._active == 0:
                self._since = perf_counter()
            self._active += 1

    def end(self) -> None:
        """It is not, for now."""
        with self._lock:
            self._active -= 1
            if self._active == 0:
                self.seconds += perf_counter() - self._since

    def lines(self) -> list[str]:
        """For people."""
        spent = self.decode + self.preprocess + self.inference
        rate = self.pictures / self.seconds if self.seconds else 0.0
        shares = ", ".join(
            f"{name} {seconds:.2f} s ({seconds / spent if spent else 0:.0%})"
            for name, seconds in (
                ("decode", self.decode), ("preprocess", self.preprocess), ("inference", self.inference)
            )
        )  # fmt: skip
        return [
            f"{self.pictures} picture{'' if self.pictures == 1 else 's'} ({self.frames} "
            f"frame{'' if self.frames == 1 else 's'}, {self.failed} failed) in {self.seconds:.2f} s: "
            f"{rate:.1f} a second, {self.batch_size} frames at once",
            f"time of all threads: {shares}",
        ]


class ClockedSpec(PreprocessSpec):
    """The same preprocessing, which counts what its calls take in this thread."""

    _own = threading.local()

    def apply(self, image: Image.Image) -> np.ndarray:
        """As ``PreprocessSpec.apply``."""
        start = perf_counter()
        try:
            return super().apply(image)
        finally:
            self._own.spent = getattr(self._own, "spent", 0.0) + perf_counter() - start

    @classmethod
    def take(cls) -> float:
        """Seconds that this thread has spent since it was asked last."""
        spent: float = getattr(cls._own, "spent", 0.0)
        cls._own.spent = 0.0
        return spent


class Threads(Generic[_Made]):
    """A pool of threads that is made when it is first needed, and shared by all streams.

    Args:
        workers: threads.
        name: what the system calls them.
    """

    def __init__(self, workers: int, name: str = "kcdp-read") -> None:
        self.workers, self._name = workers, name
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    def submit(self, function: Callable[..., _Made], *arguments: object) -> Future[_Made]:
        """Start one call. Raises KcdpError once this is closed."""
        with self._lock:
            self._check()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.workers, thread_name_prefix=self._name)
            return self._pool.submit(function, *arguments)

    def check(self) -> None:
        """Raises KcdpError once this is closed."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self._closed:
            raise closed()

    def close(self) -> None:
        """Forget what has not begun; what has, ends by itself."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)


def flow(
    items: Iterable[object],
    reader: Threads[Prepared],
    read: Callable[[int, object], Prepared],
    finish: Callable[[Sequence[Prepared]], Sequence[_Result]],
    frames_at_once: Callable[[Callable[[], object]], int],
    finisher: Threads[Sequence[_Result]] | None = None,
) -> Iterator[_Result]:
    """Results in the order of the items.

    One batch is being read while others go through the graph: as many as ``finisher`` has threads. Items are taken
    from ``items`` in the thread that asks for results. Where ``items`` raises, what was read before comes first.
    Ending early (``close()``, or an exception of ``finish``) drops what was read.

    Args:
        items: taken as they are needed.
        reader: runs ``read``.
        read: number and item -> what ``finish`` takes; it does not raise.
        finish: a batch -> its results.
        frames_at_once: how many frames a batch should have; asked before each, with a function that waits until
            nothing is being read or finished.
        finisher: runs ``finish``; None: the thread that asks for results does, one batch after the other.

    Raises:
        KcdpError: the reader was closed meanwhile.
    """
    numbered, exhausted, failure = enumerate(items), False, None
    lock, more = threading.Lock(), 0  # frames that were read and wait, beyond one of each item

    def counted(number: int, item: object) -> Prepared:
        nonlocal more
        one = read(number, item)
        with lock:
            more += _frames(one) - 1
        return one

    waiting: deque[Future[Prepared]] = deque()
    running: deque[Future[Sequence[_Result]]] = deque()
    try:
        while True:
            most, frames = frames_at_once(lambda: _settled(waiting, running)), 0
            batch: list[Prepared] = []
            while frames < most:
                while not exhausted and len(batch) + len(waiting) + more < 2 * most:
                    try:
                        number, item = next(numbered)
                    except StopIteration:
                        exhausted = True
                    except Exception as error:  # the caller's own; what came before it is not lost
                        exhausted, failure = True, error
                    else:
                        waiting.append(reader.submit(counted, number, item))
                if not waiting:
                    break
                batch.append(waiting.popleft().result())
                own = _frames(batch[-1])
                frames += own
                with lock:
                    more -= own - 1
            if not batch:
                break
            if finisher is None:
                yield from finish(batch)
                continue
            running.append(finisher.submit(finish, batch))
            if len(running) >= finisher.workers:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()
        if failure is not None:
            raise failure
    except CancelledError:
        raise closed() from None
    finally:
        for read_ahead in waiting:
            read_ahead.cancel()
        for batch_ahead in running:
            batch_ahead.cancel()


def closed() -> KcdpError:
    """What is said to whoever goes on after ``close()``."""
    return KcdpError("the tagger is closed", fix="open the bundle again")


def _settled(*queues: Iterable[Future[Any]]) -> None:
    """Waits for all of them. ``concurrent.futures.wait`` would wait for ever for what a closed pool has cancelled.

    Raises:
        CancelledError: one was.
    """
    for queue in queues:
        for one in queue:
            one.exception()


def _frames(one: Prepared) -> int:
    """How many it counts for; what could not be read counts as one."""
    return max(1, len(one.pixels))


def best_batch(
    seconds_of: Callable[[int], float], sizes: Sequence[int] = (1, 2, 4, 8, 16, 32), worth: float = 0.05
) -> int:
    """The smallest batch within 5 % of the best speed for each picture.

    Args:
        seconds_of: number of pictures -> seconds that a run of so many takes, measured.
        sizes: what to try, rising; larger ones are left out once two in a row are no better.
        worth: part of the speed that a larger batch has to bring.
    """
    found: dict[int, float] = {}
    best, stale = float("inf"), 0
    for size in sizes:
        found[size] = seconds_of(size) / size
        stale = 0 if found[size] < best * (1 - worth) else stale + 1
        best = min(best, found[size])
        if stale == 2:
            break
    return next(size for size, each in found.items() if each <= best * (1 + worth))
