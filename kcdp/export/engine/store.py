"""Names of engines: in the cache, under their key, and where the user says."""

from __future__ import annotations

from pathlib import Path

from kcdp.bundle import MANIFEST
from kcdp.engine_file import SUFFIX, EngineDescription, EngineKey, read_engine_description, sidecar
from kcdp.errors import KcdpError

_KEY_LETTERS = 16


def cached_path(folder: Path, name: str, key: EngineKey) -> Path:
    """Where the engine of this key belongs.

    Args:
        name: for people, the bundle's without its ending.
    """
    return folder / f"{name}-{key.digest[:_KEY_LETTERS]}{SUFFIX}"


def check_out(out: Path, overwrite: bool, key: EngineKey) -> None:
    """Raises KcdpError where an engine may not be written to ``out``."""
    if out.suffix in ("", ".json"):
        raise KcdpError(f"--out {out}", f"a file name with an ending such as NAME{SUFFIX}")
    if (out.parent / MANIFEST).is_file() or out.is_dir():
        what = "is a folder" if out.is_dir() else "is inside a bundle, which is sealed"
        raise KcdpError(f"--out {out} {what}", "a file elsewhere", f"for example {out.name}")
    if sidecar(out).exists() and not out.exists() and not overwrite:
        raise KcdpError(f"{sidecar(out)} exists already, where the engine's description goes", "a new name",
                        "or add --overwrite")  # fmt: skip
    if out.exists() and not overwrite and find_engine(out, key) is None:
        raise KcdpError(f"{out} exists already and is another engine", "a new name", "or add --overwrite")


def find_engine(path: Path, key: EngineKey) -> EngineDescription | None:
    """The engine at ``path`` where it is whole and of this key."""
    if not path.is_file() or not sidecar(path).is_file():
        return None
    try:
        description = read_engine_description(path)
    except KcdpError:
        return None
    return description if description.key == key else None
