"""What the package ``tensorrt`` measured of its kernels on this GPU, kept for the next build.

``tensorrt-rtx`` measures nothing while it builds: there the same calls do nothing and warn.
"""

from __future__ import annotations

import re
from pathlib import Path

from kcdp.errors import KcdpError
from kcdp.export.engine.package import Native, Package
from kcdp.files import atomic_file
from kcdp.gpu import Gpu


def timing_path(folder: Path, package: Package, gpu: Gpu) -> Path:
    """One file per package version and card."""
    card = re.sub(r"\W+", "-", gpu.name).strip("-").lower()
    return folder / f"timing-{package.name}-{package.version}-{card}-{gpu.architecture.lower()}.cache"


def use_timings(config: Native, path: Path) -> None:
    """Give the builder what is in the file, or nothing yet. A damaged file is as good as none."""
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    cache = config.create_timing_cache(stored)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def keep_timings(config: Native, path: Path) -> bool:
    """Write them for the next build. Returns False where they could not be kept, which costs time and nothing else."""
    cache = config.get_timing_cache()
    if cache is None:
        return False
    data = memoryview(cache.serialize())
    try:
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
    except KcdpError:
        return False
    return True
