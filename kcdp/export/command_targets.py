"""``python -m kcdp.export targets``: what a bundle can be made for."""

from __future__ import annotations

import argparse
import json

from kcdp.export.targets import TARGETS, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    if args.json:
        rows = {name: {"what": t.what, "opset": t.opset, "precisions": dict(t.verified)} for name, t in TARGETS.items()}
        print(json.dumps(rows))
        return 0
    print(table())
    print("next: python -m kcdp.export RUN --out NAME.kcdp --target TARGET --precision PRECISION")
    return 0
