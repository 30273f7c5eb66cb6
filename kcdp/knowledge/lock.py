"""One writer at a time: a lock file that the system releases when its process ends, however it ends."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kcdp.errors import KcdpError
from kcdp.files import make_folder

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

#: Windows locks bytes, and a locked byte cannot be read: one far behind the text.
_BYTE = 1 << 30


class LockedError(KcdpError):
    """Another process, or another part of this one, holds the lock."""


@contextmanager
def writer_lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Holds the lock at ``path``, or refuses: at once, or after ``patience`` seconds of waiting, which it announces.

    The file names the process for the message; the lock itself is the operating system's. A file left behind by a
    process that was killed is therefore taken over, and one of a process whose number has been given anew to another
    is not mistaken for a living lock.

    Raises:
        LockedError: another process, or another part of this one, holds it.
        KcdpError: the file cannot be made.
    """
    make_folder(path.parent)
    try:
        handle = _open_patiently(path, patience)
    except OSError as error:
        raise KcdpError(f"writing {path} failed ({error.strerror or error})", fix="choose another place") from None
    if handle is None:
        raise LockedError(
            f"{path.parent} is being written by {_holder(path)}", "one writer at a time", "wait for it, or stop it"
        )
    try:
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
        os.ftruncate(handle, 0)
        os.write(handle, owner.encode())
        yield
    finally:
        if sys.platform != "win32":  # there, an open file cannot be removed; an empty one does no harm
            path.unlink(missing_ok=True)
        os.close(handle)


def _open_patiently(path: Path, patience: float) -> int | None:
    deadline, told = time.monotonic() + patience, False
    while (handle := _open_locked(path)) is None and time.monotonic() < deadline:
        if not told:
            print(f"waiting for {_holder(path)}, which is writing {path.parent}", file=sys.stderr)
        told = True
        time.sleep(0.1)
    return handle


def _open_locked(path: Path) -> int | None:
    """A handle that holds the lock, or None where another has it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if not _try(handle):
                os.close(handle)
                return None
            if sys.platform == "win32" or _still_there(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder removed the file between our opening and our locking it


def _still_there(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _try(handle: int) -> bool:
    try:
        if sys.platform == "win32":
            os.lseek(handle, _BYTE, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _holder(path: Path) -> str:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
