"""SIGINT and SIGTERM while training: they wait for the step at hand, then raise KeyboardInterrupt."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_DEFERRED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGCHLD") if hasattr(signal, name))


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt like SIGINT does, while the block runs (main thread only)."""

    def raise_interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    try:
        previous = signal.signal(signal.SIGTERM, raise_interrupt)
    except ValueError:  # not the main thread: leave signals to whoever runs it
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Holds SIGINT, SIGTERM and SIGCHLD back until the block has ended (main thread only).

    The last one is how torch hears of a worker that has died, and it raises at once, wherever the training stands.
    """
    caught: list[int] = []
    try:
        before = {
            number: signal.signal(number, lambda number, _frame: caught.append(number)) for number in _DEFERRED
        }
    except ValueError:  # not the main thread: signals do not arrive here
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
    for number in sorted(set(caught), key=caught.index):
        signal.raise_signal(number)


class Interrupted:
    """SIGINT and SIGTERM only remembered, for processes that have to stop at the same step (main thread only).

    Attributes:
        received: whether one has come.
    """

    def __init__(self) -> None:
        self.received = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While the block runs, signals set ``received`` and do nothing else."""

        def remember(_number: int, _frame: object) -> None:
            self.received = True

        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)
