"""The first steps of a training, which ``kcdp train --resume RUN`` then finishes as if it had not been stopped.

    python recipes/fer-to-emoji/first_part.py --stop-after 1500 --config FILE --source SPEC --out RUN

Not the same as a shorter training: the learning rate follows the whole run's schedule. Stopped, it goes on itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kcdp.cli import guarded
from kcdp.config import load_config
from kcdp.errors import KcdpError
from kcdp.training.checkpoint import LAST, load_checkpoint
from kcdp.training.command_train import check_data
from kcdp.training.pictures import open_pictures
from kcdp.training.trainer import Trainer


def main() -> int:
    """Exit status: 0, or 2 for a mistake."""
    parser = argparse.ArgumentParser(description="Train the first steps of a run.")
    parser.add_argument("--stop-after", type=int, required=True, metavar="N", help="steps")
    parser.add_argument("--preset", default="edge")
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML with any of the settings")
    parser.add_argument("--source", action="append", required=True, metavar="SPEC", help="labelled pictures")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one setting; repeatable")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="run folder to make or go on with")
    args = parser.parse_args()
    return guarded(lambda: train(args))


def train(args: argparse.Namespace) -> int:
    """Train to the step that was asked for.

    Raises:
        KcdpError: the run is past it already, or what ``kcdp train`` raises.
    """
    resume = load_checkpoint(args.out / LAST) if (args.out / LAST).exists() else None
    if resume is None:
        config = load_config(args.preset, args.config, args.set, {"data": {"source": args.source}})
        check_data(config)
    else:
        config = resume.config
        if resume.progress["step"] > args.stop_after:
            raise KcdpError(
                f"{args.out} is at step {resume.progress['step']}", f"{args.stop_after} at most", "take a new folder"
            )
    pictures, text = open_pictures(config)
    progress = Trainer(config, pictures, args.out, resume, text=text).run(args.stop_after)
    print(f"{progress.step} steps, balanced accuracy {progress.best:.4f} at step {progress.best_step}, in {args.out}")
    print(f"next: kcdp train --resume {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
