"""The socket, the server on it, and an end that answers what has begun."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from time import monotonic, sleep
from typing import Any

from kcdp.errors import KcdpError, require
from kcdp.runtime.server.guard import make_protocol
from kcdp.runtime.server.options import ServerOptions
from kcdp.runtime.server.service import Service

_TICK = 0.02  # seconds between looks at what is still running
_BACKLOG = 1024


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, not listening yet. Where a server was killed, its address can be taken at once.

    Args:
        host: a name or an address, IPv4 or IPv6.
        port: 0 takes a free one.

    Raises:
        KcdpError: the address is taken, not this machine's, or not allowed.
    """
    if not 0 <= port <= 65535:
        raise KcdpError(f"the port {port}", "0 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise KcdpError(f"the address {host}:{port} ({_reason(error)})", "an address of this machine") from None
    try:
        if sys.platform != "win32":  # there the option would let two servers share the address
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        opened.close()
        raise _taken(f"{host}:{port}", error) from None
    return opened


def address_of(opened: socket.socket) -> str:
    """``http://HOST:PORT`` of a bound socket."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def others_can_reach(opened: socket.socket) -> bool:
    """Whether the socket's address is more than this machine's loopback."""
    return not ip_address(opened.getsockname()[0].partition("%")[0]).is_loopback


def make_server(app: Any, options: ServerOptions, *, access_log: bool = False) -> Any:
    """A uvicorn server of an app: HTTP/1.1 only, errors on stderr, an access log on stdout where it is wanted.

    Raises:
        KcdpError: uvicorn is not installed.
    """
    library = require("uvicorn", "serve")
    config = library.Config(
        app, http=make_protocol(options), ws="none", lifespan="off", log_level="error", access_log=access_log,
        proxy_headers=False, server_header=False, timeout_keep_alive=options.idle, backlog=_BACKLOG,
    )  # fmt: skip
    if access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
    return library.Server(config)


def serve(server: Any, service: Service, opened: socket.socket, announce: Callable[[], None]) -> bool:
    """Serves until SIGTERM or SIGINT; must be called in the main thread. The socket is closed.

    From the signal on, /healthz says that the server is draining and new requests are refused; those that have begun
    are answered, or cut off after ``grace`` seconds. A second signal cuts them off at once.

    Args:
        announce: called once requests are taken.

    Returns:
        Whether all requests that had begun were answered.

    Raises:
        KcdpError: the address was taken meanwhile, or the server ended by itself.
    """
    thread = threading.Thread(target=server.run, args=([opened],), name="kcdp-http", daemon=True)
    try:
        opened.listen(_BACKLOG)
    except OSError as error:
        raise _taken(address_of(opened), error) from None
    with opened, _signals() as signals:
        thread.start()
        while thread.is_alive() and not server.started:
            sleep(_TICK)
        if thread.is_alive():
            announce()
        while thread.is_alive() and not signals:
            sleep(_TICK * 5)
        if not signals:
            raise KcdpError("the server ended by itself", "", "see what it printed above")
        service.draining = True
        end = monotonic() + service.options.grace
        while service.running and monotonic() < end and len(signals) < 2:
            sleep(_TICK)
        cut_off = service.running
        left = max(0.0, end - monotonic())
        server.config.timeout_graceful_shutdown = 0.1 if cut_off else max(0.1, left)
        server.should_exit = True
        thread.join(max(1.0, left))
    return not cut_off and not thread.is_alive()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that asked for the end since the block began; afterwards they mean what they did before."""
    heard: list[int] = []
    before = {number: signal.signal(number, lambda got, _: heard.append(got))
              for number in (signal.SIGTERM, signal.SIGINT)}  # fmt: skip
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _taken(address: str, error: Exception) -> KcdpError:
    return KcdpError(
        f"cannot listen on {address} ({_reason(error)})", "a free address of this machine",
        "choose another --port or --host",
    )  # fmt: skip


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
