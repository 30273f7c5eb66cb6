"""One step of training at Stable Diffusion 1.5's size: time and peak memory, with and without gradient checkpointing.

    python benchmarks/training_step.py                     random weights in the right shapes (3.8 GB of disk, for now)
    python benchmarks/training_step.py --backbone FOLDER    yours, in diffusers layout

The paper's setting: frozen U-Net and encoder, adapters of rank 8 on the knowledge-guided cross-attention, explicit
knowledge of 154 x 768 (from a seeded text tower: its weights do not change speed), CLIEA, one picture of 256 px. Each
configuration runs in a process of its own. The last line is one JSON object; with ``--out FILE`` it is also written
there.
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
from pathlib import Path
from typing import Any

from measuring import cpu_name, forget_peak, memory, random_backbone


def main() -> int:
    """Measure both configurations; with ``--worker`` measure one and print its row."""
    parser = argparse.ArgumentParser(description="One training step at Stable Diffusion 1.5's size, on this CPU.")
    parser.add_argument("--backbone", type=Path, help="unet and vae in diffusers layout (default: random weights)")
    parser.add_argument("--size", type=int, default=256, help="side of the picture (default: 256)")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters (default: 8)")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--worker", choices=("plain", "checkpointing"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(args.backbone, args.size, args.rank, args.worker == "checkpointing")))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        backbone = args.backbone or random_backbone(Path(scratch) / "sd15")
        rows = [worker(backbone, args.size, args.rank, name) for name in ("plain", "checkpointing")]
    result = {
        "benchmark": "training_step", "date": time.strftime("%Y-%m-%d"), "size": args.size, "rank": args.rank,
        "machine": {"cpu": cpu_name(), "threads": os.cpu_count(), "system": platform.system()}, "rows": rows,
    }  # fmt: skip
    print(f"{'':<16}{'s, first step':>15}{'s, second':>12}{'GiB before':>12}{'GiB peak':>12}{'loss':>12}")
    for row in rows:
        print(f"{row['name']:<16}{row['seconds'][0]:>15.1f}{row['seconds'][1]:>12.1f}{row['loaded_gib']:>12.2f}"
              f"{row['peak_gib']:>12.2f}{row['losses'][0]:>12.6f}")  # fmt: skip
    if args.out:
        from kcdp.files import write_json

        write_json(args.out, result)
    print(json.dumps(result))
    return 0


def worker(backbone: Path, size: int, rank: int, name: str) -> dict[str, Any]:
    """One configuration in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", name, "--backbone", str(backbone), "--size", str(size),
         "--rank", str(rank)],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def measure(backbone: Path, size: int, rank: int, checkpointing: bool) -> dict[str, Any]:
    """Two steps of the trainer in the setting UC, and what they left as it was."""
    import torch

    from kcdp.cli import main as kcdp
    from kcdp.config import load_config
    from kcdp.models.lora import lora_parameters
    from kcdp.training.pictures import open_pictures
    from kcdp.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as scratch:
        source, captions = f"synthetic:photos?n=12&size={size}", f"{scratch}/captions.jsonl"
        with open(os.devnull, "w") as silent:
            sys.stdout, said = silent, sys.stdout
            kcdp(["knowledge", "caption", "--data", source, "--captioner", "drawn", "--out", captions])
            sys.stdout = said
        config = load_config(
            "sd15",
            overrides=[
                f'model.backbone="{backbone}"', f"model.lora.rank={rank}", 'model.text.kind="seeded"',
                f"preprocess.size={size}", "training.batch_size=1", 'training.mixed_precision="no"',
                f"training.gradient_checkpointing={str(checkpointing).lower()}", "training.augmentation='none'",
            ],
            data={"data": {"source": source, "captions": [captions]}},
        )  # fmt: skip
        pictures, text = open_pictures(config)
        trainer = Trainer(config, pictures, Path(scratch) / "run", text=text)
        unet = trainer.model.features.unet
        before = fingerprint(unet)
        forget_peak()
        loaded = memory("VmRSS")
        batches, seconds, losses = trainer.batches(), [], []
        for _ in range(2):
            source_batch, _ = next(batches)
            started = time.perf_counter()
            losses.append(trainer.train_step(source_batch)["loss"])
            seconds.append(round(time.perf_counter() - started, 2))
        peak = memory("VmHWM")
        moved = sum(bool(p.grad is not None and p.grad.any()) for n, p in unet.named_parameters() if "lora_" in n)
        trainer.save_last()
        return {
            "name": "checkpointing" if checkpointing else "plain",
            "seconds": seconds, "losses": losses, "loaded_gib": round(loaded, 3), "peak_gib": round(peak, 3),
            "adapters": lora_parameters(unet), "adapters_with_gradient": moved,
            "trained": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
            "unet_unchanged": fingerprint(unet) == before,
            "checkpoint_mb": round((Path(scratch) / "run" / "last.safetensors").stat().st_size / 1e6, 1),
            "torch": torch.__version__,
        }  # fmt: skip


def fingerprint(unet: Any) -> str:
    """SHA-256 over all of the U-Net's weights but its adapters."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in unet.state_dict().items():
        if "lora_" not in name:
            digest.update(value.contiguous().view(-1).numpy().data)
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
