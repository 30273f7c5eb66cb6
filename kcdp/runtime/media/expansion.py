"""Paths to items: what ``kcdp.runtime.sources.find_items`` does, which tells what is meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import IO

from kcdp.decoding import opened_file
from kcdp.errors import KcdpError
from kcdp.files import PICTURE_EXTENSIONS
from kcdp.runtime.items import Item
from kcdp.runtime.media.archives import ARCHIVE_EXTENSIONS, archive_items, is_archive
from kcdp.runtime.media.limits import Limits
from kcdp.runtime.media.packs import MOST_BYTES, PackCaptions, descriptions
from kcdp.runtime.walk import Kept, matches, names_on, walk

#: Endings of stickers, without regard to case: what folders and archives are searched for.
STICKER_EXTENSIONS = PICTURE_EXTENSIONS | {".avif", ".avifs", ".heic", ".heif", ".hif", ".tgs", ".webm"}


def expand(
    paths: Iterable[str], *, recursive: bool, include: Sequence[str], exclude: Sequence[str], limits: Limits
) -> Iterator[Item]:
    """As ``kcdp.runtime.sources.find_items``."""
    kept = Kept(include, exclude)
    return (item for path in paths for item in _named(path, recursive, kept, limits))


def _named(path: str, recursive: bool, kept: Kept, limits: Limits) -> Iterator[Item]:
    names = names_on(_standard_input()) if path == "-" else matches(path)
    if not names:
        yield Item(path, error=KcdpError(f"{path} matches nothing", "a pattern that matches files or folders"))
    for name in names:
        if os.path.isdir(name):
            yield from _in_folder(name, recursive, kept, limits)
        elif is_archive(name):
            yield from archive_items(name, wanted=_stickers(kept), limits=limits, prefix=os.path.basename(name))
        elif kept(os.path.basename(name)):
            yield Item(name, name)


def _standard_input() -> IO[bytes]:
    if sys.stdin is None:  # closed by whoever started this process
        raise KcdpError("names from standard input, which is closed", "a pipe or a file")
    return sys.stdin.buffer


def _in_folder(folder: str, recursive: bool, kept: Kept, limits: Limits) -> Iterator[Item]:
    captions, wanted = PackCaptions(), _stickers(kept)
    for what, path, names in walk(folder, recursive):
        relative = os.path.relpath(path, folder).replace(os.sep, "/")
        if what == "unreadable":
            yield Item(path, path)  # becomes an error row that says so
        elif what == "folder":
            yield from _described(path, "" if relative == "." else f"{relative}/", names, captions)
        elif _ending(path) in ARCHIVE_EXTENSIONS and is_archive(path):
            yield from archive_items(path, wanted=wanted, limits=limits, prefix=relative)
        elif wanted(relative) or (_ending(path) in ARCHIVE_EXTENSIONS and kept(relative)):
            yield Item(path, path, captions.of(relative))


def _described(folder: str, relative: str, names: Iterable[str], captions: PackCaptions) -> Iterator[Item]:
    """Takes up the descriptions in a folder; those that cannot be read are items with an error."""
    for name in descriptions(names):
        path = os.path.join(folder, name)
        try:
            captions.describe(relative + name, partial(_beginning, path), path)
        except KcdpError as error:
            yield Item(path, error=error)


def _beginning(path: str) -> bytes:
    with opened_file(path, path) as stream:
        try:
            return stream.read(MOST_BYTES + 1)
        except OSError as error:
            raise KcdpError(
                f"{path} cannot be read: {error.strerror or error}", "a sticker pack's description"
            ) from None


def _stickers(kept: Kept) -> Callable[[str], bool]:
    return lambda path: _ending(path) in STICKER_EXTENSIONS and kept(path)


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()
