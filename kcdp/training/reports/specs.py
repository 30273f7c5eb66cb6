"""Dataset strings as settings hold them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PureWindowsPath


def specs(value: str | Sequence[str]) -> tuple[str, ...]:
    """The dataset strings of a setting: it may hold one, several, or none (an empty string)."""
    given = (value,) if isinstance(value, str) else tuple(value)
    return tuple(spec for spec in given if spec)


def short(spec: str) -> str:
    """A dataset string, or several joined by " + ", with the last part of each path alone: for plots and tables."""
    if " + " in spec:
        return " + ".join(map(short, spec.split(" + ")))
    kind, colon, rest = spec.partition(":")
    path, mark, query = rest.partition("?")
    # A Windows path, for it takes both kinds of slash.
    return f"{kind}{colon}{PureWindowsPath(path).name or path}{mark}{query}"
