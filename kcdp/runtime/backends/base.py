"""What every backend says of itself: whether it is here, what it may be told, which bundles it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.runtime.backends.options import SessionOptions
from kcdp.runtime.session import Session

USABLE, UNUSABLE, ABSENT = "usable", "unusable", "not installed"


@dataclass(frozen=True)
class Status:
    """Whether a backend is here.

    Attributes:
        state: ``USABLE``; ``UNUSABLE``: installed, but it cannot run here; ``ABSENT``.
        version: of its package; empty where it is not installed.
        reason: why it cannot be used; empty where it can.
        fix: what to do about it, with the exact install line where that is what helps.
    """

    state: str
    version: str = ""
    reason: str = ""
    fix: str = ""

    @property
    def usable(self) -> bool:
        """Whether a session can be opened."""
        return self.state == USABLE


class Backend(ABC):
    """One library on one kind of device.

    Attributes:
        name: as users write it.
        what: one line.
        options: fields of ``SessionOptions`` that it takes.
        verified: where this code has run; says so where it never has.
    """

    name: str
    what: str
    options: frozenset[str]
    verified: str

    @abstractmethod
    def status(self, options: SessionOptions) -> Status:
        """Whether it is here, asked of the library itself. Never raises."""

    @abstractmethod
    def unfit(self, bundle: Bundle, options: SessionOptions) -> KcdpError | None:
        """Why it cannot run this bundle; None: it can. Asked only where it is usable."""

    @abstractmethod
    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        """A session. Raises KcdpError where the library refuses the graph, or would compute elsewhere than asked."""


def broken(error: BaseException) -> str:
    """Why a package that is installed cannot be imported, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"it cannot be loaded ({lines[0] if lines else type(error).__name__})"
