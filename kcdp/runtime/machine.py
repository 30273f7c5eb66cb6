"""What this machine can run and read, as plain data: the system is asked, and packages are tried."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any

from kcdp import __version__
from kcdp.engine_file import system_name
from kcdp.gpu import Gpu, find_gpu
from kcdp.runtime.backends.base import ABSENT, UNUSABLE, USABLE, Status, broken
from kcdp.runtime.backends.options import DEFAULTS
from kcdp.runtime.backends.registry import BACKENDS
from kcdp.runtime.processor import features, processor_name, processors

#: extra -> what it is for, and the packages that it brings, as they are imported.
EXTRAS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType({
    "serve": ("tags over HTTP", ("fastapi", "uvicorn", "python_multipart", "prometheus_client")),
    "ray": ("many pictures on many machines", ("ray",)),
    "train": ("training", ("torch", "torchvision", "diffusers")),
    "export": ("bundles from trained models", ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime")),
})  # fmt: skip


def _pillow(name: str) -> Status:
    """Whether Pillow was built with a codec; name: None for those that it always has."""
    import PIL
    from PIL import features as codecs

    if codecs.check(name):
        return Status(USABLE, f"Pillow {PIL.__version__}")
    return Status(ABSENT, "", f"this Pillow {PIL.__version__} is built without it", "run: pip install -U Pillow")


def _package(module: str, extra: str) -> Status:
    """Whether a package can be imported."""
    try:
        loaded = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        return Status(ABSENT, "", f"the package {missing!r} is not installed", f'run: pip install "kcdp[{extra}]"')
    except Exception as error:
        return Status(UNUSABLE, "", f"{module}: {broken(error)}", f'run: pip install -U "kcdp[{extra}]"')
    return Status(USABLE, f"{module} {_version(module) or getattr(loaded, '__version__', '')}".strip())


def _avif() -> Status:
    built_in = _pillow("avif")
    return built_in if built_in.usable else _package("pillow_heif", "heif")


#: format -> how to find out whether it can be read.
FORMATS: Mapping[str, Callable[[], Status]] = MappingProxyType({
    "PNG": lambda: _pillow("zlib"),
    "JPEG": lambda: _pillow("jpg"),
    "WebP": lambda: _pillow("webp"),
    "GIF": lambda: Status(USABLE, "Pillow"),
    "AVIF": _avif,
    "HEIF": lambda: _package("pillow_heif", "heif"),
    "TGS": lambda: _package("rlottie_python", "stickers"),
    "WebM": lambda: _package("av", "stickers"),
})  # fmt: skip


def survey() -> dict[str, Any]:
    """Plain JSON types: the system, the processor, cards of NVIDIA, backends, formats of pictures, extras."""
    found = features()
    return {
        "kcdp": __version__,
        "system": system_name(),
        "release": platform.platform(),
        "python": platform.python_version(),
        "processor": {
            "name": processor_name(), "cores": processors(), "features": None if found is None else list(found),
        },
        "gpus": [{"name": gpu.name, "architecture": gpu.architecture} for gpu in _gpus()],
        "backends": {
            name: {"what": backend.what, **_row(backend.status(DEFAULTS)), "options": sorted(backend.options),
                   "verified": backend.verified}
            for name, backend in BACKENDS.items()
        },
        "formats": {name: _row(probe()) for name, probe in FORMATS.items()},
        "extras": {name: {"what": what, **_row(_extra(name, modules))} for name, (what, modules) in EXTRAS.items()},
    }  # fmt: skip


def _row(status: Status) -> dict[str, str]:
    return {"state": status.state, "version": status.version, "reason": status.reason, "fix": status.fix}


def _extra(name: str, modules: tuple[str, ...]) -> Status:
    """Whether the packages of an extra are installed; they are not imported, which takes seconds."""
    missing = [module for module in modules if not _version(module)]
    if missing:
        return Status(ABSENT, "", f"missing: {', '.join(missing)}", f'run: pip install "kcdp[{name}]"')
    return Status(USABLE, f"{modules[0]} {_version(modules[0])}")


def _version(module: str) -> str:
    """Of the package that a module belongs to; empty where it is not installed."""
    try:
        return version(module)
    except PackageNotFoundError:
        return ""


def _gpus() -> list[Gpu]:
    found: list[Gpu] = []
    while (gpu := find_gpu(len(found))) is not None:
        found.append(gpu)
    return found
