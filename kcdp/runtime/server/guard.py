"""Connections that would cost a server more than they are worth: silent ones, endless ones, too many of them."""

from __future__ import annotations

import json
from typing import Any

from kcdp.errors import KcdpError, require
from kcdp.runtime.server.options import ServerOptions
from kcdp.runtime.server.problems import RETRY_AFTER, error_body

#: Seconds that a client has to end its body after the request was refused, so that it can read why.
LINGER = 2.0


def make_protocol(options: ServerOptions) -> Any:
    """uvicorn's HTTP/1.1 protocol, which also closes

    - connections whose request's head does not arrive whole within ``idle`` seconds (uvicorn itself only watches
      those that are silent after an answer);
    - connections that go on sending a body ``LINGER`` seconds after their request was answered.

    A connection beyond ``connections`` is answered 503 and closed; the others are served as before.

    Raises:
        KcdpError: uvicorn is not installed.
    """
    states, base = require("h11", "serve"), require("uvicorn.protocols.http.h11_impl", "serve").H11Protocol

    class Protocol(base):  # type: ignore[misc, valid-type]
        _deadline: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > options.connections:
                self.app = _refuse
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            answered = self.cycle is not None and self.cycle.response_complete
            if self.conn.their_state is states.IDLE and self.timeout_keep_alive_task is None:
                seconds = options.idle
            elif self.conn.their_state is states.SEND_BODY and answered:
                seconds = LINGER
            else:
                self._forget()
                return
            if self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._end)

        def _end(self) -> None:
            self.transport.close()

        def _forget(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

    return Protocol


async def _refuse(scope: Any, receive: Any, send: Any) -> None:
    """ASGI: there are too many connections."""
    error = KcdpError("one connection too many", "fewer at once", "try again, or keep connections open")
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"%d" % RETRY_AFTER), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error_body(error)).encode()})
