"""What each part of the method is worth: synthetic photographs -> synthetic stickers, preset ``tiny``, several seeds.

    python benchmarks/ablation.py --work WORK --out benchmarks/results

Every row is trained by ``kcdp train`` and measured by ``kcdp evaluate`` on stickers that no training has seen; their
labels decide nothing. A row that WORK holds already is not trained again, so an interrupted call goes on. Writes
``ablation-tiny.json`` and ``ablation-tiny.png``, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

SOURCE = "synthetic:photos?n=3000&size=32&seed=1"
TARGET = "synthetic:stickers?n=3000&size=32&seed=1"
TEST = "synthetic:stickers?n=1200&size=32&seed=2"
COMMON = ("training.select=last", "training.mixed_precision=no", "training.epochs=1000", "training.validate_every=9999")
NO_ALIGNMENT = "model.alignment.kind=none"
AS_RELEASED = tuple(
    f"training.pseudo_labels.{setting}"
    for setting in ("teacher=student", "views=same", "threshold=none", "prior=none", "ramp_up=0.0")
)


#: name -> (what it is, settings, whether captions are told, whether the unlabelled target takes part)
ROWS: dict[str, tuple[str, tuple[str, ...], bool, bool]] = {
    "source only": (
        "one expert, constant tokens, labelled photographs only",
        ("model.head.experts=1", "model.head.top_k=1", NO_ALIGNMENT), False, False,
    ),
    "KADAP without knowledge": ("four experts, constant tokens", (NO_ALIGNMENT,), False, False),
    "KADAP": ("and captions with their triples", (NO_ALIGNMENT,), True, False),
    "KADAP + CLIEA": ("and alignment, and pseudo-labels of the unlabelled stickers", (), True, True),
    "CLIEA without knowledge": ("the same with constant tokens", (), False, True),
    "KADAP + CLIEA, pseudo-labels as released": ("a bare argmax from step 0", AS_RELEASED, True, True),
    "KADAP + CESA": ("CESA in CLIEA's place", ("model.alignment.kind=cesa",), True, True),
    "implicit, taught by KADAP + CLIEA": (
        "no captions when measured: an adapter predicts the knowledge; pseudo-labels of the explicit model",
        ("model.knowledge.mode=implicit", "training.pseudo_labels.teacher=start"), True, True,
    ),
}  # fmt: skip


#: row -> the row whose weights it starts with.
STARTS = {"implicit, taught by KADAP + CLIEA": "KADAP + CLIEA"}
#: Rows that are measured by the picture alone although captions took part in training.
UNTOLD = ("implicit, taught by KADAP + CLIEA",)


def main() -> int:
    """Train and measure what is missing, then write the table."""
    parser = argparse.ArgumentParser(description="Ablation on synthetic faces with the preset tiny.")
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and captions; kept for the next call")
    parser.add_argument("--out", type=Path, help="folder for ablation-tiny.json and ablation-tiny.png")
    parser.add_argument("--seeds", type=int, default=3, help="seeds per row (default: 3)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: 1000)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trainings at once (default: one per core)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help="rows to run")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name, data in (("source", SOURCE), ("target", TARGET), ("test", TEST)):
        kcdp("knowledge", "caption", "--data", data, "--captioner", "drawn", "--out", args.work / f"{name}.jsonl")
    tasks = [(row, seed) for seed in range(args.seeds) for row in args.rows]
    missing = {STARTS[row] for row in args.rows if row in STARTS} - set(args.rows)
    if missing:
        parser.error(f"--rows lacks {', '.join(missing)}, which others start with")
    done = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        for later in (False, True):  # those that others start with come first
            batch = [task for task in tasks if (task[0] in STARTS) == later]
            done |= dict(zip(batch, pool.map(lambda task: train_and_measure(args, *task), batch), strict=True))
    rows = [summarise(row, [done[row, seed] for seed in range(args.seeds)]) for row in args.rows]
    result = {
        "benchmark": "ablation", "preset": "tiny", "date": time.strftime("%Y-%m-%d"), "steps": args.steps,
        "source": SOURCE, "target": TARGET, "test": TEST, "torch": version("torch"),
        "machine": {"cpu": cpu(), "cores": os.cpu_count(), "jobs": args.jobs}, "rows": rows,
    }  # fmt: skip
    print(table(rows))
    if args.out:
        from kcdp.files import write_json

        write_json(args.out / "ablation-tiny.json", result)
        plot(args.out / "ablation-tiny.png", rows)
    return 0


def train_and_measure(args: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """One training; its numbers on the stickers of ``TEST`` and on the source's validation photographs."""
    name = folder(args, row, seed)
    found = args.work / f"{name}.json"
    if found.is_file():
        return json.loads(found.read_text(encoding="utf-8"))
    _, settings, told, adapts = ROWS[row]
    run, report = args.work / name, args.work / f"{name}-report"
    shutil.rmtree(run, ignore_errors=True)
    captions = [args.work / f"{part}.jsonl" for part in ("source", "target")[: 1 + adapts]] if told else []
    started = time.perf_counter()
    kcdp(
        "train", "--preset", "tiny", "--source", SOURCE, "--out", run,
        *(("--target", TARGET) if adapts else ()),
        *(part for file in captions for part in ("--captions", file)),
        *(part for setting in (*COMMON, f"training.max_steps={args.steps}", f"training.seed={seed}", *settings)
          for part in ("--set", setting)),
        *(("--set", f"training.init_from={args.work / folder(args, STARTS[row], seed)}") if row in STARTS else ()),
    )  # fmt: skip
    seconds = time.perf_counter() - started
    test = ("--captions", args.work / "test.jsonl") if told and row not in UNTOLD else ()
    kcdp("evaluate", run, "--data", TEST, "--out", report, "--no-validation", "--embed", 0, *test)
    measured = json.loads((report / "report.json").read_text(encoding="utf-8"))
    validation = measured["checkpoint"]["progress"]["validation"]
    result = {
        "seed": seed, "target": measured["metrics"]["balanced_accuracy"], "target_macro_f1":
        measured["metrics"]["macro_f1"], "source": validation["balanced_accuracy"], "seconds": round(seconds, 1),
        "experts": measured["experts"]["chosen"],
    }  # fmt: skip
    from kcdp.files import write_json

    write_json(found, result)
    print(f"{row}, seed {seed}: stickers {result['target']:.3f}, photographs {result['source']:.3f}", flush=True)
    return result


