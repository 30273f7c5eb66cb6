"""Where compiled graphs are kept: never inside a bundle, which its manifest's hashes seal."""

from __future__ import annotations

import os
from pathlib import Path

ENVIRONMENT = "KCDP_CACHE"
#: Engines that ``kcdp export engine`` builds; what session libraries compile for themselves.
ENGINES, COMPILED = "engines", "compiled"


def cache_folder(given: str | os.PathLike[str] | None = None, kind: str = ENGINES) -> Path:
    """The folder of one kind of compiled graphs: inside ``given``, $KCDP_CACHE or ~/.cache/kcdp."""
    root = given or os.environ.get(ENVIRONMENT)
    return (Path(root) if root else Path.home() / ".cache" / "kcdp") / kind
