"""What the export is worth at Stable Diffusion 1.5's size: every bundle against PyTorch, with its parity.

    python benchmarks/export.py --work WORK [--only NAME ...] [--rounds 3] [--out FILE] [--plot FILE]
    python benchmarks/export.py --work WORK --in-turn plain-openvino-bf16 exact-openvino-bf16 [--out FILE]

Weights are random, in the shapes of SD 1.5 (where a name holds "tiny-", with an AutoencoderTiny), and adapters
of rank 8, implicit knowledge of 154 tokens, 256 px, batch 1. "eager" is the published pipeline restated in PyTorch
float32: the graph before any pass. WORK keeps models and bundles (20 GB) for the next call. Each configuration is timed
in a process of its own, all of them once in each round; figures are medians over rounds. The processor's own limit, the
speed of a large matrix product in the same rounds, stands beside them: no direct convolution is faster than that.
With ``--in-turn`` several configurations are opened in one process and run in turn: on a busy host, only so can small
differences be told. Random weights may fail the gate in 8 bits, as their answers are ties: such a graph is timed all
the same, and its row says what the gate found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, memory, random_backbone

SIZE, PICTURES = 256, 10
WARM = 3  # the first runs of a process also fetch gigabytes of weights into memory
PHOTOS = f"synthetic:photos?n={PICTURES}&size=256"
CALIBRATION = "synthetic:photos?n=12&size=256&seed=5"
TINY = ("model.encoder.kind=tiny", "model.encoder.source=scratch", "model.encoder.channels=64",
        "model.encoder.blocks=[1,3,3,3]", "model.encoder.latent_channels=4",
        "model.head.top_k=4")  # fmt: skip  # random routing is a tie, which any rounding turns: all experts answer
#: name -> (tiny encoder, arguments of the export, engine, precision it is told)
BUNDLES: dict[str, tuple[bool, tuple[str, ...], str, str]] = {
    "plain-ort": (False, ("--target", "portable", "--no-passes"), "onnxruntime", "float32"),
    "plain-openvino": (False, ("--target", "portable", "--no-passes"), "openvino", "float32"),
    "plain-openvino-bf16": (False, ("--target", "portable", "--no-passes"), "openvino", "bfloat16"),
    "exact-ort": (False, ("--target", "cpu"), "onnxruntime", "float32"),
    "exact-openvino": (False, ("--target", "cpu"), "openvino", "float32"),
    "exact-openvino-bf16": (False, ("--target", "cpu", "--precision", "bf16"), "openvino", "bfloat16"),
    "plain-tiny-openvino-bf16": (True, ("--target", "portable", "--no-passes"), "openvino", "bfloat16"),
    "tiny-openvino-bf16": (True, ("--target", "cpu", "--precision", "bf16"), "openvino", "bfloat16"),
    "tiny-int8": (True, ("--target", "cpu", "--precision", "int8"), "openvino", "int8"),
    "tiny-int8-rest-bf16": (True, ("--target", "cpu", "--precision", "int8"), "openvino-bf16", "int8"),
    "fp16": (False, ("--target", "tensorrt", "--precision", "fp16"), "", "float16"),
}  # fmt: skip


def main() -> int:
    """Export what is not there yet, then measure; with ``--worker`` one configuration."""
    parser = argparse.ArgumentParser(description="What the export is worth at SD 1.5's size.")
    parser.add_argument("--work", type=Path, required=True, help="folder for models and bundles")
    parser.add_argument("--only", nargs="*", default=list(BUNDLES), choices=list(BUNDLES), help="some configurations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--runs", type=int, default=6, help="timed runs in each round")
    parser.add_argument("--in-turn", nargs="+", metavar="NAME", choices=list(BUNDLES), help="in one process")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--plot", type=Path, help="also draw it here")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(worker(args, args.worker)))
        return 0
    args.work.mkdir(parents=True, exist_ok=True)
    if args.in_turn:
        result = in_turn(args)
        for row in result["rows"]:
            print(f"{row['name']:<26}{row['seconds']:>8.3f} s, {row['ratio']:.3f} times as fast as the first "
                  f"(quartiles {row['quartiles'][0]:.3f}, {row['quartiles'][1]:.3f})")  # fmt: skip
        if args.out:
            args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        return 0
    exports = {name: export(args.work, name) for name in args.only}
    timed = ["eager", *(name for name in args.only if BUNDLES[name][2])]
    rounds = [{name: measure(args, name) for name in ("limit", *timed)} for _ in range(args.rounds)]
    rows = summarise(rounds, timed, exports)
    result = {"benchmark": "export", "date": time.strftime("%Y-%m-%d"), "machine": machine(), "size": SIZE,
              "limit_gflops": {key: float(np.median([r["limit"][key] for r in rounds])) for key in rounds[0]["limit"]},
              "rows": rows}  # fmt: skip
    for row in rows:
        timing = f"{row['seconds']:>8.3f} s{row['speedup']:>7.2f} x eager" if "seconds" in row else " " * 26
        print(f"{row['name']:<22}{timing}  {row.get('note', '')}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        draw(result, args.plot)
    print(json.dumps(result))
    return 0


def make_run(work: Path, tiny: bool) -> Path:
    """A checkpoint of random weights; adapters and gates away from their zeros."""
    run = work / ("run-tiny" if tiny else "run")
    if (run / "best.safetensors").exists():
        return run
    import torch

    from kcdp.config import load_config
    from kcdp.models.build import build_model
    from kcdp.training.checkpoint import save_checkpoint

    if not (work / "backbone").exists():
        random_backbone(work / "backbone")
    overrides = [f"preprocess.size={SIZE}", f"model.backbone={work / 'backbone'}", "model.text.kind=seeded",
                 "model.knowledge.mode=implicit", *(TINY if tiny else ())]  # fmt: skip
    torch.manual_seed(1)
    config = load_config("sd15", overrides=overrides, data={"data": {"source": PHOTOS}})
    model = build_model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith("knowledge.gate"):
                parameter.normal_(0, 0.02)
    run.mkdir(parents=True, exist_ok=True)
    save_checkpoint(run / "best.safetensors", model, config, {"step": 0})
    return run


def bundle_of(work: Path, name: str) -> Path:
    """One bundle for all configurations with the same arguments."""
    tiny, arguments, _, _ = BUNDLES[name]
    words = [word.strip("-") for word in arguments if word not in ("--target", "--precision")]
    return work / ("-".join([*(["tiny"] if tiny else []), *words]) + ".kcdp")


def export(work: Path, name: str) -> dict[str, Any]:
    """Make a bundle with the command that users have; seconds and peak memory of that process."""
    tiny, arguments, _, _ = BUNDLES[name]
    bundle, facts = bundle_of(work, name), bundle_of(work, name).with_suffix(".json")
    if not facts.exists():
        command = [sys.executable, "-c", _EXPORT, str(make_run(work, tiny)), "--out", str(bundle), "--overwrite",
                   "--check-images", PHOTOS, "--calibration", CALIBRATION, *arguments,
                   "--keep-failed", str(failed_of(bundle))]  # fmt: skip
        shutil.rmtree(failed_of(bundle), ignore_errors=True)
        start = time.perf_counter()
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        lines = done.stdout.splitlines()
        print("\n".join(lines), flush=True)
        if done.returncode and not failed_of(bundle).exists():
            raise SystemExit(f"{name}: the export ended with status {done.returncode}")
        seconds = time.perf_counter() - start
        peak = float(lines[-1].split()[-1])
        found = [line.split("FAILED ")[1] for line in lines if "FAILED " in line]
        facts.write_text(json.dumps({"seconds": seconds, "peak_gib": peak, "failures": found}), encoding="utf-8")
    if failed_of(bundle).exists():
        sizes = {file.name: file.stat().st_size for file in failed_of(bundle).iterdir()}
        return {**json.loads(facts.read_text(encoding="utf-8")), "files": sizes}
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    sizes = {file: entry["bytes"] for file, entry in manifest["files"].items()}
    parity = manifest["parity"]["runtimes"]
    if BUNDLES[name][2] not in ("", *(found["runtime"] for found in parity)):
        parity = check(work, name)
    return {**json.loads(facts.read_text(encoding="utf-8")), "files": sizes, "passes": manifest["export"]["passes"],
            "operators": manifest["export"]["operators"], "parity": parity}  # fmt: skip


def check(work: Path, name: str) -> Any:
    """The gate on a runtime that the export did not try."""
    tiny, _, runtime, _ = BUNDLES[name]
    known = bundle_of(work, name).with_suffix(f".{runtime}.json")
    if not known.exists():
        command = [sys.executable, "-m", "kcdp.export", "check", str(bundle_of(work, name)), "--runtime", runtime,
                   "--run", str(make_run(work, tiny)), "--check-images", PHOTOS, "--json"]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # 1: the gate failed
        known.write_text(done.stdout, encoding="utf-8")
    return json.loads(known.read_text(encoding="utf-8"))["runtimes"]


def failed_of(bundle: Path) -> Path:
    """Where a graph lies that failed the gate."""
    return bundle.with_suffix(".failed")


_EXPORT = """
import resource, sys
from kcdp.cli import run_module
status = run_module("kcdp.export.command", "export", "", sys.argv[1:])
print("peak GiB", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
sys.exit(status)
"""


def measure(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One configuration in a fresh process."""
    command = [sys.executable, __file__, "--work", str(args.work), "--runs", str(args.runs), "--worker", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def worker(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """Seconds of single runs."""
    if name == "limit":
        return limits()
    images = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    run = eager(args.work) if name == "eager" else opened(args.work, name)
    for _ in range(WARM):
        logits = run(images)
    times = []
    for _ in range(args.runs):
        start = time.perf_counter()
        run(images)
        times.append(time.perf_counter() - start)
    return {"seconds": float(np.median(times)), "logits": logits.tolist(), "gib": memory("VmHWM")}


def in_turn(args: argparse.Namespace) -> dict[str, Any]:
    """Configurations side by side in this process; speeds as ratios to the run of the first in the same turn."""
    for name in args.in_turn:
        export(args.work, name)
    images = np.random.default_rng(0).integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)
    opened_ones = {name: opened(args.work, name) for name in args.in_turn}
    times: dict[str, list[float]] = {name: [] for name in opened_ones}
    for turn in range(WARM + 4 * args.runs):
        for name, run in opened_ones.items():
            start = time.perf_counter()
            run(images)
            if turn >= WARM:
                times[name].append(time.perf_counter() - start)
    first = np.array(times[args.in_turn[0]])
    rows = []
    for name, seconds in times.items():
        low, middle, high = np.percentile(first / np.array(seconds), [25, 50, 75])
        rows.append({"name": name, "seconds": float(np.median(seconds)), "least": min(seconds), "ratio": float(middle),
                     "quartiles": [float(low), float(high)]})  # fmt: skip
    return {"benchmark": "export-in-turn", "date": time.strftime("%Y-%m-%d"), "machine": machine(), "size": SIZE,
            "turns": len(first), "rows": rows}  # fmt: skip


def eager(work: Path) -> Any:
    """The published pipeline in PyTorch float32."""
    import torch

    from kcdp.export.device.model import DeviceModel
    from kcdp.training.checkpoint import load_model

    model, _ = load_model(make_run(work, False))
    device = DeviceModel(model)  # type: ignore[arg-type]

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return device(device.scaled(torch.from_numpy(images)))[0].numpy()

    return run


def opened(work: Path, name: str) -> Any:
    """A bundle's graph on its engine."""
    from kcdp.bundle import Bundle
    from kcdp.export.check_pictures import preparation
    from kcdp.export.runners import open_runner

    if failed_of(bundle_of(work, name)).exists():
        failed = open_runner(BUNDLES[name][2], failed_of(bundle_of(work, name)) / "model.onnx", BUNDLES[name][3])
        return lambda images: failed.run({"images": images})["logits"]
    bundle = Bundle.open(bundle_of(work, name))
    runner = open_runner(BUNDLES[name][2], bundle.model_path, BUNDLES[name][3])
    prepare = preparation(bundle.manifest.scaling)
    return lambda images: runner.run(prepare({"images": images}))["logits"]


def limits() -> dict[str, float]:
    """GFLOP/s of a square matrix product in PyTorch, the best of eight."""
    import torch

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        times = []
        for _ in range(8):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        found[str(dtype).removeprefix("torch.")] = 2 * 2048**3 / min(times) / 1e9
    return found


def summarise(rounds: list[dict[str, Any]], timed: list[str], exports: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each configuration; the speed is the median of the rounds' ratios."""
    rows = []
    for name in ["eager", *exports]:
        row: dict[str, Any] = {"name": name}
        if name in timed:
            seconds = [r[name]["seconds"] for r in rounds]
            ratios = [r["eager"]["seconds"] / r[name]["seconds"] for r in rounds]
            row |= {"seconds": float(np.median(seconds)), "speedup": float(np.median(ratios)),
                    "rounds": [round(s, 3) for s in seconds], "gib": max(r[name]["gib"] for r in rounds)}  # fmt: skip
        if name in exports:
            made = exports[name]
            row |= {"export_seconds": made["seconds"], "export_peak_gib": made["peak_gib"],
                    **{key: made[key] for key in ("files", "passes", "operators", "parity", "failures") if key in made}}
            row["note"] = (f"export {made['seconds']:.0f} s, {made['peak_gib']:.1f} GiB, "
                           f"{sum(made['files'].values()) / 1e9:.2f} GB")  # fmt: skip
            row["note"] += f"; REFUSED by the gate: {made['failures'][0]}" if made.get("failures") else ""
        rows.append(row)
    return rows


def draw(result: dict[str, Any], path: Path) -> None:
    """A bar for each configuration."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in result["rows"] if "seconds" in row][::-1]
    colours = {"eager": "#444444", "plain": "#9aa5b1", "exact": "#1f77b4", "tiny": "#2ca02c"}
    figure, axes = pyplot.subplots(figsize=(7, 0.42 * len(rows) + 1.2))
    bars = axes.barh(
        [row["name"] for row in rows], [row["seconds"] for row in rows],
        color=[colours[row["name"].split("-")[0]] for row in rows],
    )  # fmt: skip
    texts = [f"{row['seconds']:.2f} s, {row['speedup']:.2f} x" + (", refused" if row.get("failures") else "")
             for row in rows]  # fmt: skip
    axes.bar_label(bars, texts, padding=3, fontsize=8)
    axes.set(xlabel="seconds a picture (median)", xlim=(0, 1.3 * max(row["seconds"] for row in rows)))
    axes.set_title(f"{result['size']} px, {result['machine']['cores']} cores, {result['machine']['cpu']}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
