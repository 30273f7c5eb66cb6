"""What it saves to encode texts, and pictures, once: steps of training at Stable Diffusion 1.5's size, compared.

    python benchmarks/training.py                          random weights in the right shapes (4.3 GB of disk, for now)
    python benchmarks/training.py --device cuda --size 512 --batch 16 --precision bf16     not tried yet

    every step      the loop as it is usually written, and as released: caption and triples go through CLIP's text tower
                    and pictures through the autoencoder in every step; frozen U-Net with adapters
    text            kcdp's trainer: texts were encoded once
    text, latents   kcdp's trainer: and so was every view of every picture (training.cache_latents)
    released        with --whole: the first loop, but the whole U-Net trains, in float32 (16 GB)

Each is a process of its own; they run in turn, several rounds. A row is the median over the steps of all rounds but
each round's first step. The inputs are the same, and so must the losses be. After them, preset ``edge`` with 0 and 2
loader workers: how long it waits for pictures. The last line is one JSON object; with ``--out FILE`` it is also written
there.

On a busy machine take ``--threads 1``, for threads that wait for each other burn time, and read ``s of a CPU``, the
processor time of a step, and its ratio, in which other processes do not count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measuring import forget_peak, machine, memory, peak, random_backbone, random_text

ROWS = ("every step", "text", "text, latents")
WHOLE = "released"
EDGE = ("workers 0", "workers 2")
#: How far the losses of two rows may be apart, relative: stored token states are float16.
TOLERANCE = 1e-3


def main() -> int:
    """Measure every configuration; with ``--worker`` measure one and print its row."""
    parser = argparse.ArgumentParser(description="What caches save in training, at Stable Diffusion 1.5's size.")
    parser.add_argument("--backbone", type=Path, help="unet and vae in diffusers layout (default: random weights)")
    parser.add_argument("--text", type=Path, help="weights of CLIP ViT-L/14 (default: random weights)")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures (default: 256)")
    parser.add_argument("--batch", type=int, default=1, help="pictures per step (default: 1)")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters (default: 8)")
    parser.add_argument("--steps", type=int, default=3, help="steps per round after the first one (default: 3)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds over all configurations (default: 2)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N (default: cpu)")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"), help="of all rows (default: no, float32)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch (default: all cores)")
    parser.add_argument("--whole", action="store_true", help="also train the whole U-Net; needs 18 GiB to be free")
    parser.add_argument("--tiny", action="store_true", help="a tiny model in one process: tries this script, no more")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--worker", nargs=2, metavar=("ROW", "FOLDER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.tiny:
        args.size, args.batch = 32, max(2, args.batch)  # it normalises over the batch
    if args.worker:
        if args.worker[0] == WHOLE and sys.platform == "linux":  # should memory run out, it is this that goes
            Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
        print(json.dumps(measure(args, args.worker[0], Path(args.worker[1]))))
        return 0
    began = os.getloadavg()
    with tempfile.TemporaryDirectory() as scratch:
        prepare(args, Path(scratch))
        names = [*ROWS, *((WHOLE,) if args.whole else ())]
        rows = summarise(names, run_all(args, names, Path(scratch)))
        edge = summarise(EDGE, run_all(args, EDGE, Path(scratch)))
    result = {
        "benchmark": "training", "date": time.strftime("%Y-%m-%d"), "command": shlex.join(["python", *sys.argv]),
        "machine": machine(args.device) | {
            "threads": args.threads, "load_before": began, "load_after": os.getloadavg(),
        },
        "settings": {name: getattr(args, name) for name in
                     ("size", "batch", "rank", "steps", "rounds", "device", "precision", "tiny")},
        "rows": rows, "losses_agree": losses_agree(rows), "edge": edge,
    }  # fmt: skip
    show(rows, edge)
    if args.out:
        from kcdp.files import write_json

        write_json(args.out, result)
    print(json.dumps(result))
    return 0 if result["losses_agree"] else 1


def prepare(args: argparse.Namespace, scratch: Path) -> None:
    """Pictures, captions and, where none were given, weights."""
    faces = (24, 32) if args.tiny else (320, 64)
    sizes = {"photos": (args.batch * (args.steps + 1), args.size), "faces": faces}
    for name, (count, size) in sizes.items():
        drawn = f"synthetic:photos?n={max(12, count)}&size={size}"
        silently("data", "write", drawn, "--out", str(scratch / name))
        if name == "photos":
            captions = str(scratch / "captions.jsonl")
            silently("knowledge", "caption", "--data", drawn, "--captioner", "drawn", "--out", captions)
    if not args.tiny:
        args.backbone = args.backbone or random_backbone(scratch / "sd15")
        args.text = args.text or random_text(scratch / "text.safetensors")


def silently(*arguments: str) -> None:
    """``kcdp`` without its words."""
    from kcdp.cli import main as kcdp

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        status = kcdp(arguments)
    if status:
        raise SystemExit(said.getvalue())


def run_all(args: argparse.Namespace, names: Sequence[str], scratch: Path) -> list[dict[str, Any]]:
    """Every configuration, round after round."""
    found = []
    for _ in range(args.rounds):
        for name in names:
            if name == WHOLE and memory("MemAvailable") < 18 and not args.tiny:
                raise SystemExit("the row 'released' needs 18 GiB of free memory; leave out --whole")
            found.append(measure(args, name, scratch) if args.tiny else worker(args, name, scratch))
            times = ", ".join(f"{step['seconds']:.2f} ({step['cpu']:.2f})" for step in found[-1]["steps"])
            print(f"{name}: seconds (of a CPU) {times}", file=sys.stderr, flush=True)
    return found


def worker(args: argparse.Namespace, name: str, scratch: Path) -> dict[str, Any]:
    """One configuration in a fresh process."""
    given = {key: value for key, value in vars(args).items() if key not in ("worker", "out", "whole", "tiny")}
    command = [sys.executable, __file__, *(w for key, value in given.items() for w in (f"--{key}", str(value))),
               "--worker", name, str(scratch)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, name: str, scratch: Path) -> dict[str, Any]:
    """Seconds of each step, and of them waiting for pictures, losses, peak memory."""
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if name in EDGE:
            loop = kcdp_loop(edge_config(args, name, scratch), Path(folder))
            count = 2 * (2 if args.tiny else 5)  # two epochs
        else:
            config = sd15_config(args, name, scratch)
            loop = kcdp_loop(config, Path(folder)) if name in ROWS[1:] else plain_loop(config)
            count = 1 + args.steps
        before = next(loop)
        forget_peak(args.device)
        steps = [next(loop) for _ in range(count)]
        loop.close()
    return {"name": name, **before, "steps": steps, "peak_gib": peak(args.device)}


def sd15_config(args: argparse.Namespace, name: str, scratch: Path) -> Any:
    """What the rows have in common, and what is different."""
    from kcdp.config import load_config

    data = f"folder:{scratch / 'photos'}?split=all"
    tables = {"data": {"source": data, "validation": f"{data}&limit=1", "captions": [str(scratch / "captions.jsonl")]}}
    settings = [
        f"training.batch_size={args.batch}", f"training.device={args.device}", "training.augmentation=light",
        "training.views=1", f"training.mixed_precision={args.precision}", "training.weight_decay=0",
        "training.warmup_steps=0", "training.schedule=constant", "training.gradient_clip=0",
        "training.class_weighting=none", "training.epochs=100",
        f"training.cache_latents={str(name == ROWS[2]).lower()}",
    ]  # fmt: skip
    model = ["model.train_backbone=false", f"model.lora.rank={args.rank}"]
    if name == WHOLE:
        model = ["model.train_backbone=true", "model.train_encoder=false", "model.lora.rank=0"]
        settings += ["training.learning_rate=1e-5", "training.mixed_precision=no"]
    if not args.tiny:
        settings.append(f"preprocess.size={args.size}")
        model += [f'model.backbone="{args.backbone}"', f'model.text.weights="{args.text}"']
    return load_config("tiny" if args.tiny else "sd15", overrides=[*settings, *model], data=tables)


def edge_config(args: argparse.Namespace, name: str, scratch: Path) -> Any:
    """The preset as it is, on pictures in files."""
    from kcdp.config import load_config

    data = f"folder:{scratch / 'faces'}?split=all"
    tables = {"data": {"source": data, "validation": f"{data}&limit=6"}}
    settings = [f"training.device={args.device}", f"training.workers={name.split()[1]}"]
    if args.tiny:
        settings.append("training.batch_size=12")
    return load_config("tiny" if args.tiny else "edge", overrides=settings, data=tables)


def plain_loop(config: Any) -> Iterator[dict[str, Any]]:
    """Training as it is usually written: everything is encoded in every step. Losses are those of kcdp."""
    import torch

    from kcdp.config import Config
    from kcdp.data.loader import training_batches
    from kcdp.knowledge.captions import captions_for
    from kcdp.knowledge.embedding import knowledge_tokens
    from kcdp.knowledge.open_text import open_text
    from kcdp.knowledge.triples import open_extractor, triples_text
    from kcdp.models.build import build_model
    from kcdp.torch_device import autocast, autocast_dtype, resolve_device
    from kcdp.training.pictures import open_pictures
    from kcdp.training.steps.source import SourceStep

    device, training = resolve_device(config.training.device), config.training
    untold = config.to_dict()
    untold["data"]["captions"] = []
    pictures, _ = open_pictures(Config.from_dict(untold))
    captions = captions_for(pictures.source.dataset, config.data.captions)
    extractor = open_extractor(config.model.text.extractor)
    text = open_text(config.model, str(device))
    model = build_model(config, text).to(device).train()
    losses_of = SourceStep(config, torch.ones(6, device=device))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], training.learning_rate,
                                  weight_decay=0.0)  # fmt: skip
    dtype = autocast_dtype(training.mixed_precision, device)
    batches = training_batches(pictures.source, training.batch_size, training.seed)
    yield {"pictures": training.batch_size, "trained": trained_parameters(model)}
    while True:
        started, busy = time.perf_counter(), time.process_time()
        batch = next(batches)
        arrived = time.perf_counter()
        before = time.process_time()
        told = [captions[place] for place in batch.place.tolist()]
        triples = [triples_text(caption, extractor, config.model.text.triple_separator) for caption in told]
        knowledge = [knowledge_tokens(*words, text.encode) for words in zip(told, triples, strict=True)]
        encoded = time.process_time()
        batch = batch._replace(knowledge=torch.stack(knowledge)).to(device)
        with autocast(device, dtype):
            loss = losses_of(model, model, batch, None, 0.0).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        yield {
            "seconds": time.perf_counter() - started, "cpu": time.process_time() - busy, "waiting": arrived - started,
            "text": encoded - before, "texts": sum(len(words) for words in triples) + len(told), "loss": value,
        }  # fmt: skip


def kcdp_loop(config: Any, run: Path) -> Iterator[dict[str, Any]]:
    """The trainer's own steps; what is encoded once is encoded before."""
    from kcdp.training.latent_cache import cached_pictures
    from kcdp.training.pictures import open_pictures
    from kcdp.training.trainer import Trainer

    with contextlib.redirect_stderr(io.StringIO()):
        pictures, text = open_pictures(config)
    trainer = Trainer(config, pictures, run, text=text)
    before: dict[str, Any] = {"pictures": config.training.batch_size, "trained": trained_parameters(trainer.model)}
    if config.training.cache_latents:
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.pictures = cached_pictures(
                trainer.pictures, trainer.model, trainer.teacher, config, trainer.engine, run
            )
        count = len(pictures.source) + len(pictures.validation)
        before["seconds_to_encode_a_picture"] = (time.perf_counter() - started) / count
        before["latents_bytes_per_view"] = trainer.pictures.source[0].latents.numel() * 4
    batches = trainer.batches()
    yield before
    while True:
        started, busy = time.perf_counter(), time.process_time()
        source, target = next(batches)
        arrived = time.perf_counter()
        loss = trainer.train_step(source, target)["loss"]
        yield {"seconds": time.perf_counter() - started, "cpu": time.process_time() - busy,
               "waiting": arrived - started, "loss": loss}  # fmt: skip