def folder(args: argparse.Namespace, row: str, seed: int) -> str:
    """Name of a run below ``args.work``."""
    return f"{row.replace(' ', '-').replace(',', '').replace('+', 'and')}-{args.steps}-{seed}"


def kcdp(*arguments: object) -> None:
    """Run a command of the package with one thread; its words go to a log."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "kcdp", *map(str, arguments)], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise SystemExit(f"kcdp {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def summarise(row: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds."""
    target, source = [one["target"] for one in found], [one["source"] for one in found]
    spread = statistics.stdev if len(found) > 1 else lambda _: 0.0
    return {
        "name": row, "what": ROWS[row][0],
        "target_mean": round(statistics.mean(target), 4), "target_std": round(spread(target), 4),
        "source_mean": round(statistics.mean(source), 4), "source_std": round(spread(source), 4),
        "seconds": round(statistics.mean(one["seconds"] for one in found), 1), "seeds": found,
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["| | stickers | photographs (validation) | s per training |", "|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['name']} | {row['target_mean']:.3f} ± {row['target_std']:.3f} | "
                     f"{row['source_mean']:.3f} ± {row['source_std']:.3f} | {row['seconds']:.0f} |")  # fmt: skip
    return "\n".join(lines)


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    """One line per row: every seed a dot, the mean a bar."""
    from matplotlib.figure import Figure

    from kcdp.files import atomic_file

    figure = Figure(figsize=(8, 0.5 * len(rows) + 1.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    places = range(len(rows))[::-1]
    axes.barh(places, [row["target_mean"] for row in rows], color="#9ecae1", height=0.6)
    for place, row in zip(places, rows, strict=True):
        axes.plot([one["target"] for one in row["seeds"]], [place] * len(row["seeds"]), "o", color="#08519c", ms=4)
        axes.text(row["target_mean"] + 0.02, place + 0.22, f"{row['target_mean']:.3f}", fontsize=8)
    axes.axvline(1 / 6, color="#666666", linestyle="--", linewidth=0.8)
    axes.text(1 / 6, -0.62, " always one answer", fontsize=8, color="#666666")
    axes.set_ylim(-0.75, len(rows) - 0.4)
    axes.set_yticks(places, [row["name"] for row in rows], fontsize=8)
    axes.set_xlim(0, 1)
    axes.set_xlabel("balanced accuracy on unseen drawn stickers")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    sys.exit(main())
