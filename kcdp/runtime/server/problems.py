"""Requests that are refused: a status, and what was received, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kcdp.errors import KcdpError

#: Seconds after which a request that was refused for lack of room may be sent again.
RETRY_AFTER = 1

#: status -> what it means, for those that ``POST /v1/tag`` may answer.
STATUSES: Mapping[int, str] = {
    400: "The body is not what its Content-Type says.",
    408: "The request did not arrive in time.",
    413: "More bytes than the server takes.",
    415: "Neither multipart/form-data nor one picture.",
    422: "No pictures, more than the server takes, or fields that it does not know.",
    500: "The model failed on these pictures; the server goes on.",
    503: "The server is full, or about to end: try again after Retry-After seconds.",
    504: "The tags were not ready in time.",
}


class Problem(Exception):
    """A request that cannot be answered as it was meant.

    Attributes:
        status: HTTP status.
        error: received, expected, fix.
        headers: more headers for the answer.
    """

    def __init__(self, status: int, error: KcdpError, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(str(error))
        self.status, self.error, self.headers = status, error, dict(headers or {})


class ClientGone(Exception):
    """The client has closed the connection before it was answered."""


def problem(status: int, received: str, expected: str = "", fix: str = "") -> Problem:
    """A refusal; with 503 it says when to try again, with 401 how to be let in."""
    headers = {503: {"Retry-After": str(RETRY_AFTER)}, 401: {"WWW-Authenticate": 'Bearer realm="kcdp"'}}
    return Problem(status, KcdpError(received, expected, fix), headers.get(status))


def error_body(error: KcdpError) -> dict[str, Any]:
    """What stands in the answer."""
    return {"error": {"received": error.received, "expected": error.expected, "fix": error.fix}}
