"""A TensorRT engine on disk and the JSON beside it that says what it is and where it may run.

An engine is machine code: it fits one version of one package, one kind of GPU and one graph. TensorRT itself notices
some misfits only when it crashes or answers wrongly, so nothing is loaded before ``open_engine_description`` agrees.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from kcdp.bundle import MODEL
from kcdp.errors import KcdpError, require
from kcdp.files import atomic_file, new_folder, read_json, sha256_file, sha256_json, write_json
from kcdp.gpu import Gpu, find_gpu

FORMAT_VERSION = 2
SUFFIX = ".engine"

#: package -> the module it is imported as.
MODULES: Mapping[str, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
#: NVIDIA documents engines of tensorrt-rtx as portable between these two.
_RTX_SYSTEMS = frozenset({"linux-x86_64", "windows-x86_64"})
#: The oldest compute capability of a portable engine of tensorrt-rtx (Ampere).
_PORTABLE_FROM = (8, 0)
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


@dataclass(frozen=True)
class EngineKey:
    """Everything that two engines must share to be interchangeable.

    Attributes:
        model_sha256: of the graph and its weights; see ``model_digest``.
        package: a key of ``MODULES``.
        package_version: exactly; an engine of 10.3.0 does not load in 10.3.1.
        gpu: the card's name; empty for an engine that was built for compute capabilities, without a card.
        capabilities: ("SM89", ...) that it runs on; empty: any from Ampere on.
        system: "linux-x86_64".
        profile: least, best and largest batch; None where the graph's batch is fixed.
        options: what else changes the result.
    """

    model_sha256: str
    package: str
    package_version: str
    gpu: str
    capabilities: tuple[str, ...]
    system: str
    profile: tuple[int, int, int] | None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 of the fields above; spaces and the order of keys do not count."""
        return sha256_json(asdict(self))


