"""Files and folders that are either whole or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kcdp.errors import KcdpError


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; when the block ends well it replaces ``path``.

    On any exception the temporary file is removed and what stood at ``path`` is untouched.

    Raises:
        KcdpError: the folder cannot be made or written to.
    """
    path = Path(path)
    make_folder(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise KcdpError(f"cannot write to {path.parent}: {error.strerror}", fix="choose another place") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        mode = 0o666 & ~_umask()
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KcdpError(
            f"writing {path} failed: {error.strerror or error}", fix="free some space or choose another place"
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside ``path``; when the block ends well it becomes ``path``.

    Raises:
        KcdpError: ``path`` exists and ``overwrite`` is False, or it cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise KcdpError(f"{path} exists already", "a new name", "choose another --out or add --overwrite")
    make_folder(path.parent)
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise KcdpError(f"cannot write to {path.parent}: {error.strerror}", fix="choose another place") from None
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            retired = temporary.with_suffix(".old")
            path.replace(retired)
            temporary.replace(path)
            shutil.rmtree(retired) if retired.is_dir() else retired.unlink()
        else:
            temporary.replace(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


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
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise KcdpError(f"{path} is not valid JSON ({error})", "a JSON file") from None


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
