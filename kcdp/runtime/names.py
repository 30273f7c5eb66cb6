"""Bundles by name: an app says "stickers", and where that lies is the machine's business."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from kcdp.cache import cache_folder
from kcdp.errors import KcdpError, nearest

#: Folders of bundles, separated as in PATH.
ENVIRONMENT = "KCDP_MODELS"
SUFFIX = ".kcdp"


def find_model(path_or_name: str | os.PathLike[str]) -> Path:
    """Where a bundle, or an engine, lies.

    Args:
        path_or_name: a path; or a name without folders: ``NAME`` or ``NAME.kcdp`` in this folder, in one of those of
            the environment variable ``KCDP_MODELS``, or in ``models`` of the cache folder.

    Raises:
        KcdpError: a name that is nowhere; where it was looked for, and what is there.
    """
    path = Path(path_or_name)
    if not os.fspath(path_or_name):
        raise KcdpError("the bundle's name is empty", "a bundle folder, or the name of one")
    if path.exists() or path.name != os.fspath(path_or_name):
        return path  # what it is, and whether it is there, opening it tells
    names = dict.fromkeys((path.name, path.name.removesuffix(SUFFIX) + SUFFIX))
    folders = [Path(), *model_folders()]
    for folder in folders:
        for name in names:
            if (folder / name).exists():
                return folder / name
    known = sorted({bundle.stem for folder in folders if folder.is_dir() for bundle in folder.glob(f"*{SUFFIX}")})
    looked = ", ".join(str(folder) for folder in folders)
    there = f"one of {', '.join(known)}" if known else "a bundle folder"
    raise KcdpError(
        f"{path.name} is not there{nearest(path.name, known)} (looked in {looked})", there,
        "make one with: python -m kcdp.export RUN --out NAME.kcdp",
    )  # fmt: skip


def model_folders() -> Iterator[Path]:
    """Those of ``KCDP_MODELS``, then the cache's own."""
    yield from (Path(folder).expanduser() for folder in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if folder)
    yield cache_folder(kind="models")
