"""``python -m kcdp.export``: a trained run in, a bundle out."""

from __future__ import annotations

import argparse
import json
import os
import sys

from kcdp.bundle import check_target
from kcdp.cli import say
from kcdp.errors import KcdpError, nearest, require
from kcdp.export.targets import PRECISIONS, TARGETS, Batch, choose
from kcdp.preprocess import SIZES
from kcdp.training import PACKAGES
from kcdp.training.interrupts import interrupts_raise

SUBCOMMANDS = {
    "engine": ("kcdp.export.command_engine", "build a TensorRT engine from a bundle"),
    "check": ("kcdp.export.command_check", "run a bundle's parity gate again"),
    "info": ("kcdp.export.command_info", "say what a bundle is"),
    "targets": ("kcdp.export.command_targets", "list targets, precisions and where each was verified"),
}


#: Those of ``kcdp.export.passes.registry``, told without loading PyTorch.
PASS_NAMES = (
    "lora", "timestep", "pixels", "autoencoder", "context", "attention", "pyramid", "experts", "winograd", "norms",
    "dead-branches",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="run folder (its best checkpoint) or a checkpoint file")
    parser.add_argument("--out", metavar="NAME.kcdp", required=True, help="the bundle to make")
    parser.add_argument("--target", default="portable", help=f"{', '.join(TARGETS)} (default: portable)")
    parser.add_argument("--precision", default="fp32", help=f"{', '.join(PRECISIONS)} (default: fp32)")
    parser.add_argument("--knowledge", help="input, constant or implicit (default: as the run has it)")
    parser.add_argument("--text", help="with --knowledge constant, of a run told by captions: the text of all pictures")
    parser.add_argument("--size", type=int, help="side of the pictures (default: as trained)")
    parser.add_argument("--batch", metavar="N|MIN:OPT:MAX", help="a fixed number of pictures, or a range for engines")
    parser.add_argument(
        "--check-images", metavar="SPEC",
        help="pictures for the parity gate (default: up to 200 of the run's validation pictures)",
    )  # fmt: skip
    parser.add_argument(
        "--calibration",
        metavar="SPEC",
        help="pictures to measure ranges on (default: some of the run's training pictures)",
    )
    parser.add_argument(
        "--skip-pass", metavar="NAME", action="append", default=[],
        help=f"leave out an exact pass (repeatable): {', '.join(PASS_NAMES)}",
    )  # fmt: skip
    parser.add_argument("--no-passes", action="store_true", help="leave out all: the plain export, to compare with")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument(
        "--keep-failed", metavar="DIR", help="leave a graph that fails the gate, and parity.md, there; it is no bundle"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the steps")


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the bundle is written, 1 when the parity gate failed."""
    check_arguments(args)
    with interrupts_raise():
        return _run(args)


def check_run(path: str) -> None:
    """Raises KcdpError where there is no such run: told before seconds of loading."""
    if not os.path.exists(path):
        raise KcdpError(
            f"{path} is not there", "a run folder with a checkpoint, or a checkpoint", "train one with: kcdp train"
        )


def check_arguments(args: argparse.Namespace) -> None:
    """Raises KcdpError for what can be told without loading anything."""
    check_run(args.run)
    Batch.parse(args.batch, choose(args.target, args.precision))
    if args.size is not None and not SIZES[0] <= args.size <= SIZES[1]:
        raise KcdpError(f"--size {args.size}", f"a number of pixels from {SIZES[0]} to {SIZES[1]}")
    for name in args.skip_pass:
        if name not in PASS_NAMES:
            raise KcdpError(f"no pass is called {name!r}{nearest(name, PASS_NAMES)}", f"one of {', '.join(PASS_NAMES)}")
    check_target(args.out, args.overwrite)


def _run(args: argparse.Namespace) -> int:
    for package in (*PACKAGES, "onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        require(package, "export")
    from kcdp.export.check_pictures import check_pictures
    from kcdp.export.describing import describe
    from kcdp.export.exporter import ParityError, export_run
    from kcdp.export.options import ExportOptions
    from kcdp.export.passes.registry import NAMES
    from kcdp.training.checkpoint import find_checkpoint, load_checkpoint

    options = ExportOptions(
        args.target, args.precision, args.knowledge, args.text, args.size, args.batch,
        frozenset(NAMES if args.no_passes else args.skip_pass), args.calibration,
    )  # fmt: skip
    options.resolve()
    data = load_checkpoint(find_checkpoint(args.run)).config.data
    pictures = check_pictures(args.check_images, data)
    try:
        bundle = export_run(
            args.run, args.out, pictures, options, overwrite=args.overwrite, keep_failed=args.keep_failed,
            say=(lambda line: None) if args.json else say, progress=sys.stderr.isatty(),
        )  # fmt: skip
    except ParityError as error:
        print(f"kcdp: error: {error}", file=sys.stderr)
        if args.json:
            print(json.dumps({"bundle": None, "parity": error.report.to_dict()}))
        return 1
    facts = describe(bundle)
    if args.json:
        print(json.dumps(facts))
        return 0
    signature = f"{', '.join(facts['inputs'])} -> {', '.join(facts['outputs'])}"
    say(f"{facts['bundle']}: {facts['bytes'] / 1e6:.1f} MB, {signature}")
    say(f"next: {next_command(facts['bundle'], facts['target'])}")
    return 0


def next_command(bundle: object, target: str) -> str:
    """What to type when a bundle is there.

    Args:
        target: its own.
    """
    if target == "tensorrt":
        return f"python -m kcdp.export engine {bundle}"
    if target == "cuda":
        return f"python -m kcdp.export check {bundle} --run RUN --runtime onnxruntime-cuda   (on its GPU)"
    return f"kcdp tag PICTURES --model {bundle}"
