"""What the tests of the server share: an app in this process, pictures, metrics, and a server with a real socket."""

from __future__ import annotations

import asyncio
import io
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
from PIL import Image

from kcdp.runtime.server.app import make_app
from kcdp.runtime.server.options import ServerOptions
from kcdp.runtime.server.running import bind, make_server
from kcdp.runtime.server.service import Service
from kcdp.runtime.tagger import Tag, Tagger

PNG = {"content-type": "image/png"}


def png(colour: tuple[int, int, int] = (255, 0, 0), size: int = 20) -> bytes:
    """A solid picture."""
    stream = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(stream, "PNG")
    return stream.getvalue()


def heavy_png(size: int) -> bytes:
    """Noise: about 3 * size * size bytes."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


class Gate:
    """Stands before a tagger's graph: runs wait until it is opened. ``seen`` lists the names of every batch."""

    def __init__(self, tagger: Tagger, *, open: bool = True) -> None:
        self._finish, self.seen = tagger.finish, list[list[str]]()
        self._opened = threading.Event()
        self.reached = threading.Event()
        if open:
            self._opened.set()
        tagger.finish = self._gated  # type: ignore[method-assign]

    def open(self) -> None:
        self._opened.set()

    def _gated(self, prepared: Any) -> list[Tag]:
        if all(one.error is not None for one in prepared):
            return self._finish(prepared)
        self.seen.append([one.name for one in prepared])
        self.reached.set()
        assert self._opened.wait(20)
        return self._finish(prepared)


@contextmanager
def serving(tagger: Tagger, **options: Any) -> Iterator[Service]:
    """A service with small limits, closed at the end."""
    service = Service(tagger, ServerOptions(**{"workers": 2, "timeout": 10.0, **options}))
    try:
        yield service
    finally:
        service.close()


def talk(service: Service, script: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """Runs ``script(client)`` on a fresh event loop, against the service's app in this process."""

    async def run() -> Any:
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://test", timeout=30) as client:
            return await script(client)

    return asyncio.run(run())


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Waits for something that other threads do."""
    end = monotonic() + seconds
    while not condition():
        assert monotonic() < end, "it never happened"
        await asyncio.sleep(0.005)


def metric(service: Service, name: str, **labels: str) -> float:
    """One number of the service's registry; 0 where it has not been counted yet."""
    return service.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def listening(service: Service) -> Iterator[tuple[str, int]]:
    """The service behind a real socket, on a thread: host and port."""
    opened = bind("127.0.0.1", 0)
    server = make_server(make_app(service), service.options)
    thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
    address = opened.getsockname()[:2]
    thread.start()
    end = monotonic() + 10
    while not server.started:
        assert monotonic() < end and thread.is_alive()
        sleep(0.01)
    try:
        yield address
    finally:
        server.config.timeout_graceful_shutdown = 1
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()
        opened.close()


def head(length: int, path: str = "/v1/tag", more: str = "") -> bytes:
    """The head of a request that sends one picture."""
    return (f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Type: image/png\r\n"
            f"Content-Length: {length}\r\n{more}\r\n").encode()  # fmt: skip


def answer(connection: socket.socket, seconds: float = 10.0) -> bytes:
    """Everything that comes until the whole answer is there or the connection ends."""
    connection.settimeout(seconds)
    data = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return data
        data += piece
        before, _, body = data.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", before, flags=re.I)
        if not piece or (length and len(body) >= int(length[1])):
            return data
