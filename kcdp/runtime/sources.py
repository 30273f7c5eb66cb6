"""From the paths a user names to the pictures that are tagged, in a settled order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from kcdp.files import PICTURE_EXTENSIONS


def find_pictures(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, recursive: bool = False
) -> Iterator[str]:
    """Expand files and folders.

    Args:
        paths: one path or several. A file is kept whatever its name; a path that is not there is kept too, so
            that it becomes an error row instead of vanishing; a folder stands for the pictures in it.
        recursive: look into sub-folders as well. Links to folders are not followed.

    Yields:
        Paths, spelled as they were given, those of a folder sorted by name. Inside folders hidden files
        and other extensions than ``EXTENSIONS`` are left out. A folder that cannot be read is kept.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    for path in paths:
        name = os.fspath(path)
        if os.path.isdir(name):
            yield from _pictures_in(name, recursive)
        else:
            yield name


def _pictures_in(folder: str, recursive: bool) -> Iterator[str]:
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError:
        yield folder  # becomes an error row that says so
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if recursive and not entry.is_symlink():
                yield from _pictures_in(entry.path, recursive)
        elif os.path.splitext(entry.name)[1].lower() in PICTURE_EXTENSIONS:
            yield entry.path
