"""``kcdp train``: labelled photographs in, a run folder out."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kcdp.config import Config, load_config, preset_names, profile_names
from kcdp.data.registry import open_datasets
from kcdp.errors import KcdpError, require
from kcdp.knowledge.captions import CaptionFile
from kcdp.training import PACKAGES

if TYPE_CHECKING:
    from kcdp.training.checkpoint import Checkpoint
    from kcdp.training.progress import Progress

#: Options that say what a new run is.
_NEW_RUN = ("preset", "profile", "source", "target", "validation", "captions", "out", "config", "set")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--preset", help=f"one of {', '.join(preset_names())} (default: edge)")
    for name, text in (
        ("source", 'labelled pictures, such as "fer2013:PATH"; repeatable, weight=W sets their shares'),
        ("target", "unlabelled pictures to adapt to (setting DA); repeatable"),
        ("validation", "default: the sources' own val splits; repeatable"),
    ):
        parser.add_argument(f"--{name}", metavar="SPEC", action="append", default=[], help=text)
    parser.add_argument(
        "--captions", metavar="FILE", action="append", default=[],
        help="what the pictures show, from: kcdp knowledge caption; repeatable; makes the knowledge mode explicit",
    )  # fmt: skip
    parser.add_argument("--profile", help=f"one of {', '.join(profile_names())} (default: paper)")
    parser.add_argument("--out", metavar="RUN", type=Path, help="run folder to make")
    parser.add_argument("--config", metavar="FILE", type=Path, help="TOML with any of the settings")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="one setting; repeatable")
    parser.add_argument("--resume", metavar="RUN", type=Path, help="go on with this run as it was configured")
    parser.add_argument(
        "--stop-after", metavar="STEP", type=int, help="save and end at this step of the schedule; --resume goes on"
    )


def run(args: argparse.Namespace) -> int:
    """Train, and say what to run next."""
    if args.stop_after is not None and args.stop_after < 1:
        raise KcdpError(f"--stop-after is {args.stop_after}", "1 or more, a step of the schedule")
    if args.resume is not None:
        _refuse_with_resume(args)
    else:  # before the libraries are loaded: that takes seconds, a mistake should not
        config, out, start = _new_run(args)
        check_data(config, start)
    for package in PACKAGES:
        require(package, "train")
    from kcdp.training.checkpoint import LAST, load_checkpoint
    from kcdp.training.pictures import open_pictures
    from kcdp.training.trainer import Trainer

    resume, tensors = None, None
    if args.resume is not None:
        out = args.resume
        resume = load_checkpoint(out / LAST)
        config = resume.config
    pictures, text = open_pictures(config)
    if resume is None and start is not None:
        tensors = start.model
    trainer = Trainer(config, pictures, out, resume, text=text, start=tensors)
    speaks = trainer.engine.is_main
    if speaks:
        _announce(config, trainer)
    try:
        progress = trainer.run(args.stop_after)
    except KeyboardInterrupt:
        if speaks and trainer.saved == trainer.progress.step:
            print(f"\nstopped at step {trainer.progress.step} and saved; go on with: kcdp train --resume {out}")
        elif speaks:
            print(f"\nstopped before step {trainer.progress.step} was saved")
        raise
    if speaks and progress.step < trainer.total_steps:
        print(f"stopped at step {progress.step} of {trainer.total_steps}, as --stop-after says; go on with: "
              f"kcdp train --resume {out}")  # fmt: skip
    elif speaks:
        _conclude(config, progress, out)
    return 0


def _conclude(config: Config, progress: Progress, out: Path) -> None:
    if progress.seconds:
        share = progress.waiting / progress.seconds
        print(f"{progress.step} steps in {progress.seconds:.0f} s, {share:.1%} of it waiting for pictures")
    for name, keys in progress.skipped.items():
        if keys:
            print(f"{len(keys)} pictures of the {name} could not be read and were skipped, the first is {keys[0]}")
    print(f"best validation balanced accuracy {progress.best:.4f} at step {progress.best_step}, in {out}")
    if config.model.knowledge.mode == "explicit":
        print(f"next: kcdp evaluate {out} --data SPEC --captions FILE")
        print("for devices, teach an adapter: kcdp train --source SPEC --captions FILE "
              f"--set model.knowledge.mode=implicit --set training.implicit=distill --set training.init_from={out} "
              "--out RUN")  # fmt: skip
    elif config.model.network == "kadap":
        print(f"next: kcdp evaluate {out} --data SPEC   or   python -m kcdp.export {out} --out NAME.kcdp")
    else:
        print(f"next: kcdp evaluate {out} --data SPEC")


def check_data(config: Config, start: Checkpoint | None = None) -> None:
    """What can be told of a configuration's data before the run begins.

    Args:
        start: the checkpoint that ``training.init_from`` names.

    Raises:
        KcdpError: a dataset cannot be opened, captions are missing or not wanted, or a run to start from does not fit.
    """
    data, training, mode = config.data, config.training, config.model.knowledge.mode
    config.check_backbone()
    config.check_latents()
    open_datasets(data.source, split="train")
    if data.target:
        open_datasets(data.target, split="train")
    both = [text for text in data.target if text in data.source]
    if both:
        raise KcdpError(
            f"source and target are both {both[0]!r}", "unlabelled pictures of another domain", "change --target"
        )
    distils = training.implicit == "distill"
    teaches = bool(data.target) and training.pseudo_labels.teacher == "start"
    if distils and mode != "implicit":
        raise KcdpError(
            f'training.implicit is "distill" and model.knowledge.mode {mode!r}', "the mode implicit",
            "add --set model.knowledge.mode=implicit",
        )  # fmt: skip
    if distils and (start is None or start.config.model.knowledge.mode != "explicit"):
        found = "empty" if start is None else f"a run of the mode {start.config.model.knowledge.mode!r}"
        raise KcdpError(
            f'training.implicit is "distill" and training.init_from {found}', "an explicit run to learn from",
            "train one with --captions, then add --set training.init_from=RUN",
        )  # fmt: skip
    told = start is not None and start.config.model.knowledge.mode == "explicit"
    if not data.captions and (mode == "explicit" or distils or (teaches and told)):
        whose = 'model.knowledge.mode is "explicit"' if mode == "explicit" else "the run to learn from takes captions"
        raise KcdpError(
            f"{whose} and there are no captions", "--captions FILE",
            "make it with: kcdp knowledge caption --data SPEC --captioner NAME --out FILE"
            + ("; or add --set model.knowledge.mode=constant" if mode == "explicit" else ""),
        )  # fmt: skip
    if mode == "constant" and data.captions:
        raise KcdpError(
            'captions given to the mode "constant", which does not use them', 'model.knowledge.mode "explicit" or '
            '"implicit"', "leave out --captions or change the mode",
        )  # fmt: skip
    for file in data.captions:
        CaptionFile(file, must_exist=True)


def _new_run(args: argparse.Namespace) -> tuple[Config, Path, Checkpoint | None]:
    given = {name: getattr(args, name) for name in ("source", "target", "validation", "captions")}
    tables: dict[str, Any] = {"data": {name: value for name, value in given.items() if value}}
    preset, profile, start = args.preset or "edge", args.profile or "paper", None
    config = load_config(preset, args.config, args.set, tables, profile=profile)
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
    if config.training.init_from:
        start = _start(config, args)
        base, seen = start.config.to_dict(), start.config.data
        base["model"]["lora"]["weights"] = ""
        tables["data"]["ancestors"] = [*seen.source, *seen.target, *seen.ancestors]
        config = load_config(
            start.config.preset, args.config, args.set, tables, profile=start.config.profile,
            base={name: base[name] for name in ("model", "preprocess")},
        )  # fmt: skip
    return config, args.out, start


def _start(config: Config, args: argparse.Namespace) -> Checkpoint:
    """The checkpoint to start from.

    Raises:
        KcdpError: it is not there, or another preset or profile is asked for than it has.
    """
    name, weights = config.training.init_from, config.model.lora.weights
    if weights:
        raise KcdpError(
            f"model.lora.weights is {weights!r} and training.init_from {name!r}",
            "one of the two: a run has its adapters in it", "leave out model.lora.weights",
        )  # fmt: skip
    for package in PACKAGES:
        require(package, "train")
    from kcdp.training.checkpoint import find_checkpoint, load_checkpoint

    start = load_checkpoint(find_checkpoint(name))
    for kind in ("preset", "profile"):
        asked, has = getattr(args, kind), getattr(start.config, kind)
        if asked and asked != has:
            raise KcdpError(f"--{kind} {asked} for a run that starts from {name}", f"{has}, as that one has",
                            f"leave out --{kind}")  # fmt: skip
    return start


def _refuse_with_resume(args: argparse.Namespace) -> None:
    given = [f"--{name}" for name in _NEW_RUN if getattr(args, name)]
    if given:
        raise KcdpError(
            f"--resume with {', '.join(given)}", "--resume alone: a run goes on as it was configured",
            "start a new run to change a setting",
        )  # fmt: skip


def _announce(config: Config, trainer: object) -> None:
    from kcdp.models.kadap import Kadap
    from kcdp.training.trainer import Trainer

    assert isinstance(trainer, Trainer)
    model, pictures = trainer.model, trainer.pictures
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    counts = ", ".join(f"{k} {v}" for k, v in pictures.source.dataset.class_counts().items())
    precision = str(trainer.dtype).removeprefix("torch.") if trainer.dtype else "float32"
    adapters = sum(p.numel() for name, p in model.named_parameters() if "lora_" in name and p.requires_grad)
    lora = f" ({adapters:,} of them low-rank adapters, rank {config.model.lora.rank})" if adapters else ""
    print(f"{config.preset}, {config.profile}: {trained:,} of {total:,} parameters train{lora}, "
          f"on {trainer.device} in {precision}")  # fmt: skip
    alignment, mode = config.model.alignment.kind, config.model.knowledge.mode
    if isinstance(model, Kadap):
        print(f"knowledge {mode}, {model.features.tokens} tokens of {model.features.width}; alignment {alignment}")
    else:
        print(f"network {config.model.network}")
    if config.training.method != "kcdp":
        print(f"method {config.training.method}")
    print(f"source {len(pictures.source)} pictures ({counts}), validation {len(pictures.validation)}")
    if pictures.target is not None:
        print(f"target {len(pictures.target)} pictures, unlabelled: setting DA")
    if config.training.init_from and not trainer.progress.step:
        print(f"starts from {config.training.init_from}" + (f"; new: {_parts(trainer.fresh)}" if trainer.fresh else ""))
    limit = "training.max_steps" if trainer.total_steps == config.training.max_steps else "training.epochs"
    done = f", {trainer.progress.step} of them done already" if trainer.progress.step else ""
    more = ""
    if pictures.target is not None:
        more = f" and {trainer.batch_sizes['target']} of the target"
    batch, world, parts = trainer.batch_sizes["source"], trainer.engine.share.world, config.training.accumulate
    shared = (f", shared by {world} processes" if world > 1 else "") + (f", in {parts} parts" if parts > 1 else "")
    print(f"{trainer.total_steps} steps of {batch} pictures{more}{shared}, as {limit} says{done}", flush=True)


def _parts(names: list[str]) -> str:
    """Tensors by the part of the model they belong to."""
    counts = Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count} tensors)" for part, count in counts.items())
