"""The engine of a bundle: the file that was named, or the one in the cache that fits this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kcdp.bundle import Bundle, Manifest
from kcdp.cache import cache_folder
from kcdp.engine_file import SUFFIX, EngineDescription, Place, misfits, model_digest, read_engine_description, sidecar
from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.graph import GraphSpec
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.backends.options import SessionOptions

BUILD = "build one: python -m kcdp.export engine"


@dataclass(frozen=True)
class EngineBundle(Bundle):
    """An engine that stands alone: ``path`` is the engine, the manifest what the file beside it says."""

    @property
    def model_path(self) -> Path:
        """The engine."""
        return self.path


def bundle_of_engine(path: str | os.PathLike[str]) -> EngineBundle:
    """What a session needs to know of an engine that came without its bundle.

    Raises:
        KcdpError: a file is missing or damaged, or the engine takes scaled pictures, which needs its bundle.
    """
    path = Path(path)
    described = read_engine_description(path)
    manifest = Manifest(
        labels=described.labels,
        preprocess=PreprocessSpec.from_dict(dict(described.preprocess)),
        graph=GraphSpec.from_dict(dict(described.graph)),
        knowledge=described.knowledge,
        precision={"default": described.precision},
        target="tensorrt",
        opset=0,
        calibration=described.calibration,
    )
    return EngineBundle(path, manifest)


def find_engine_file(
    bundle: Bundle, package: str, options: SessionOptions, here: Place
) -> tuple[Path, EngineDescription]:
    """The engine to open. Its bytes are not read here: ``open_engine_description`` does, before it is loaded.

    Args:
        package: a key of ``kcdp.engine_file.MODULES``.
        here: this machine.

    Raises:
        KcdpError: there is none, or none that fits here, with every reason.
    """
    if isinstance(bundle, EngineBundle) or options.engine is not None:
        path = bundle.path if options.engine is None else Path(options.engine)
        if not path.is_file() or not sidecar(path).is_file():
            raise KcdpError(f"{path} is not there, or has no {sidecar(path).name} beside it", "an engine",
                            f"{BUILD} BUNDLE")  # fmt: skip
        described = _described(path)
        if described.key.package != package:
            raise KcdpError(f"{path} is an engine of {described.key.package}", f"one of {package}",
                            f"choose the backend {described.key.package}")  # fmt: skip
        return path, described
    folder = cache_folder(options.cache)
    model, found, reasons = model_digest(bundle.manifest.files), [], []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            described = _described(path)
        except KcdpError:  # of another version, or damaged: as if it were not there
            continue
        if described.key.package != package or described.key.model_sha256 != model:
            continue
        why = misfits(described.key, here)
        reasons += why
        if not why:
            found.append((bool(described.key.gpu), path.stat().st_mtime, path, described))
    if not found:
        why_not = f", only some that do not fit: {' | '.join(dict.fromkeys(reasons))}" if reasons else ""
        raise KcdpError(f"{folder} holds no {package} engine of {bundle.path}{why_not}", fix=f"{BUILD} {bundle.path}")
    *_, path, described = max(found, key=lambda row: row[:2])  # built for this very card, then the newest
    return path, described


def _described(path: Path) -> EngineDescription:
    return EngineDescription.from_dict(read_json(sidecar(path)), str(sidecar(path)))
