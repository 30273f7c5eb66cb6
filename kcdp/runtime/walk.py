"""Folders, patterns and lists of names, expanded to paths; nothing but the standard library."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import IO

from kcdp.errors import KcdpError

_LONGEST_NAME = 1 << 16


class Kept:
    """Whether a relative path is kept by the patterns, of which ``find_items`` tells.

    Raises:
        KcdpError: a pattern is no text.
    """

    def __init__(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        self._include, self._exclude = _patterns("include", include), _patterns("exclude", exclude)

    def __call__(self, path: str) -> bool:
        plain = path.replace(os.sep, "/")
        return (not self._include or _any(plain, self._include)) and not _any(plain, self._exclude)


def _patterns(name: str, patterns: Sequence[str]) -> list[str]:
    found = [patterns] if isinstance(patterns, str) else list(patterns)
    if not all(isinstance(pattern, str) and pattern for pattern in found):
        raise KcdpError(f"{name} is {patterns!r}", "patterns like *.webp")
    return found


def _any(path: str, patterns: Iterable[str]) -> bool:
    base = path.rpartition("/")[2]
    return any(fnmatch(path, pattern) or fnmatch(base, pattern) for pattern in patterns)


def matches(path: str) -> list[str]:
    """The path, or what it matches where it is a pattern and not the name of a file; sorted, perhaps nothing."""
    if not glob.has_magic(path) or os.path.lexists(path):
        return [path]
    found = sorted(glob.iglob(path, recursive=True))
    return [name for name in found if "**" not in path or not os.path.isdir(name)]  # what is in it matches itself


def names_on(stream: IO[bytes]) -> Iterator[str]:
    """Names from a stream as they come, separated by NUL if the first piece holds one, else by line ends.

    Raises:
        KcdpError: a name of more than 64 KiB.
    """
    separator, rest = b"", b""
    while piece := getattr(stream, "read1", stream.read)(_LONGEST_NAME):
        rest += piece
        separator = separator or (b"\0" if b"\0" in rest else b"\n" if b"\n" in rest else b"")
        if separator:
            *names, rest = rest.split(separator)
            yield from filter(None, (_name(name, separator) for name in names))
        if len(rest) > _LONGEST_NAME:
            raise KcdpError("a name on standard input is too long", "names, one a line or separated by NUL")
    if name := _name(rest, separator):
        yield name


def _name(name: bytes, separator: bytes) -> str:
    return os.fsdecode(name if separator == b"\0" else name.rstrip(b"\r"))


def walk(folder: str, recursive: bool) -> Iterator[tuple[str, str, list[str]]]:
    """What is in a folder, sorted by name, hidden entries left out.

    Yields:
        ("folder", its path, the names of the files in it) before what is in it; ("file", its path, []);
        ("unreadable", its path, []) of a folder that cannot be listed.
    """
    pending: list[Iterator[os.DirEntry[str] | str]] = [iter([folder])]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
        elif isinstance(entry, str) or entry.is_dir():
            path = os.fspath(entry)
            if not isinstance(entry, str) and (not recursive or entry.is_symlink()):
                continue
            try:
                with os.scandir(path) as listing:
                    entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
            except OSError:
                yield "unreadable", path, []
                continue
            yield "folder", path, [e.name for e in entries if e.is_file()]
            pending.append(iter(entries))
        else:
            yield "file", entry.path, []
