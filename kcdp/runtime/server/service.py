"""One tagger behind a server: what it has taken on, whether it still takes more, and the way of one request."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from kcdp.runtime.items import Item
from kcdp.runtime.server.body import read_items
from kcdp.runtime.server.options import FULL_BODIES, ServerOptions
from kcdp.runtime.server.pipeline import BatchFailed, Full, Pipeline
from kcdp.runtime.server.problems import ClientGone, problem
from kcdp.runtime.tagger import Tag, Tagger


class Service:
    """Takes requests from an event loop. A context manager; closing twice is fine.

    Args:
        tagger: stays the caller's, who closes it afterwards.
        options: the limits.

    Attributes:
        draining: no new requests are taken.
        running: requests to /v1/tag that have begun and are not answered.
    """

    def __init__(self, tagger: Tagger, options: ServerOptions) -> None:
        self.tagger, self.options = tagger, options
        self.pipeline = Pipeline(tagger, options)
        self.metrics = self.pipeline.metrics
        self.draining = False
        self.running = 0
        self._held = 0

    def close(self, timeout: float = 5.0) -> bool:
        """Ends the threads; False where some picture still keeps one busy after ``timeout`` seconds."""
        self.draining = True
        return self.pipeline.close(timeout)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *details: Any) -> None:
        self.close()

    def admits(self, token: str | None) -> bool:
        """Whether a request with this bearer token is let in; takes as long for every wrong one."""
        wanted = self.options.token
        return wanted is None or (token is not None and hmac.compare_digest(token.encode(), wanted.encode()))

    async def tag(self, request: Any) -> list[Tag]:
        """The tags of a request's pictures, in order.

        Raises:
            Problem: the request cannot be answered.
            ClientGone: nobody waits for the answer.
        """
        end = perf_counter() + self.options.timeout
        with self._holding() as hold:
            self._check_room(1)
            try:
                with self.metrics.timed("receive"):
                    reading = read_items(request, self.options, hold, self.tagger.session.takes_knowledge)
                    items = await asyncio.wait_for(reading, self.options.timeout)
            except asyncio.TimeoutError:
                raise problem(
                    408, f"not all of the request within {self.options.timeout:g} s", "the whole body",
                    "send fewer pictures at once",
                ) from None  # fmt: skip
            return await self._tagged(items, request, end)

    async def _tagged(self, items: list[Item], request: Any, end: float) -> list[Tag]:
        try:
            work = self.pipeline.submit(items)
        except Full:
            raise self._no_room(len(items)) from None
        items.clear()  # each picture is let go of once it is decoded
        gone = asyncio.ensure_future(_disconnected(request))
        either: tuple[asyncio.Future[Any], ...] = (work.future, gone)
        try:
            left = max(0.0, end - perf_counter())
            await asyncio.wait(either, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.future.done():
                return work.future.result()
            if gone.done():
                raise ClientGone
            raise problem(
                504, f"no tags within {self.options.timeout:g} s", "an idle server, or fewer pictures",
                "try again, or send fewer pictures at once",
            )  # fmt: skip
        except BatchFailed:
            raise problem(
                500, "the model failed on a batch with these pictures", "tags", "see the server's log"
            ) from None
        finally:
            gone.cancel()
            work.abandon()

    def _check_room(self, count: int) -> None:
        if self.draining:
            raise problem(503, "a request while the server is about to end", "", "try again, perhaps elsewhere")
        if self.pipeline.length + count > self.options.queue:
            raise self._no_room(count)

    def _no_room(self, count: int) -> Exception:
        received = f"{count} more while {self.pipeline.length} pictures are on their way"
        return problem(503, received, f"room for them: at most {self.options.queue} together", "try again later")

    @contextmanager
    def _holding(self) -> Iterator[Any]:
        """A function that counts what a request keeps in memory, and refuses what is too much for all of them."""
        mine, most = 0, FULL_BODIES * self.options.max_bytes

        def hold(size: int) -> None:
            nonlocal mine
            if self._held + size > most:
                raise problem(503, "a body while others fill the memory", f"at most {most} bytes of all requests "
                              "together", "try again later")  # fmt: skip
            mine += size
            self._held += size

        try:
            yield hold
        finally:
            self._held -= mine


async def _disconnected(request: Any) -> None:
    """Ends when the client closes the connection; the body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