@dataclass(frozen=True)
class EngineDescription:
    """The file beside an engine.

    Attributes:
        key: where it fits.
        sha256, bytes: of the engine file.
        bundle: name of the bundle it was built from.
        precision: the bundle's ("float16").
        labels: class names in the order of the logits.
        preprocess: how a picture becomes the input; ``PreprocessSpec.from_dict`` reads it.
        graph: inputs and outputs in order; ``GraphSpec.from_dict`` reads it.
        knowledge: the bundle's knowledge mode.
        calibration: {"temperature": T}.
        tolerances: of the parity gate for this precision; None where there are none.
        layers: of the parsed network: {"CONVOLUTION HALF": 70, ...}.
        kernels: of the builder's report: {"correlation Half": 70, ...}; None where it could not be read.
        memory: bytes for weights and activations, as the builder reports them.
        build_seconds: wall clock.
        command: NVIDIA's own tool doing the same.
        producer: version of kcdp.
    """

    key: EngineKey
    sha256: str
    bytes: int
    bundle: str
    precision: str
    labels: tuple[str, ...]
    preprocess: Mapping[str, Any]
    graph: Mapping[str, Any]
    knowledge: Mapping[str, Any]
    calibration: Mapping[str, float]
    tolerances: Mapping[str, Any] | None
    layers: Mapping[str, int]
    kernels: Mapping[str, int] | None
    memory: Mapping[str, int]
    build_seconds: float
    command: str
    producer: str

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` is the inverse."""
        data = {"format_version": FORMAT_VERSION, **asdict(self)}
        return {**data, "digest": sha256_json(data)}

    @classmethod
    def from_dict(cls, data: Any, where: str) -> EngineDescription:
        """Raises KcdpError where ``data`` is not what ``to_dict`` gave, or was changed since."""
        fix = "build the engine again: python -m kcdp.export engine BUNDLE"
        version = data.get("format_version") if isinstance(data, dict) else None
        if version != FORMAT_VERSION:
            raise KcdpError(f"{where} has engine format {version}", f"format {FORMAT_VERSION}", fix)
        names = {f.name for f in fields(cls)} | {"format_version", "digest"}
        if set(data) != names or not isinstance(data["key"], dict):
            raise KcdpError(f"{where} has other fields: {', '.join(sorted(set(data) ^ names)) or 'key'}", fix=fix)
        try:
            profile = data["key"]["profile"]
            key = EngineKey(**{
                **data["key"], "capabilities": tuple(data["key"]["capabilities"]),
                "profile": None if profile is None else tuple(profile),
            })  # fmt: skip
        except (KeyError, TypeError) as error:
            raise KcdpError(f"{where} has a damaged key ({error!r})", fix=fix) from None
        contents = {name: data[name] for name in names - {"digest"}}
        if data["digest"] != sha256_json(contents) or key.package not in MODULES:
            raise KcdpError(f"{where} was changed or damaged: its contents do not match its digest", fix=fix)
        rest = {name: data[name] for name in names - {"format_version", "digest", "key", "labels"}}
        return cls(key=key, labels=tuple(data["labels"]), **rest)


@dataclass(frozen=True)
class Place:
    """Where an engine is to run.

    Attributes:
        package_version: of the engine's package, as installed here.
        gpu: the card; None where there is none.
        system: "linux-x86_64".
    """

    package_version: str
    gpu: Gpu | None
    system: str

    @classmethod
    def here(cls, package: str) -> Place:
        """This machine. Raises KcdpError where the package is not installed."""
        return cls(str(require(MODULES[package], package).__version__), find_gpu(), system_name())


def system_name() -> str:
    """Operating system and processor: "linux-x86_64", "windows-x86_64", "linux-aarch64"."""
    machine = platform.machine().lower()
    return f"{platform.system().lower()}-{_MACHINES.get(machine, machine)}"


def model_digest(files: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over the hashes of ``model.onnx`` and its weights, as a manifest's ``files`` lists them."""
    parts = [f"{name} {entry['sha256']}" for name, entry in sorted(files.items()) if name.startswith(MODEL)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sidecar(path: Path) -> Path:
    """The JSON file beside an engine."""
    return path.with_name(f"{path.name}.json")


def write_engine(path: Path, engine: memoryview, description: EngineDescription) -> None:
    """Write an engine, then its description; an old description goes first, so that the two never disagree unseen.

    Neither is there where the other cannot be written.
    """
    sidecar(path).unlink(missing_ok=True)
    with new_folder(path.parent):
        with atomic_file(path) as temporary:
            temporary.write_bytes(engine)
        try:
            write_json(sidecar(path), description.to_dict())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


def read_engine_description(path: str | Path) -> EngineDescription:
    """The description of an engine, once the engine's bytes agree with it. No GPU and no package is needed.

    Raises:
        KcdpError: a file is missing, or either was changed or damaged.
    """
    path = Path(path)
    fix = "build the engine again: python -m kcdp.export engine BUNDLE"
    if not path.is_file():
        raise KcdpError(f"{path} is not there", "an engine file", fix)
    if not sidecar(path).is_file():
        raise KcdpError(f"{path} has no {sidecar(path).name} beside it", "both files", "copy both, or build it again")
    description = EngineDescription.from_dict(read_json(sidecar(path)), str(sidecar(path)))
    size = path.stat().st_size
    if size != description.bytes:
        raise KcdpError(f"{path} was changed or damaged: it has {size} bytes", f"{description.bytes} bytes", fix)
    if sha256_file(path) != description.sha256:
        raise KcdpError(f"{path} was changed or damaged: its SHA-256 is not that of {sidecar(path).name}", fix=fix)
    return description


def open_engine_description(
    path: str | Path, *, model_sha256: str | None = None, here: Place | None = None
) -> EngineDescription:
    """The description of an engine that may be loaded here.

    Args:
        path: the engine file.
        model_sha256: of the graph that the caller means (``model_digest``); None: whichever the engine was built from.
        here: where it is to run; None asks this machine.

    Raises:
        KcdpError: damaged, or built for another graph, package version, GPU or system; every reason is named.
    """
    description = read_engine_description(path)
    here = Place.here(description.key.package) if here is None else here
    reasons = misfits(description.key, here, model_sha256)
    if reasons:
        again = "build it where it is to run: python -m kcdp.export engine BUNDLE"
        raise KcdpError(f"{path} does not fit here: {' | '.join(reasons)}", fix=again)
    return description


def misfits(key: EngineKey, here: Place, model_sha256: str | None = None) -> list[str]:
    """Why an engine must not be loaded at a place; empty where it may."""
    found = []
    if model_sha256 is not None and key.model_sha256 != model_sha256:
        found.append(f"it was built from another graph (model {key.model_sha256[:12]}…, not {model_sha256[:12]}…)")
    if key.package_version != here.package_version:
        found.append(f"it was built with {key.package} {key.package_version}, installed is {here.package_version}")
    portable = key.package == "tensorrt-rtx" and {key.system, here.system} <= _RTX_SYSTEMS
    if key.system != here.system and not portable:
        found.append(f"it was built for {key.system}, this is {here.system}")
    if here.gpu is None:
        found.append("no NVIDIA GPU was found here")
    elif key.gpu and (key.gpu != here.gpu.name or here.gpu.architecture not in key.capabilities):
        built = f"{key.gpu} ({', '.join(key.capabilities)})"
        found.append(f"it was built on {built}, this is {here.gpu.name} ({here.gpu.architecture})")
    elif key.capabilities and here.gpu.architecture not in key.capabilities:
        found.append(f"it was built for {', '.join(key.capabilities)}, this is {here.gpu.architecture}")
    elif not key.capabilities and here.gpu.capability < _PORTABLE_FROM:
        found.append(f"it was built for Ampere and later (SM80), this is {here.gpu.architecture}")
    return found
