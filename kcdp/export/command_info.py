"""``python -m kcdp.export info``: what a bundle says of itself."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from kcdp.bundle import Bundle
from kcdp.export.command import next_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a bundle, NAME.kcdp")
    parser.add_argument("--json", action="store_true", help="print the whole manifest")


def run(args: argparse.Namespace) -> int:
    """Print it; the files' hashes have been compared by then."""
    bundle = Bundle.open(args.bundle)
    if args.json:
        print(json.dumps(bundle.manifest.to_dict()))
        return 0
    print("\n".join(lines(bundle)))
    print(f"next: {next_command(bundle.path, bundle.manifest.target)}")
    return 0


def lines(bundle: Bundle) -> list[str]:
    """A page of facts."""
    m = bundle.manifest
    total = sum(entry["bytes"] for entry in m.files.values())
    islands = sum(name != "default" for name in m.precision)
    found = [
        f"{bundle.path}: {total / 1e6:.1f} MB in {len(m.files)} files, for {m.target} (opset {m.opset})",
        *(f"  in   {t.describe()}" for t in m.graph.inputs),
        *(f"  out  {t.describe()}" for t in m.graph.outputs),
        f"  precision   {m.precision['default']}" + (f", {islands} nodes in float32" if islands else ""),
        f"  knowledge   {m.knowledge['mode']}",
        f"  pictures    {m.preprocess.size} px, {m.preprocess.fit}, {m.preprocess.resize_filter}",
        f"  trained on  {', '.join(m.training.get('source', ())) or 'not said'}",
        f"  made by     {', '.join(f'{k} {v}' for k, v in m.producers.items())}",
    ]
    if m.export.get("fused"):
        fused = ", ".join(f"{count} {kind}" for kind, count in m.export["fused"].items() if count)
        found.append(f"  fused       {fused}")
    for row in m.export.get("passes", ()):
        found.append(f"  pass        {_pass_line(row)}")
    if m.parity:
        found.append(f"  parity      {'passed' if m.parity.get('passed') else 'FAILED'} on {m.parity.get('pictures')} "
                     f"pictures of {m.parity.get('data')}")  # fmt: skip
        found += [
            f"              {line}" for runtime in m.parity.get("runtimes", ()) for line in _runtime_lines(runtime)
        ]
    return found


def _pass_line(row: Mapping[str, Any]) -> str:
    difference = row["max_abs_difference"]
    change = "" if difference is None else f", changed by {difference:.1e} at most"
    return (f"{row['pass']:<14}{row['operators']:>6} operators {row['parameters'] / 1e6:>8.2f} M "
            f"{row['gflops']:>8.2f} GFLOP{change}")  # fmt: skip


def _runtime_lines(runtime: Mapping[str, Any]) -> list[str]:
    found = []
    for batch, numbers in runtime["batch_sizes"].items():
        if numbers["logits"] is not None:
            found.append(f"{runtime['runtime']}, batch {batch}: logits within {numbers['logits']['max_abs']:.1e}, "
                         f"decisions {numbers['decisions']['agree']:.2%}")  # fmt: skip
    return found
