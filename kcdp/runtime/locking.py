"""One writer to a file: a lock that ends with the process, however that ends."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: nothing is locked there
    fcntl = None  # type: ignore[assignment]


def take(descriptor: int) -> bool:
    """Lock an open file for this process; False where another open file has the lock. Some file systems know none."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def is_taken(path: Path) -> bool:
    """Whether somebody has the lock of a file now."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        return not take(descriptor)
    finally:
        os.close(descriptor)
