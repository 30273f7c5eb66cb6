"""``python -m kcdp.export engine``: a bundle in, a TensorRT engine out."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from kcdp.bundle import Bundle
from kcdp.cache import ENVIRONMENT, cache_folder
from kcdp.cli import say
from kcdp.engine_file import MODULES, sidecar
from kcdp.errors import KcdpError
from kcdp.export.engine.batches import BatchRange
from kcdp.export.engine.builder import BuildOptions
from kcdp.export.engine.capabilities import check_capabilities
from kcdp.export.engine.make import MadeEngine, make_engine, target_text
from kcdp.export.engine.package import AUTO, RTX, open_package
from kcdp.export.engine.tool_line import try_line
from kcdp.export.engine.true_types import EngineTypeError
from kcdp.gpu import find_gpu
from kcdp.training.interrupts import interrupts_raise

#: MiB: a tebibyte.
MOST_WORKSPACE = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle, exported with --target tensorrt")
    parser.add_argument(
        "--package", choices=(AUTO, *MODULES), default=AUTO,
        help="tensorrt builds for this machine's GPU, tensorrt-rtx for GeForce and RTX cards without needing one",
    )  # fmt: skip
    parser.add_argument(
        "--capability", metavar="SM89", action="append", default=[],
        help="a card to build for, with tensorrt-rtx (repeatable; default: any from Ampere on)",
    )  # fmt: skip
    parser.add_argument(
        "--profile", metavar="MIN:OPT:MAX",
        help="batches, where the bundle's batch is free (default: those it was exported for)",
    )  # fmt: skip
    parser.add_argument("--workspace", metavar="MIB", type=int, help="most scratch memory (default: no limit)")
    parser.add_argument("--out", metavar="FILE", help="the engine to write (default: a name in the cache)")
    parser.add_argument("--overwrite", action="store_true", help="replace another engine at --out")
    parser.add_argument("--rebuild", action="store_true", help="build even if the engine is there already")
    parser.add_argument("--cache", metavar="DIR", help=f"cache folder (default: ${ENVIRONMENT} or ~/.cache/kcdp)")
    parser.add_argument("--allow-float32", action="store_true", help="build a bundle of float32 too")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the steps")


def run(args: argparse.Namespace) -> int:
    """Build; 0 when the engine is there, 1 when its types are not what the bundle says."""
    with interrupts_raise():
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    batches = None if args.profile is None else BatchRange.parse(args.profile)
    if args.workspace is not None and not 1 <= args.workspace <= MOST_WORKSPACE:
        raise KcdpError(f"--workspace {args.workspace}", f"a number of MiB from 1 to {MOST_WORKSPACE}")
    bundle = Bundle.open(args.bundle)
    if batches is None and bundle.manifest.export.get("profile"):
        batches = BatchRange.parse(":".join(map(str, bundle.manifest.export["profile"])))
    gpu = find_gpu()
    package = open_package(args.package, gpu, tuple(args.capability))
    precision = bundle.manifest.precision["default"]
    capabilities = check_capabilities(args.capability, package.module, precision) if args.capability else ()
    try:
        made = make_engine(
            bundle, package, BuildOptions(batches, capabilities, args.workspace), cache_folder(args.cache), gpu=gpu,
            out=None if args.out is None else Path(args.out), overwrite=args.overwrite, rebuild=args.rebuild,
            allow_float32=args.allow_float32, say=lambda line: None if args.json else say(line),
            progress=sys.stderr.isatty(),
        )  # fmt: skip
    except EngineTypeError as error:
        print(f"kcdp: error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"engine": None, "layers": error.layers}))
        return 1
    if args.json:
        print(json.dumps(_facts(made)))
    else:
        _print(made)
    return 0


def _facts(made: MadeEngine) -> dict[str, object]:
    facts = {k: v for k, v in made.description.to_dict().items() if k not in ("labels", "preprocess", "graph")}
    return {"engine": str(made.path), "description": str(sidecar(made.path)), "cached": made.cached, **facts}


def _print(made: MadeEngine) -> None:
    described = made.description
    how = "already built" if made.cached else f"built in {described.build_seconds:.1f} s"
    print(f"{made.path}: {described.bytes / 1e6:.1f} MB, {how}, for {target_text(described.key)}")
    if described.kernels is None:
        print("the builder's report of kernels could not be read: only the parsed network's types were checked")
    else:
        print("kernels: " + ", ".join(f"{count} {name}" for name, count in described.kernels.items()))
    if described.key.package == RTX:
        print("built without running it: speed and answers on a card are yet to be measured")
    print(f"the same with NVIDIA's tool: {described.command}")
    print(f"next, where the card is: {try_line(described.key.package, made.path)}")
