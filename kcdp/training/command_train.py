"""``kcdp train``: labelled photographs in, a run folder out."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from kcdp.config import Config, load_config, preset_names
from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError, require
from kcdp.training import PACKAGES

if TYPE_CHECKING:
    from kcdp.data.loader import TensorDataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())} (default: edge)")
    parser.add_argument("--source", metavar="SPEC", help='labelled pictures, such as "fer2013:PATH"')
    parser.add_argument("--validation", metavar="SPEC", default="", help="default: the source's own val split")
    parser.add_argument("--out", metavar="RUN", type=Path, help="run folder to make")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML with any of the settings")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; repeatable")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with this run as it was configured")


def run(args: argparse.Namespace) -> int:
    """Train, and say what to run next."""
    if args.resume is not None:
        _refuse_with_resume(args)
    else:  # before the libraries are loaded: that takes seconds, a mistake should not
        config, out = _new_run(args)
        open_dataset(config.data.source, split="train")
    for package in PACKAGES:
        require(package, "train")
    from kcdp.training.checkpoint import LAST, load_checkpoint
    from kcdp.training.trainer import Trainer

    resume = None
    if args.resume is not None:
        out = args.resume
        resume = load_checkpoint(out / LAST)
        config = resume.config
    source, validation = open_source(config)
    trainer = Trainer(config, source, validation, out, resume)
    _announce(config, trainer)
    try:
        progress = trainer.run()
    except KeyboardInterrupt:
        print(f"\nstopped at step {trainer.progress.step} and saved; go on with: kcdp train --resume {out}")
        raise
    print(f"best validation balanced accuracy {progress.best:.4f} at step {progress.best_step}, in {out}")
    print(f"next: kcdp evaluate {out} --data SPEC --out REPORT   or   python -m kcdp.export {out} --out NAME.kcdp")
    return 0


def open_source(config: Config) -> tuple[TensorDataset, TensorDataset]:
    """The augmented training pictures and the plain validation pictures of a configuration.

    Raises:
        KcdpError: a dataset cannot be opened, or holds pictures without a label.
    """
    from kcdp.data.loader import TensorDataset

    data, training = config.data, config.training
    source = open_dataset(data.source, split="train")
    validation = open_dataset(data.validation or _validation_of(data.source), split="val")
    for name, dataset in (("source", source), ("validation", validation)):
        _require_labels(name, dataset)
    return (
        TensorDataset(source, config.preprocess, training.augmentation, training.seed),
        TensorDataset(validation, config.preprocess),
    )


def _validation_of(source: str) -> str:
    """The source again; its own ``split=`` option, if any, must not decide the validation split."""
    from kcdp.data.registry import parse_spec

    spec = parse_spec(source)
    if "split" in spec.options:
        raise KcdpError(
            f"--source {source!r} names a split, so its validation pictures are unknown",
            "--validation SPEC as well",
            "add it, or leave split= out of the source",
        )
    return source


def _require_labels(name: str, dataset: ImageDataset) -> None:
    unlabelled = int((dataset.labels < 0).sum())
    if unlabelled:
        raise KcdpError(
            f"{name} {dataset.name!r} has {unlabelled} pictures without a label of {len(dataset)}",
            "only labelled pictures",
            "add ?only=labelled",
        )


def _new_run(args: argparse.Namespace) -> tuple[Config, Path]:
    tables = {"data": {k: v for k, v in (("source", args.source), ("validation", args.validation)) if v}}
    config = load_config(args.preset or "edge", args.config, args.set, tables)
    if not config.data.source:
        raise KcdpError("no source given", 'labelled pictures, such as --source "fer2013:PATH"')
    if args.out is None:
        raise KcdpError("no --out given", "the run folder to make, such as --out runs/first")
    if os.path.isfile(args.out):
        raise KcdpError(f"{args.out} is a file", "a new folder", "choose another --out")
    if os.path.isdir(args.out) and any(args.out.glob("*.safetensors")):
        raise KcdpError(
            f"{args.out} holds a run already", "a new folder", f"choose another --out, or --resume {args.out}"
        )
    return config, args.out


def _refuse_with_resume(args: argparse.Namespace) -> None:
    given = [f"--{name}" for name in ("preset", "source", "validation", "out", "config", "set") if getattr(args, name)]
    if given:
        raise KcdpError(
            f"--resume with {', '.join(given)}", "--resume alone: a run goes on as it was configured",
            "start a new run to change a setting",
        )  # fmt: skip


def _announce(config: Config, trainer: object) -> None:
    from kcdp.training.trainer import Trainer

    assert isinstance(trainer, Trainer)
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in trainer.model.parameters())
    counts = ", ".join(f"{k} {v}" for k, v in trainer.source.dataset.class_counts().items())
    precision = str(trainer.dtype).removeprefix("torch.") if trainer.dtype else "float32"
    print(f"{config.preset}: {trained:,} of {total:,} parameters train, on {trainer.device} in {precision}")
    print(f"source {len(trainer.source)} pictures ({counts}), validation {len(trainer.validation)}")
    limit = "training.max_steps" if trainer.total_steps == config.training.max_steps else "training.epochs"
    done = f", {trainer.progress.step} of them done already" if trainer.progress.step else ""
    print(f"{trainer.total_steps} steps of {config.training.batch_size} pictures, as {limit} says{done}", flush=True)
