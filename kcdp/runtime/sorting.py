"""Copies or hard links of tagged pictures, in one folder for each emotion."""

from __future__ import annotations

import filecmp
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from kcdp.errors import KcdpError
from kcdp.files import make_folder
from kcdp.runtime.rows import TAGGED_AS

if TYPE_CHECKING:
    from kcdp.runtime.items import Item
    from kcdp.runtime.tagger import Tag

#: Folder of pictures that could be read as files, but not tagged.
FAILED = "failed"
#: Names of all folders that can be made.
FOLDERS: tuple[str, ...] = (*TAGGED_AS, FAILED)

_MOST_NUMBERS = 10_000
_LONGEST_NAME = 120
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


class Sorter:
    """Puts pictures into ``folder/EMOTION/NAME``. Nothing is overwritten; an equal file that is there is kept.

    Args:
        folder: made where it is not there.
        link: make hard links instead of copies. What cannot be linked is an error, never a copy.
    """

    def __init__(self, folder: str, *, link: bool = False) -> None:
        self._folder, self._link = Path(folder), link
        self.placed: Counter[str] = Counter()
        self.without_file = 0

    def add(self, item: Item, tag: Tag) -> None:
        """Places one picture; one that is no file at all is counted or, where there is none, passed over.

        Raises:
            KcdpError: it cannot be copied or linked.
        """
        place = self._folder / (FAILED if tag.error is not None else str(tag.label))
        source = item.source
        if isinstance(source, (str, os.PathLike)):
            if not os.path.isfile(source):
                return  # its row says so
            self._publish(item.name, place / Path(source).name, lambda path: _copy(Path(source), path), Path(source))
        elif callable(source) or isinstance(source, (bytes, bytearray, memoryview)):
            self._from_bytes(item, place, failed=tag.error is not None)
        else:
            self.without_file += 1

    def told(self) -> list[str]:
        """Lines for the end."""
        counts = ", ".join(f"{name} {self.placed[name]}" for name in FOLDERS if self.placed[name])
        lines = [f"sorted into {self._folder}: {counts or 'nothing'}"]
        if self.without_file:
            lines.append(f"pictures that are no files, not sorted: {self.without_file}")
        return lines

    def _from_bytes(self, item: Item, place: Path, *, failed: bool) -> None:
        if item.error is not None:
            return  # its row says so
        if self._link:
            raise KcdpError(f"{item.name} is no file that could be linked", fix="leave out --link to copy")
        try:
            source = item.source() if callable(item.source) else item.source
        except KcdpError:
            if failed:
                return  # its row says so
            raise
        data = bytes(source)  # type: ignore[arg-type]
        self._publish(item.name, place / safe_name(item.name), lambda path: path.write_bytes(data), None)

    def _publish(self, name: str, wanted: Path, make: Callable[[Path], object], source: Path | None) -> None:
        verb = "linked" if self._link else "copied"
        try:
            make_folder(wanted.parent)
            if self._link and source is not None:
                _first_free(wanted, Path(os.path.realpath(source)))
            else:
                handle, temporary = tempfile.mkstemp(prefix=".kcdp-", suffix=".tmp", dir=wanted.parent)
                os.close(handle)
                try:
                    make(Path(temporary))
                    Path(temporary).chmod(_mode())
                    _first_free(wanted, Path(temporary))
                finally:
                    Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            fix = "leave out --link to copy" if self._link else "free some space or choose another --sort-into"
            raise KcdpError(
                f"{name} cannot be {verb} into {wanted.parent} ({error.strerror or error})", fix=fix
            ) from None
        self.placed[wanted.parent.name] += 1


def safe_name(name: str) -> str:
    """A file name, without any folder, that every system takes: of ``pack.zip/a/wave.png`` it is ``wave.png``."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    clean = "".join("_" if char in '<>:"|?*' or not char.isprintable() else char for char in last).strip(" ")
    clean = re.sub(r"^\.|[. ]+$", "_", clean) or "picture"
    stem, ending = os.path.splitext(clean)
    short = stem[: _LONGEST_NAME // 2] if len(clean.encode()) > _LONGEST_NAME else stem
    return ("_" if _RESERVED.match(clean) else "") + short + ending[:20]


def _first_free(wanted: Path, file: Path) -> None:
    """Gives ``file`` the name ``wanted``, or the first numbered one that is free or has an equal file."""
    for path in _numbered(wanted):
        try:
            os.link(file, path)
            return
        except FileExistsError:
            if _equal(file, path):
                return
        except OSError:
            if not file.name.startswith(".kcdp-"):
                raise  # asked to link, and it cannot be done
            if _claimed(path):  # a file system without hard links: claim the name, then put the copy in its place
                file.replace(path)
                return
            if _equal(file, path):
                return
    raise KcdpError(f"{wanted} and {_MOST_NUMBERS} numbered names are taken", fix="choose another --sort-into")


def _numbered(wanted: Path) -> Iterator[Path]:
    yield wanted
    for number in range(2, _MOST_NUMBERS + 2):
        yield wanted.with_name(f"{wanted.stem} ({number}){wanted.suffix}")


def _equal(file: Path, other: Path) -> bool:
    return other.is_file() and (os.path.samefile(file, other) or filecmp.cmp(file, other, shallow=False))


def _claimed(path: Path) -> bool:
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    times = source.stat()
    os.utime(target, ns=(times.st_atime_ns, times.st_mtime_ns))


def _mode() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
