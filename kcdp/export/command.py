"""``python -m kcdp.export``: a trained run in, a bundle out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import open_dataset, open_datasets
from kcdp.errors import KcdpError, require
from kcdp.training import PACKAGES

CHECK_PICTURES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="run folder (its best checkpoint) or a checkpoint file")
    parser.add_argument("--out", metavar="NAME.kcdp", required=True, help="the bundle to make")
    parser.add_argument(
        "--check-images", metavar="SPEC",
        help=f"pictures for the parity gate (default: up to {CHECK_PICTURES} of the run's validation pictures)",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an existing bundle")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the steps")


def run(args: argparse.Namespace) -> int:
    """Export; 0 when the bundle is written, 1 when the parity gate failed."""
    for package in (*PACKAGES, "onnx", "onnxscript", "onnxruntime"):
        require(package, "export")
    from kcdp.export.exporter import ParityError, describe, export_run
    from kcdp.training.checkpoint import find_checkpoint, load_checkpoint

    def say(line: str) -> None:
        if not args.json:
            print(line, flush=True)

    data = load_checkpoint(find_checkpoint(args.run)).config.data
    pictures = _check_pictures(args.check_images, data.validation or data.source)
    try:
        bundle = export_run(
            args.run, args.out, pictures, overwrite=args.overwrite, say=say, progress=sys.stderr.isatty()
        )
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
    print(f"{facts['bundle']}: {facts['bytes'] / 1e6:.1f} MB, {signature}")
    print(f"next: kcdp tag PICTURES --model {facts['bundle']}")
    return 0


def _check_pictures(spec: str | None, fallback: Sequence[str]) -> ImageDataset:
    if spec is not None:
        return open_dataset(spec)
    try:
        pictures = open_datasets(fallback, split="val")
    except KcdpError as error:
        raise KcdpError(
            f"the run's validation pictures cannot be opened ({error.received})",
            fix="name others with --check-images SPEC",
        ) from None
    step = max(1, len(pictures) // CHECK_PICTURES)
    return pictures.subset(range(0, len(pictures), step)[:CHECK_PICTURES])
