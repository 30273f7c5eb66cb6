"""Which of NVIDIA's two packages builds the engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from kcdp.engine_file import MODULES
from kcdp.errors import KcdpError, require
from kcdp.gpu import Gpu

#: An object of either package.
Native: TypeAlias = Any

CLASSIC, RTX = "tensorrt", "tensorrt-rtx"
AUTO = "auto"
#: (first version, oldest compute capability) of the package ``tensorrt``, newest first. From NVIDIA's release notes:
#: https://docs.nvidia.com/deeplearning/tensorrt/latest/getting-started/release-notes-10/10.5.0.html
_OLDEST_CARDS = (((10, 5), (7, 5)), ((10, 0), (7, 0)))
#: Major versions of the package ``tensorrt`` whose interface this code was written for.
CLASSIC_MAJORS = (10, 11)


@dataclass(frozen=True)
class Package:
    """An installed package.

    Attributes:
        name: ``CLASSIC`` or ``RTX``, as pip and the extras know it.
        module: the imported package.
    """

    name: str
    module: Native

    @property
    def version(self) -> str:
        """Whole, as in "11.4.0.106": engines of another one do not load."""
        return str(self.module.__version__)

    @property
    def label(self) -> str:
        """For messages: "tensorrt-rtx 1.7.1.116"."""
        return f"{self.name} {self.version}"


def open_package(choice: str, gpu: Gpu | None, capabilities: tuple[str, ...] = ()) -> Package:
    """Import the package.

    Args:
        choice: its name, or ``AUTO``: ``tensorrt`` on a machine with a GPU, where it is installed and no other
            compute capability was asked for; else ``tensorrt-rtx``, which builds without one.
        gpu: this machine's.
        capabilities: asked for by name.

    Raises:
        KcdpError: not installed (with the install line), cannot be loaded, of an unknown version, or unable to build
            here.
    """
    if choice != AUTO:
        package = _load(choice)
    else:
        package = _load_any((CLASSIC, RTX) if gpu is not None and not capabilities else (RTX,))
    if package.name == CLASSIC:
        _check_classic(package, gpu, capabilities)
    return package


def _load(name: str) -> Package:
    try:
        return Package(name, require(MODULES[name], name))
    except (ImportError, OSError) as error:  # a library of CUDA or of the package itself is missing
        reason = str(error).splitlines()[0]
        raise KcdpError(f"the package {name!r} cannot be loaded: {reason}", fix=_install(name)) from None


def _load_any(names: tuple[str, ...]) -> Package:
    for name in names[:-1]:
        try:
            return _load(name)
        except KcdpError:
            continue
    try:
        return _load(names[-1])
    except KcdpError as error:
        raise KcdpError(
            error.received, fix=f"{_install(RTX)} (builds without a GPU, for GeForce and RTX cards), or on a "
            f"machine with a GPU {_install(CLASSIC)}",
        ) from None  # fmt: skip


def _install(name: str) -> str:
    return f'run: pip install "kcdp[{name}]"'


def _check_classic(package: Package, gpu: Gpu | None, capabilities: tuple[str, ...]) -> None:
    major = package.version.split(".")[0]
    if major not in map(str, CLASSIC_MAJORS):
        raise KcdpError(f"{package.label} is installed", f"major version {' or '.join(map(str, CLASSIC_MAJORS))}")
    if capabilities:
        raise KcdpError(
            f"--capability {' --capability '.join(capabilities)} with the package {CLASSIC!r}",
            "no --capability: it builds for the GPU of the machine it runs on", f"or choose --package {RTX}",
        )  # fmt: skip
    if gpu is None:
        raise KcdpError(
            f"no NVIDIA GPU was found, and the package {CLASSIC!r} builds for the GPU of the machine it runs on",
            fix=f"build where the engine is to run, or choose --package {RTX}",
        )
    numbers = tuple(int(part) for part in package.version.split(".")[:2] if part.isdecimal())
    oldest = next(capability for first, capability in _OLDEST_CARDS if numbers >= first[: len(numbers)])
    if gpu.capability < oldest:
        raise KcdpError(
            f"{gpu.name} is {gpu.architecture}", f"SM{oldest[0]}{oldest[1]} or newer, which {package.label} builds for",
            "build on another machine",
        )  # fmt: skip
