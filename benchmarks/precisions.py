"""One trained run in every target and precision: size, agreement with PyTorch, types, and what the gate refused.

    python benchmarks/precisions.py RUN --check-images SPEC --calibration SPEC [--work DIR] [--out FILE] [--plot FILE]

Every row is an export by the command that users have, with its gate. Where a target has several runtimes the row of
each is given; "rounding" is ONNX Runtime with half precision rounded as a GPU does.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import machine


def main() -> int:
    """Export everything, then print, write and draw it."""
    parser = argparse.ArgumentParser(description="A run in every target and precision.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--check-images", required=True)
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--work", type=Path, help="keep the bundles here (default: nowhere)")
    parser.add_argument("--out", type=Path, help="write the JSON object here")
    parser.add_argument("--plot", type=Path, help="draw size and agreement here")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for target, precision in combinations():
            rows.append(one(args, args.work or Path(scratch), target, precision))
            print(line(rows[-1]), flush=True)
    result = {"benchmark": "precisions", "date": time.strftime("%Y-%m-%d"), "machine": machine(),
              "run": args.run.name, "check_images": args.check_images.split("/")[-1], "rows": rows}  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        draw(rows, args.plot)
    return 0


def combinations() -> list[tuple[str, str]]:
    from kcdp.export.targets import TARGETS

    return [(name, precision) for name, target in TARGETS.items() for precision in target.precisions]


def one(args: argparse.Namespace, work: Path, target: str, precision: str) -> dict[str, Any]:
    """One export; a refusal by the gate is a row as well."""
    from kcdp.data.registry import open_dataset
    from kcdp.export.exporter import ExportOptions, ParityError, export_run

    start, row = time.perf_counter(), {"target": target, "precision": precision}
    options = ExportOptions(target, precision, calibration=args.calibration)
    try:
        bundle = export_run(
            args.run, work / f"{target}-{precision}.kcdp", open_dataset(args.check_images), options,
            overwrite=True, say=lambda text: None, progress=False,
        )  # fmt: skip
        manifest, parity = bundle.manifest, bundle.manifest.parity
        export = manifest.export
        row |= {"bytes": sum(entry["bytes"] for entry in manifest.files.values()), "operators": export["operators"],
                "islands": len(manifest.precision) - 1, "fused": export["fused"]}  # fmt: skip
    except ParityError as error:
        parity = error.report.to_dict()
    runtimes = {found["runtime"]: worst(found) for found in parity["runtimes"] if answered(found)}
    return row | {
        "passed": parity["passed"], "failures": parity["failures"], "seconds": time.perf_counter() - start,
        "pictures": parity["pictures"], "runtimes": runtimes,
    }  # fmt: skip


def answered(runtime: dict[str, Any]) -> list[dict[str, Any]]:
    """Batch sizes that gave logits; none where the runtime cannot open the graph."""
    return [run for run in runtime["batch_sizes"].values() if run["logits"] is not None]


def worst(runtime: dict[str, Any]) -> dict[str, float]:
    """Over the batch sizes."""
    runs = answered(runtime)
    cosines = [level["cosine"] for run in runs for level in run.get("levels", {}).values()]
    return {
        "decisions": min(run["decisions"]["agree"] for run in runs),
        "logits_error": max(run["logits"]["error"] for run in runs),
        "cosine": min(cosines),
    }


def line(row: dict[str, Any]) -> str:
    """For the terminal."""
    found = "; ".join(
        f"{name} {100 * r['decisions']:.1f} % of {row['pictures']}, logits off {100 * r['logits_error']:.2g} %"
        for name, r in row["runtimes"].items()
    )
    size = f"{row['bytes'] / 1e6:6.1f} MB" if "bytes" in row else "refused: " + row["failures"][0]
    return f"{row['target']:<9}{row['precision']:<5} {size}  {found}"


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Agreement over size, a mark for each row and runtime."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = {"fp32": "#444444", "fp16": "#1f77b4", "bf16": "#2ca02c", "int8": "#d62728", "w8": "#9467bd"}
    marks = {"onnxruntime": "o", "openvino": "s", "rounding": "x", "unfused": "+"}
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for row in rows:
        for name, r in row["runtimes"].items():
            if "bytes" in row:
                axes.scatter(
                    row["bytes"] / 1e6, 100 * r["decisions"], 60, colours[row["precision"]], marker=marks[name]
                )
    for precision, colour in colours.items():
        axes.scatter([], [], 60, colour, label=precision)
    for name, mark in marks.items():
        axes.scatter([], [], 60, "#888888", marker=mark, label=name)
    refused = [f"{row['target']} {row['precision']}" for row in rows if "bytes" not in row]
    title = f"{rows[0]['pictures']} check pictures" + (f"; refused: {', '.join(refused)}" if refused else "")
    axes.set(xlabel="bundle, MB", ylabel="decisions as PyTorch's, %", title=title)
    axes.set_xlim(0)
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
