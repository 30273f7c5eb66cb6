"""``kcdp evaluate``: a trained model against labelled datasets, and a report of it."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kcdp import __version__
from kcdp.data.dataset import ImageDataset
from kcdp.errors import KcdpError, require
from kcdp.files import make_folder, sha256_file
from kcdp.training import PACKAGES

if TYPE_CHECKING:
    from kcdp.data.loader import TensorDataset
    from kcdp.training.checkpoint import Checkpoint
    from kcdp.training.reports.evaluation import Measured

#: Whole numbers and the least each may be.
_LEAST = {"batch_size": 1, "resamples": 1, "seed": 0, "embed": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("run", metavar="RUN", help="run folder (its best checkpoint) or a checkpoint file")
    parser.add_argument(
        "--data", metavar="SPEC", action="append", required=True,
        help='labelled pictures, such as "fer2013:PATH"; repeatable, the first is the main one',
    )  # fmt: skip
    parser.add_argument(
        "--neutral", metavar="SPEC", help="pictures without an emotion, to choose below which confidence to abstain"
    )
    parser.add_argument(
        "--captions", metavar="FILE", action="append", default=[],
        help='what the pictures show, for a model of the knowledge mode "explicit"; repeatable (default: the run\'s)',
    )  # fmt: skip
    parser.add_argument(
        "--domain", choices=("source", "target"), default="target", help="whose caption prefix counts (default: target)"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder for report.md, report.json and pictures (default: RUN/report)"
    )
    parser.add_argument(
        "--no-validation", action="store_true",
        help="leave out the source's validation pictures, and with them the temperature",
    )  # fmt: skip
    parser.add_argument(
        "--embed", type=int, default=1500, metavar="N", help="pictures on the t-SNE map; 0: no map (default: 1500)"
    )
    parser.add_argument("--resamples", type=int, default=2000, metavar="N", help="of the bootstrap (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of bootstrap, map and halves (default: 0)")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="pictures per pass (default: 64)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")


def run(args: argparse.Namespace) -> int:
    """Evaluate in float32 on the full splits, write the report, print a summary."""
    for package in (*PACKAGES, "matplotlib"):
        require(package, "train")
    from kcdp.torch_device import resolve_device
    from kcdp.training.checkpoint import find_checkpoint, load_model
    from kcdp.training.reports.datasets import open_for_evaluation, open_neutral, warnings
    from kcdp.training.reports.evaluation import TEXT, Options, write_report
    from kcdp.training.reports.specs import short
    from kcdp.training.reports.summary import summary

    _check(args)
    datasets = [open_for_evaluation(data) for data in args.data]
    neutral = open_neutral(args.neutral) if args.neutral else None
    model, checkpoint = load_model(args.run)
    said = [(data, text) for data in args.data for text in warnings(data, checkpoint.config)]
    for data, text in said:
        print(f"warning: {text}" + (f" ({data})" if len(args.data) > 1 else ""), file=sys.stderr)
    device = resolve_device(args.device)
    tensors = _tensors(args, checkpoint, datasets, neutral)
    path = find_checkpoint(args.run)
    out = args.out or path.parent / "report"
    make_folder(out)  # before the work, not after it
    measured = _predict(args, checkpoint, model.to(device), device, tensors)
    name = f"{path.resolve().parent.name}/{path.name}"
    about: dict[str, Any] = {
        "title": f"{name} on {short(args.data[0])}",
        "model": name,
        "data": args.data[0],
        "checkpoint": {"file": path.name, "sha256": sha256_file(path), "progress": checkpoint.progress},
        "kcdp": __version__,
        "configuration": checkpoint.config.to_dict(),
        "command": command_line(args),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {"kcdp": __version__, "Python": platform.python_version(),
                     **{name: version(name) for name in ("torch", "numpy", "scikit-learn")}},
        "device": str(device),
        "warnings": [list(pair) for pair in said],
    }  # fmt: skip
    options = Options(args.resamples, args.seed, args.embed)
    report = write_report(out, about, path.parent, measured, options)
    print(summary(report))
    print(f"report: {out / TEXT}")
    print(f"next, with several runs: kcdp report {shlex.quote(str(out))} OTHER ... --out DIR")
    return 0


def _check(args: argparse.Namespace) -> None:
    for name, least in _LEAST.items():
        if getattr(args, name) < least:
            raise KcdpError(f"--{name.replace('_', '-')} is {getattr(args, name)}", f"{least} or more")
    for number, data in enumerate(args.data):
        if data in args.data[:number]:
            raise KcdpError(f"--data {data!r} is given twice", "each dataset once", "leave one out")


def _tensors(
    args: argparse.Namespace, checkpoint: Checkpoint, datasets: list[ImageDataset], neutral: ImageDataset | None
) -> tuple[list[TensorDataset], TensorDataset | None, TensorDataset | None, str]:
    """The pictures as the model takes them: measured, neutral, validation, or why there is none of the latter."""
    from kcdp.training.reports.datasets import open_validation, with_knowledge

    config = checkpoint.config
    told = [with_knowledge(dataset, config, args.captions, args.domain) for dataset in datasets]
    without = None if neutral is None else with_knowledge(neutral, config, args.captions, args.domain)
    if args.no_validation:
        return told, without, None, "left out by --no-validation"
    try:
        # Captions of the training, for they hold these pictures.
        return told, without, with_knowledge(open_validation(config), config, (), "source"), ""
    except KcdpError as error:
        return told, without, None, str(error)


def _predict(
    args: argparse.Namespace, checkpoint: Checkpoint, model: Any, device: Any,
    tensors: tuple[list[TensorDataset], TensorDataset | None, TensorDataset | None, str],
) -> Measured:  # fmt: skip
    from kcdp.training.predict import predict
    from kcdp.training.reports.datasets import measured_split, same_place, validated
    from kcdp.training.reports.evaluation import Measured
    from kcdp.training.reports.measurement import MEASURED, NEUTRAL, VALIDATION, Answers

    config, (told, neutral, validation, reason) = checkpoint.config, tensors

    def answers(name: str, role: str, data: TensorDataset, split: str) -> Answers:
        found = predict(
            model, data, config.preprocess, device=device, batch_size=args.batch_size, progress=f"evaluate {role}"
        )
        if not all(np.isfinite(part).all() for part in (found.logits, found.v)):
            raise KcdpError(f"the model's answers to {name!r} are not finite numbers", fix="take another checkpoint")
        return Answers(name, role, data.dataset, found, split)

    rows = [answers(name, MEASURED, data, measured_split(name)) for name, data in zip(args.data, told, strict=True)]
    try:
        chosen = None if validation is None else answers(validation.dataset.name, VALIDATION, validation, "val")
    except KcdpError as error:  # a picture that is gone or damaged
        chosen, reason = None, str(error)
    without, beside = None, 0
    if neutral is not None:
        without = answers(args.neutral, NEUTRAL, neutral, measured_split(args.neutral))
        beside = next((i for i, data in enumerate(args.data) if same_place(data, args.neutral)), 0)
    own = frozenset(data for data in args.data if validated(data, config))
    return Measured(rows, chosen, without, reason, own, beside)


def command_line(args: argparse.Namespace) -> str:
    """The command that was typed, without what is as by default."""
    words = ["kcdp", "evaluate", str(args.run)]
    for name in ("data", "neutral", "captions", "out", "batch_size", "device", "domain", "embed", "resamples", "seed"):
        value = getattr(args, name)
        usual = {"batch_size": 64, "device": "auto", "domain": "target", "embed": 1500, "resamples": 2000, "seed": 0}
        if value is None or value == usual.get(name):
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return shlex.join(words + ["--no-validation"] * args.no_validation)
