"""How much a server takes on: sizes, numbers, times."""

from __future__ import annotations

from dataclasses import dataclass, field

from kcdp.errors import KcdpError
from kcdp.runtime.processor import processors

#: Bodies that are being received may hold this many times ``max_bytes`` together.
FULL_BODIES = 8


@dataclass(frozen=True)
class ServerOptions:
    """Every limit of a server.

    Attributes:
        max_bytes: bytes of a request's body.
        max_pictures: pictures of a request.
        timeout: seconds from a request's first byte to its answer.
        queue: pictures that are being decoded or wait for the graph, of all requests together.
        batch_wait: seconds that a picture waits for others to share its run of the graph.
        workers: threads that decode.
        connections: connections at once.
        idle: seconds that a connection may be silent, between requests and within the head of one.
        grace: seconds that running requests have when the server is told to end.
        token: what ``Authorization: Bearer`` must hold; None lets everybody in.

    Raises:
        KcdpError: one of them makes no sense; all that are wrong are named.
    """

    max_bytes: int = 16 * 2**20
    max_pictures: int = 64
    timeout: float = 30.0
    queue: int = 256
    batch_wait: float = 0.002
    workers: int = field(default_factory=processors)
    connections: int = 256
    idle: float = 10.0
    grace: float = 30.0
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)!r}; expected a whole number from 1"
            for name in ("max_bytes", "max_pictures", "queue", "workers", "connections")
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1
        ]
        wrong += [
            f"{name} is {getattr(self, name)!r}; expected seconds above 0, at most a day"
            for name in ("timeout", "idle", "grace")
            if not 0 < getattr(self, name) <= 86_400
        ]
        if not 0 <= self.batch_wait <= 1:
            wrong.append(f"batch_wait is {self.batch_wait!r}; expected seconds, 0 to 1")
        if not wrong and self.queue < self.max_pictures:
            wrong.append(f"queue is {self.queue}; expected at least max_pictures, {self.max_pictures}")
        if self.token is not None and not (self.token and self.token.isascii() and self.token.isprintable()
                                           and " " not in self.token):  # fmt: skip
            wrong.append("the token is empty or not plain text; expected printable ASCII without spaces")
        if wrong:
            raise KcdpError(" | ".join(wrong))