def trained_parameters(model: Any) -> int:
    """How many numbers change."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def summarise(names: Sequence[str], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per configuration, beside the first one."""
    rows: list[dict[str, Any]] = []
    for name in names:
        rounds = [m for m in measured if m["name"] == name]
        later = [step for m in rounds for step in m["steps"][1:]]
        seconds, busy = (median(step[what] for step in later) for what in ("seconds", "cpu"))
        row = {
            "name": name, "seconds": seconds, "pictures_per_second": rounds[0]["pictures"] / seconds,
            "first_step_seconds": median(m["steps"][0]["seconds"] for m in rounds),
            "speedup": (rows[0]["seconds"] if rows else seconds) / seconds,
            "cpu_seconds": busy, "cpu_speedup": (rows[0]["cpu_seconds"] if rows else busy) / busy,
            "waiting_share": waited(later), "peak_gib": max(m["peak_gib"] for m in rounds),
            **{key: value for key, value in rounds[0].items() if key not in ("name", "steps", "peak_gib")},
            "losses": [step["loss"] for step in rounds[0]["steps"]],
            "rounds": [[round(step["seconds"], 4) for step in m["steps"]] for m in rounds],
            "cpu_rounds": [[round(step["cpu"], 4) for step in m["steps"]] for m in rounds],
        }  # fmt: skip
        if "text" in later[0]:
            row["text_cpu_seconds"] = median(step["text"] for step in later)
            row["texts"] = [step["texts"] for step in rounds[0]["steps"]]
        if name in EDGE:
            half = len(rounds[0]["steps"]) // 2
            row["waiting_share_first_epoch"] = waited([step for m in rounds for step in m["steps"][:half]])
            row["waiting_share_later"] = waited([step for m in rounds for step in m["steps"][half:]])
        rows.append(row)
    return rows


