"""From a bundle to an engine on disk: parse, check the types, build, check again, keep."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from kcdp import __version__
from kcdp.bundle import Bundle
from kcdp.engine_file import EngineDescription, EngineKey, model_digest, system_name, write_engine
from kcdp.errors import KcdpError
from kcdp.export.engine.batches import check_batches, check_volume
from kcdp.export.engine.builder import BuildOptions, BuiltEngine, build_engine
from kcdp.export.engine.layer_report import count_kernels
from kcdp.export.engine.network import Layer, count_layers, parse_graph
from kcdp.export.engine.package import CLASSIC, Package
from kcdp.export.engine.store import cached_path, check_out, find_engine
from kcdp.export.engine.timing import timing_path
from kcdp.export.engine.tool_line import tool_line
from kcdp.export.engine.true_types import Promise, check_kernels, check_network, products_by_type
from kcdp.files import check_writable
from kcdp.gpu import Gpu
from kcdp.graph import TOLERANCES


@dataclass(frozen=True)
class MadeEngine:
    """An engine on disk.

    Attributes:
        path: the engine; its description lies beside it.
        cached: it was there already.
    """

    path: Path
    description: EngineDescription
    cached: bool


def make_engine(
    bundle: Bundle,
    package: Package,
    options: BuildOptions,
    folder: Path,
    *,
    gpu: Gpu | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    rebuild: bool = False,
    allow_float32: bool = False,
    say: Callable[[str], None] = print,
    progress: bool = False,
) -> MadeEngine:
    """Build the engine of a bundle, or find it.

    Args:
        folder: of cached engines and timings.
        gpu: this machine's; what the package ``tensorrt`` builds for.
        out: where to write it; None: into ``folder``, under its key.
        overwrite: replace another engine at ``out``.
        rebuild: build even if it is there.
        allow_float32: take a bundle of float32.
        say: receives one line per step.
        progress: draw a bar.

    Raises:
        EngineTypeError: a product of the engine has another type than the bundle says; nothing was kept.
        KcdpError: the bundle, the options or the package do not fit; the message says which.
    """
    _check_precision(bundle, allow_float32)
    key = engine_key(bundle, package, options, gpu)
    path = out if out is not None else cached_path(folder, bundle.path.resolve().stem, key)
    if out is not None:
        check_out(out, overwrite, key)
    found = None if rebuild else find_engine(path, key)
    if found is not None:
        return MadeEngine(path, found, cached=True)
    check_writable(path)
    say(f"1/4 parse {bundle.model_path} with {package.label}")
    parsed = parse_graph(package, bundle.model_path)
    layers, promise = parsed.layers(), Promise.of(bundle.manifest.precision)
    say(f"2/4 {len(layers)} layers; matrix products and convolutions: {_counts(products_by_type(layers))}")
    check_network(layers, promise)
    check_batches(parsed.input_shapes(), options.batches)
    check_volume(parsed, options.batches)
    say(f"3/4 build for {target_text(key)}")
    timings = timing_path(folder, package, gpu) if package.name == CLASSIC and gpu is not None else None
    built = build_engine(parsed, options, timings, progress=progress)
    check_kernels(built.kernels, promise)
    say(f"4/4 write {path}")
    command = tool_line(package.name, bundle.model_path, path, parsed.input_shapes(), options)
    description = describe(bundle, key, layers, built, command)
    write_engine(path, built.data, description)
    return MadeEngine(path, description, cached=False)


def engine_key(bundle: Bundle, package: Package, options: BuildOptions, gpu: Gpu | None) -> EngineKey:
    """What the engine would be known by."""
    here = gpu if package.name == CLASSIC else None
    return EngineKey(
        model_sha256=model_digest(bundle.manifest.files),
        package=package.name,
        package_version=package.version,
        gpu="" if here is None else here.name,
        capabilities=options.capabilities if here is None else (here.architecture,),
        system=system_name(),
        profile=None if options.batches is None else options.batches.as_tuple(),
        options=options.key(),
    )


def target_text(key: EngineKey) -> str:
    """ "NVIDIA H100 (SM90)", "SM89, SM120", "any card from Ampere on"."""
    cards = ", ".join(key.capabilities) or "any card from Ampere on"
    return f"{key.gpu} ({cards})" if key.gpu else cards


def describe(
    bundle: Bundle, key: EngineKey, layers: list[Layer], built: BuiltEngine, command: str
) -> EngineDescription:
    """The file beside the engine."""
    manifest = bundle.manifest
    tolerance = TOLERANCES.get(manifest.precision["default"])
    return EngineDescription(
        key=key,
        sha256=hashlib.sha256(built.data).hexdigest(),
        bytes=built.data.nbytes,
        bundle=bundle.path.name,
        precision=manifest.precision["default"],
        labels=manifest.labels,
        preprocess=manifest.preprocess.to_dict(),
        graph=manifest.graph.to_dict(),
        knowledge=dict(manifest.knowledge),
        calibration=dict(manifest.calibration),
        tolerances=None if tolerance is None else asdict(tolerance),
        layers=count_layers(layers),
        kernels=None if built.kernels is None else count_kernels(built.kernels),
        memory=built.memory,
        build_seconds=round(built.seconds, 2),
        command=command,
        producer=__version__,
    )


def _check_precision(bundle: Bundle, allow_float32: bool) -> None:
    precision = bundle.manifest.precision["default"]
    if precision in ("float32", "int8-weights") and not allow_float32:
        raise KcdpError(
            f"{bundle.path} is a bundle of {precision}, and its engine would compute in float32",
            "float16, bfloat16 or int8",
            "export with: --target tensorrt --precision fp16 (or add --allow-float32)",
        )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
