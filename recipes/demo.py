"""The whole line in a few minutes: pictures, training, evaluation, export with its parity gate, tags, a contact sheet.

Run by ``make demo``. Every step is a command that anyone can type; it is printed before it runs. The source is
FER-2013 where ``--fer2013`` names it, drawn photographs otherwise; the target is emoji artwork where npm can
fetch it, drawn stickers otherwise. No label of the target is used for anything but measuring.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kcdp.files import read_json
from kcdp.labels import LABELS
from kcdp.runtime.rows import tag_of_row
from kcdp.runtime.sheet import write_contact_sheet

#: Styles whose pictures are shown and measured, and how many faces of each emotion from each at most.
STYLES, FACES = ("noto", "fluent-3d"), 4


def main() -> int:
    """Exit status: 0 when every step succeeded, else that of the step that failed."""
    parser = argparse.ArgumentParser(description="Train, export and tag, from nothing to a contact sheet.")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for everything (default: demo)")
    parser.add_argument("--fer2013", help="FER-2013: its zip, csv or folder (default: drawn photographs)")
    parser.add_argument("--steps", type=int, default=600, help="training steps (default: 600)")
    parser.add_argument("--drawn", action="store_true", help="drawn photographs and stickers even where others are")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: a tiny model, drawn pictures")
    args = parser.parse_args()
    started = time.perf_counter()
    out: Path = args.out
    for stale in ("run", "report"):
        shutil.rmtree(out / stale, ignore_errors=True)
    try:
        pictures, target = stickers(out, drawn=args.quick or args.drawn)
        train(out, args)
        kcdp("evaluate", out / "run", "--data", target, "--out", out / "report")
        kcdp("export", out / "run", "--out", out / "demo.kcdp", "--overwrite")
        tag(out, pictures)
    except subprocess.CalledProcessError as error:
        print(f"demo: this step failed with exit status {error.returncode}", file=sys.stderr)
        return error.returncode
    print(f"\ndone in {(time.perf_counter() - started) / 60:.1f} minutes. Look at {out / 'contact_sheet.png'}")
    print(f"next: {sys.executable} -m kcdp tag YOUR_STICKERS --model {out / 'demo.kcdp'}")
    return 0


def stickers(out: Path, drawn: bool) -> tuple[dict[str, str], str]:
    """Target pictures: path -> true emotion, in the order they are shown, and the dataset string to measure on."""
    artwork = out / "emoji"
    if not drawn and not (artwork / "manifest.json").is_file():
        try:
            kcdp("data", "emoji", "--out", artwork)
        except subprocess.CalledProcessError:
            print("no artwork to be had: drawn stickers instead")
    if not drawn and (artwork / "manifest.json").is_file():
        return shown_faces(artwork), f"emoji:{artwork}?styles={','.join(STYLES)}&only=labelled"
    folder = out / "stickers"
    kcdp("data", "write", "synthetic:stickers?n=48&seed=7", "--out", folder, "--overwrite")
    files = [path for label in LABELS for path in sorted((folder / label).glob("*.png"))]
    return {str(path): path.parent.name for path in files}, f"folder:{folder}"


def shown_faces(artwork: Path) -> dict[str, str]:
    """The first faces of every emotion by code point, in each style, grouped by emotion."""
    faces = sorted((p for p in read_json(artwork / "manifest.json")["pictures"]), key=lambda p: p["code"])
    shown: dict[str, str] = {}
    for label in LABELS:
        for style in STYLES:
            some = [p for p in faces if p["label"] == label and p["style"] == style][:FACES]
            shown.update({str(artwork / p["file"]): label for p in some})
    return shown


def train(out: Path, args: argparse.Namespace) -> None:
    """A short training; the settings that differ from the preset are on the command line."""
    if args.quick:
        source, preset, steps = "synthetic:photos?n=120&size=64", "tiny", 12
    else:
        known = args.fer2013 and not args.drawn
        source = f"fer2013:{args.fer2013}" if known else "synthetic:photos?n=3000&size=96"
        preset, steps = "edge", args.steps
    settings = (f"training.max_steps={steps}", f"training.validate_every={max(1, steps // 2)}")
    options = [part for setting in settings for part in ("--set", setting)]
    kcdp("train", "--preset", preset, "--source", source, "--out", out / "run", *options)


def tag(out: Path, pictures: dict[str, str]) -> None:
    """Rows of JSON from the command, then a sheet that also knows the truth: wrong answers get a red frame."""
    rows = out / "tags.jsonl"
    kcdp("tag", *pictures, "--model", out / "demo.kcdp", "--out", rows, show=f"{len(pictures)} pictures")
    tags = [tag_of_row(json.loads(line)) for line in rows.read_text(encoding="utf-8").splitlines()]
    write_contact_sheet(out / "contact_sheet.png", tags, truth=pictures)


def kcdp(*arguments: object, show: str = "") -> None:
    """Run ``kcdp ARGUMENTS`` with this Python, printing it first; raises CalledProcessError when it fails."""
    words = [str(argument) for argument in arguments]
    shown = [words[0], f"<{show}>", *words[words.index("--model") :]] if show else words
    print(f"\n$ kcdp {shlex.join(shown) if not show else ' '.join(shown)}", flush=True)
    subprocess.run([sys.executable, "-m", "kcdp", *words], check=True)


if __name__ == "__main__":
    sys.exit(main())