def waited(steps: Sequence[dict[str, Any]]) -> float:
    """Share of the time in which the next batch was not there yet."""
    return sum(step["waiting"] for step in steps) / sum(step["seconds"] for step in steps)


def losses_agree(rows: Sequence[dict[str, Any]]) -> bool:
    """Whether every row but that of the whole U-Net, which is another training, had the first one's losses."""
    for row in rows:
        row["largest_loss_difference"] = max(
            abs(a - b) / abs(b) for a, b in zip(row["losses"], rows[0]["losses"], strict=True)
        )
    return all(row["largest_loss_difference"] <= TOLERANCE for row in rows if row["name"] != WHOLE)


def show(rows: Sequence[dict[str, Any]], edge: Sequence[dict[str, Any]]) -> None:
    """The tables."""
    common = f"{'s, first step':>14}{'s':>9}{'x':>6}{'pictures/s':>12}{'s of a CPU':>12}{'x':>6}"
    print(f"{'encoded once':<16}{common}{'waiting':>9}{'GiB peak':>10}{'loss apart':>12}")
    for row in rows:
        print(f"{_speed(row)}{row['waiting_share']:>9.1%}{row['peak_gib']:>10.2f}"
              f"{row['largest_loss_difference']:>12.1e}")  # fmt: skip
    print(f"{'edge':<16}{common}{'waiting: first epoch':>22}{'later':>8}")
    for row in edge:
        print(f"{_speed(row)}{row['waiting_share_first_epoch']:>22.1%}{row['waiting_share_later']:>8.1%}")


def _speed(row: dict[str, Any]) -> str:
    return (f"{row['name']:<16}{row['first_step_seconds']:>14.2f}{row['seconds']:>9.3f}{row['speedup']:>6.2f}"
            f"{row['pictures_per_second']:>12.3f}{row['cpu_seconds']:>12.3f}{row['cpu_speedup']:>6.2f}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
