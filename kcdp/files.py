"""Files and folders that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kcdp.errors import KcdpError

#: Endings of picture files, without regard to case: what folders are searched for. What a file really is,
#: its content decides later (``kcdp.decoding``).
PICTURE_EXTENSIONS = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp"})


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; when the block ends well it replaces ``path``.

    On any exception the temporary file is removed, with folders that were made for it, and what stood at ``path`` is
    untouched. A symbolic link at ``path`` is followed.

    Raises:
        KcdpError: ``path`` is a folder or a device, or its folder cannot be written to (disk full included).
    """
    path = Path(os.path.realpath(path))
    if os.path.exists(path) and not path.is_file():
        raise KcdpError(f"{path} is {'a folder' if path.is_dir() else 'not a regular file'}", "the name of a file")
    with new_folder(path.parent):
        with _writing(path):
            handle, name = tempfile.mkstemp(prefix=_hidden(path), suffix=".tmp", dir=path.parent)
            os.close(handle)
        temporary = Path(name)
        try:
            with _writing(path):
                yield temporary
                with temporary.open("rb") as written:
                    os.fsync(written.fileno())
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False, marker: str | tuple[str, ...] = ()) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``; when the block ends well it becomes ``path``.

    On any exception it is removed, with folders above it that were made for it.

    Args:
        overwrite: replace an existing folder, but only one that holds the files named by ``marker``: never a
            folder that something else has made.

    Raises:
        KcdpError: ``path`` exists and may not be replaced, or it cannot be written.
    """
    path = Path(os.path.realpath(path))
    check_replaceable(path, overwrite, (marker,) if isinstance(marker, str) else marker)
    with new_folder(path.parent):
        with _writing(path):
            temporary = Path(tempfile.mkdtemp(prefix=_hidden(path), suffix=".tmp", dir=path.parent))
        retired = temporary.with_suffix(".old")
        try:
            with _writing(path):
                yield temporary
                temporary.chmod(0o777 & ~_umask())
                check_replaceable(path, overwrite, (marker,) if isinstance(marker, str) else marker)  # meanwhile, too
                if path.exists():
                    path.replace(retired)
                temporary.replace(path)
        except BaseException:
            if retired.exists() and not path.exists():
                retired.replace(path)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    shutil.rmtree(retired, ignore_errors=True)


def check_writable(path: Path) -> None:
    """Raises KcdpError now where a folder or file at ``path`` could not be made later."""
    above = Path(os.path.realpath(path)).parent
    while not os.path.lexists(above) and above != above.parent:
        above = above.parent
    with _writing(path):
        with suppress(FileNotFoundError):
            os.lstat(above / path.name)  # refuses a name that is too long
        with tempfile.TemporaryDirectory(prefix=_hidden(path), suffix=".tmp", dir=above):
            pass


def check_replaceable(path: Path, overwrite: bool, markers: tuple[str, ...]) -> None:
    """Raises KcdpError where ``path`` exists and may not be replaced; see ``atomic_folder``."""
    if not os.path.exists(path):  # not Path.exists, which raises where a folder above cannot be entered
        if os.path.islink(os.path.realpath(path)):
            raise KcdpError(f"{path} is a link that leads in a circle", "a new name", "choose another --out")
        return
    if not overwrite:
        raise KcdpError(f"{path} exists already", "a new name", "choose another --out or add --overwrite")
    absent = [name for name in markers if not os.path.isfile(path / name)]
    if absent or not markers:
        raise KcdpError(
            f"{path} exists and holds no {absent[0] if absent else 'known content'}", "a folder that kcdp made",
            "choose another --out; other folders are never overwritten",
        )  # fmt: skip


#: What the system says where a disk, a quota or the longest file that it allows is full.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def _is_full(error: OSError) -> bool:
    """numpy, which writes through C, says "5000 requested and 1234 written", and no number of an error."""
    return error.errno in _FULL or (error.errno is None and "written" in str(error))


@contextmanager
def room_in(folder: Path, fix: str, needed: int = 0) -> Iterator[None]:
    """For writers that are not this module's: a full disk in the block becomes one line.

    Args:
        folder: what is written to.
        fix: what to do about it.
        needed: bytes; 0: not known.

    Raises:
        KcdpError: there is no room for what the block writes. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        if not _is_full(error):
            raise
        reason = error.strerror or os.strerror(errno.ENOSPC)
        free = shutil.disk_usage(folder).free if error.errno != errno.EFBIG and os.path.isdir(folder) else None
        left = "" if free is None else f", {free / 1e6:.0f} MB are free"
        expected = f"room for about {math.ceil(needed / 1e6)} MB" if needed else ""
        raise KcdpError(f"writing to {folder} failed ({reason}{left})", expected, fix) from error


@contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """In the block ``path`` is a folder. On any exception those that were made for it are removed, if they are empty.

    Raises:
        KcdpError: it cannot be made.
    """
    path = Path(os.path.realpath(path))
    made, above = [], path
    while not os.path.lexists(above):
        made.append(above)
        above = above.parent
    try:
        make_folder(path)
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):  # somebody has put something there meanwhile
                folder.rmdir()
        raise


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        too_long = error.errno == errno.ENAMETOOLONG
        fix = "free some space or choose another place" if _is_full(error) else "choose another place"
        fix = "choose a shorter name" if too_long else fix
        raise KcdpError(f"writing {path} failed ({error.strerror or error})", fix=fix) from error


def _hidden(path: Path) -> str:
    """How a temporary name begins: short, so that a name of the greatest length can be written too."""
    return f".{path.name[:24]}."


def write_json(path: str | Path, data: Any) -> None:
    """UTF-8, indented, written whole or not at all. NaN and infinities are refused (ValueError)."""
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Raises KcdpError when the file is missing or is not JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise KcdpError(f"{path} does not exist", "a JSON file") from None
    except OSError as error:
        raise KcdpError(f"{path} cannot be read ({error.strerror})", "a JSON file") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KcdpError(f"{path} is not valid JSON ({error})", "a JSON file") from None


def sha256_json(data: Any) -> str:
    """Hexadecimal SHA-256 of JSON data; spaces and the order of keys do not count."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha(handle)


def make_folder(path: Path) -> None:
    """``mkdir -p`` with a one-line error."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KcdpError(f"cannot make the folder {path}: {error.strerror}", fix="choose another place") from None


def _sha(handle: Any) -> str:
    digest = hashlib.sha256()
    while chunk := handle.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
