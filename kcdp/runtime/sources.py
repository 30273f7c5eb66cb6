"""From the paths a user names to the stickers that are tagged, in a settled order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

from kcdp.files import PICTURE_EXTENSIONS
from kcdp.runtime.media.limits import LIMITS, Limits
from kcdp.runtime.walk import walk

if TYPE_CHECKING:
    from kcdp.runtime.items import Item

#: A path or several of them.
Paths: TypeAlias = "str | os.PathLike[str] | Iterable[str | os.PathLike[str]]"


def find_items(
    paths: Paths,
    *,
    recursive: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limits: Limits = LIMITS,
) -> Iterator[Item]:
    """Expand files, folders, patterns, zip archives and sticker packs, as the items are needed.

    Args:
        paths: one path or several. A file is kept whatever its name; a path that is not there is kept too, so that
            it becomes an error row instead of vanishing. A folder stands for the stickers and archives in it, a zip
            archive for the stickers in it. A pattern (``*``, ``?``, ``[abc]``, ``**``) that is no file's name stands
            for what it matches, and ``-`` for the names on standard input, one a line or separated by NUL.
        recursive: look into sub-folders as well. Links to folders are not followed. Archives are always read whole.
        include: patterns; what matches none of them is left out. Empty: everything is kept.
        exclude: patterns; what matches one of them is left out.
        limits: what is refused in archives.

    A pattern of ``include`` and ``exclude`` is compared with the path below the folder that was named (of a file that
    was named: its name), archives being folders, and with its last part; ``*`` matches ``/`` too.

    Yields:
        Items in the order of ``paths``, those of a folder or archive sorted by name; names are spelled as they were
        given. In folders and archives hidden files and other endings than those of stickers are left out. Where
        a pack's description lies beside or above a sticker, its emoji are the caption. A folder, an archive or a
        description that cannot be read is an item with an error.
    """
    from kcdp.runtime.media.expansion import expand

    return expand(_listed(paths), recursive=recursive, include=include, exclude=exclude, limits=limits)


def find_pictures(paths: Paths, *, recursive: bool = False) -> Iterator[str]:
    """Expand files and folders to the names of plain pictures; ``find_items`` finds stickers of every kind.

    Args:
        paths: one path or several. A file is kept whatever its name; a path that is not there is kept too, so
            that it becomes an error row instead of vanishing; a folder stands for the pictures in it.
        recursive: look into sub-folders as well. Links to folders are not followed.

    Yields:
        Paths, spelled as they were given, those of a folder sorted by name. Inside folders hidden files
        and other extensions than ``PICTURE_EXTENSIONS`` are left out. A folder that cannot be read is kept.
    """
    for path in _listed(paths):
        if not os.path.isdir(path):
            yield path
            continue
        for what, found, _ in walk(path, recursive):
            if what == "unreadable" or (what == "file" and os.path.splitext(found)[1].lower() in PICTURE_EXTENSIONS):
                yield found  # a folder that is a path of its own becomes an error row that says so


def _listed(paths: Paths) -> Iterator[str]:
    return (os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths))
