"""Latency and throughput of one model, PyTorch eager against the bundle, on the CPU, each in a process of its own.

    python benchmarks/latency.py                           an untrained edge model (weights do not change speed)
    python benchmarks/latency.py --run RUN --model B.kcdp   yours

Configurations run in turn, several rounds, so that a noisy machine disturbs all of them alike; a row is the median
over rounds of the median over calls. The last line is one JSON object. With ``--out FILE`` it is also written there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

BATCHES = (1, 16)
ENGINES = ("pytorch", "onnxruntime")


def main() -> int:
    """Measure every configuration; with ``--worker`` measure one and print its row."""
    parser = argparse.ArgumentParser(description="Latency and throughput on this machine's CPU.")
    parser.add_argument("--run", type=Path, help="run folder (default: an untrained edge model is made)")
    parser.add_argument("--model", type=Path, help="its bundle (default: exported from --run)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads per engine (default: all cores)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds over all configurations (default: 3)")
    parser.add_argument("--seconds", type=float, default=2.0, help="time per configuration and round (default: 2)")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "BATCH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args, args.worker[0], int(args.worker[1]))))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        prepare(args, Path(scratch))
        rows = summarise([worker(args, engine, batch) for _ in range(args.rounds)
                          for batch in BATCHES for engine in ENGINES])  # fmt: skip
    result = {"benchmark": "latency", "date": time.strftime("%Y-%m-%d"), "machine": machine(args.threads), "rows": rows}
    print(f"{'engine':<14}{'batch':>6}{'ms':>10}{'pictures/s':>12}{'x eager':>9}{'largest logit difference':>27}")
    for row in rows:
        print(f"{row['engine']:<14}{row['batch']:>6}{row['ms']:>10.2f}{row['pictures_per_s']:>12.1f}"
              f"{row['speedup']:>9.2f}{row['max_abs_difference']:>27.1e}")  # fmt: skip
    if args.out:
        from kcdp.files import write_json

        write_json(args.out, result)
    print(json.dumps(result))
    return 0


def prepare(args: argparse.Namespace, scratch: Path) -> None:
    """Make what was not given: an untrained run, and its bundle."""
    if args.run is None:
        from kcdp.config import load_config
        from kcdp.models.build import build_model
        from kcdp.training.checkpoint import save_checkpoint

        args.run, args.model = scratch / "run", None
        args.run.mkdir()
        config = load_config("edge", data={"data": {"source": "synthetic:photos?n=60"}})
        save_checkpoint(args.run / "best.safetensors", build_model(config), config, {"step": 0})
    if args.model is None:
        args.model = scratch / "bench.kcdp"
        command = [sys.executable, "-m", "kcdp.export", args.run, "--out", args.model]
        subprocess.run([str(word) for word in command], check=True)


def worker(args: argparse.Namespace, engine: str, batch: int) -> dict[str, Any]:
    """One configuration in a fresh process."""
    command = [sys.executable, __file__, "--run", args.run, "--model", args.model, "--threads", args.threads,
               "--seconds", args.seconds, "--worker", engine, batch]  # fmt: skip
    done = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, engine: str, batch: int) -> dict[str, Any]:
    """Median milliseconds of a batch of random pictures, and the logits of a fixed batch."""
    run, size = {"pytorch": open_pytorch, "onnxruntime": open_bundle}[engine](args)
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    logits = run(images)
    times: list[float] = []
    end = time.perf_counter() + args.seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return {"engine": engine, "batch": batch, "ms": float(np.median(times) * 1e3), "logits": logits.tolist()}


def open_pytorch(args: argparse.Namespace) -> tuple[Any, int]:
    """The run in eager float32."""
    import torch

    from kcdp.training.checkpoint import load_model

    torch.set_num_threads(args.threads)
    model, checkpoint = load_model(args.run)

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(images)).logits.numpy()

    return run, checkpoint.config.preprocess.size


def open_bundle(args: argparse.Namespace) -> tuple[Any, int]:
    """The bundle through the device runtime's session."""
    from kcdp.bundle import Bundle
    from kcdp.runtime.backends.options import SessionOptions
    from kcdp.runtime.backends.provider_session import OnnxRuntimeSession

    bundle = Bundle.open(args.model)
    return OnnxRuntimeSession(bundle, SessionOptions(threads=args.threads)).run, bundle.manifest.preprocess.size


def summarise(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per configuration: median over rounds, speed and logits against eager at the same batch."""
    rows = []
    for batch in BATCHES:
        eager: dict[str, Any] = {}
        for engine in ENGINES:
            mine = [m for m in measured if (m["engine"], m["batch"]) == (engine, batch)]
            milliseconds = float(np.median([m["ms"] for m in mine]))
            eager = eager or {"ms": milliseconds, "logits": mine[0]["logits"]}
            difference = np.abs(np.subtract(mine[0]["logits"], eager["logits"])).max()
            rows.append({
                "engine": engine, "batch": batch, "ms": milliseconds, "pictures_per_s": 1e3 * batch / milliseconds,
                "speedup": eager["ms"] / milliseconds, "max_abs_difference": float(difference),
                "rounds_ms": [round(m["ms"], 3) for m in mine],
            })  # fmt: skip
    return rows


def machine(threads: int) -> dict[str, Any]:
    """What the numbers belong to."""
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": threads, "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "onnxruntime", "kcdp")},
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
