"""``kcdp data``: fetches emoji artwork, shows and checks what a dataset string holds, writes it as picture files."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

from kcdp.data.check import check_dataset
from kcdp.data.check_text import describe_check
from kcdp.data.dataset import SPLITS, ImageDataset
from kcdp.data.emoji import read_manifest
from kcdp.data.emoji_fetch import ALL, fetch_emoji
from kcdp.data.registry import COMMON, KINDS, native_splits, open_dataset, open_datasets, split_of
from kcdp.data.write import FORMATS, write_pictures
from kcdp.errors import KcdpError
from kcdp.files import write_json
from kcdp.labels import LABELS

#: The styles of the headline number: measured on, never trained on.
TEST_STYLES = ("noto", "fluent-3d")
EXIT_BAD_PICTURES = 1

_CHECK_NOTES = """\
broken: a picture is missing or cannot be decoded; a run would stop there. usable with remarks: pictures that are there
several times, or classes without a picture. Of several datasets, a picture that two of them hold is found too.
status: 0, or 1 where something is missing, damaged, or there twice with different labels.
"""
_WRITE_NOTES = """\
layout: DIR/<class>/<name>.png, below DIR/<split>/ where the dataset has splits of its own; without labels the
pictures lie straight in DIR. Labelled and unlabelled pictures are not mixed: add only=labelled or labelled=no.
A dataset without splits of its own is divided by its keys, and files have other keys: to keep a division, write
each split (split=train, ...) to a folder of its own.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the subcommands ``emoji``, ``list``, ``check`` and ``write``."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="{emoji,list,check,write}")
    emoji = commands.add_parser("emoji", help="fetch face emoji in six artworks (needs npm and a network)")
    emoji.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    emoji.add_argument("--size", type=int, default=256, metavar="N", help="side of the pictures (default: 256)")
    emoji.add_argument("--styles", default=",".join(ALL), metavar="A,B", help="which artworks (default: %(default)s)")
    emoji.add_argument("--overwrite", action="store_true", help="replace the folder an earlier call wrote")
    emoji.add_argument("--quiet", action="store_true", help="no progress bar")
    listing = commands.add_parser(
        "list",
        help="count a dataset's pictures by class, split and group",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_describe_kinds(),
    )
    listing.add_argument("spec", metavar="SPEC", help="kind:PATH?option=value&option=value")
    listing.add_argument("--check", action="store_true", help="decode every picture and name the damaged ones")
    checking = commands.add_parser(
        "check",
        help="read a dataset whole: missing, damaged, repeated and contradicting pictures",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_CHECK_NOTES,
    )
    checking.add_argument("specs", nargs="+", metavar="SPEC", help="dataset string; several are checked as one dataset")
    checking.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found to a file")
    writing = commands.add_parser(
        "write",
        help="write a dataset's pictures as files that folder: reads back",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_WRITE_NOTES,
    )
    writing.add_argument("spec", metavar="SPEC", help="kind:PATH?option=value, as for kcdp data list")
    writing.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to make")
    writing.add_argument("--format", choices=tuple(FORMATS), default="png", help="both lossless (default: png)")
    writing.add_argument("--overwrite", action="store_true", help="replace the folder an earlier call wrote")


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand.

    Returns:
        0, or 1 when ``list --check`` found damaged pictures or ``check`` did not pass.

    Raises:
        KcdpError: see ``fetch_emoji``, ``open_datasets`` and ``write_pictures``.
    """
    runs = {"emoji": _run_emoji, "list": _run_list, "check": _run_check, "write": _run_write}
    return runs[args.data_command](args)


def _run_emoji(args: argparse.Namespace) -> int:
    styles = [style.strip() for style in args.styles.split(",")]
    out = fetch_emoji(args.out, size=args.size, styles=styles, progress=not args.quiet, overwrite=args.overwrite)
    for style, about in read_manifest(out)["styles"].items():
        source = f"{about['package']} {about['version']}"
        print(f"{style:<12}{about['count']:>4} pictures  {source} ({about['licence']})")
    measured = [style for style in TEST_STYLES if style in styles] or styles
    print(f'next: kcdp evaluate RUN --data "emoji:{out}?styles={",".join(measured)}&only=labelled" --out REPORT')
    return 0


def _run_list(args: argparse.Namespace) -> int:
    dataset = open_dataset(args.spec)
    print(describe(dataset))
    if not args.check:
        return 0
    damaged = 0
    for index in range(len(dataset)):
        try:
            dataset.image(index)
        except KcdpError as error:
            damaged += 1
            print(error, file=sys.stderr)
    print(f"{len(dataset) - damaged} pictures decoded, {damaged} damaged")
    return EXIT_BAD_PICTURES if damaged else 0


def _run_check(args: argparse.Namespace) -> int:
    dataset = open_datasets(args.specs)
    print(describe(dataset))
    sys.stdout.flush()  # what comes next takes a while
    start = time.perf_counter()
    check = check_dataset(dataset)
    print(describe_check(check, time.perf_counter() - start))
    if args.json is not None:
        write_json(args.json.expanduser(), check.to_dict())
        print(f"everything that was found: {args.json}")
    return 0 if check.passed else EXIT_BAD_PICTURES


def _run_write(args: argparse.Namespace) -> int:
    out: Path = args.out.expanduser()
    if "?" in str(out):
        raise KcdpError(f"--out {out} holds a question mark", "a name that folder: can read", "choose another --out")
    dataset = open_dataset(args.spec)
    files = write_pictures(dataset, out, form=args.format, overwrite=args.overwrite)
    counts = ", ".join(f"{name} {count}" for name, count in dataset.class_counts().items() if count)
    print(f"{len(files)} pictures in {out} ({counts})")
    recursive = " --recursive" if any("/" in file for file in files) else ""
    tag = f"kcdp tag {shlex.quote(str(out))}{recursive} --model NAME.kcdp"
    labelled = any(sample.label is not None for sample in dataset.samples)
    evaluate = f"   or   kcdp evaluate RUN --data {shlex.quote(f'folder:{out}')} --out REPORT" if labelled else ""
    print(f"next: {tag}{evaluate}")
    return 0


def describe(dataset: ImageDataset) -> str:
    """A table of pictures by class (rows) and split (columns), then by group where there are groups."""
    counts = Counter((sample.label, split_of(sample)) for sample in dataset.samples)
    rows: list[tuple[str, list[int]]] = []
    for label, name in [*enumerate(LABELS), (None, "unlabelled")]:
        rows.append((name, [counts[label, split] for split in SPLITS]))
    rows.append(("total", [sum(column) for column in zip(*(row for _, row in rows), strict=True)]))
    origin = "the dataset's own splits" if native_splits(dataset) else "no splits of its own: divided by hash"
    lines = [f"{dataset.name}: {len(dataset)} pictures ({origin})", _row("", [*SPLITS, "all"])]
    lines += [_row(name, [*row, sum(row)]) for name, row in rows]
    if dropped := getattr(dataset, "dropped", 0):
        whose = "of the six emotions" if "neutral=only" in dataset.name else "of a class outside the six"
        lines.append(f"{dropped} pictures {whose} left out")
    groups = Counter(sample.group for sample in dataset.samples)
    labelled = Counter(sample.group for sample in dataset.samples if sample.label is not None)
    lines += [f"group {name}: {groups[name]} pictures, {labelled[name]} labelled" for name in groups if name]
    return "\n".join(lines)


def _row(name: str, cells: list[str] | list[int]) -> str:
    return f"{name:<11}" + "".join(f"{cell:>8}" for cell in cells)


def _describe_kinds() -> str:
    lines = ["kinds:"]
    for name, kind in KINDS.items():
        lines.append(f"  {name + ':' + kind.path:<42}{kind.help}")
        lines += [f"      {option}= {about.expected}" for option, about in kind.options.items()]
    lines.append("options of every kind:")
    lines += [f"      {option}= {about.expected}" for option, about in COMMON.items()]
    return "\n".join(lines)
