"""``kcdp tag PATH... --model NAME.kcdp``: pictures in, rows out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from kcdp.errors import KcdpError
from kcdp.files import PICTURE_EXTENSIONS, atomic_file
from kcdp.runtime.collections import command as collections
from kcdp.runtime.output import FORMATS, TEXT, TagWriter, display_width, make_writer, printable
from kcdp.runtime.sources import find_pictures

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag, Tagger

#: Exit statuses; mistakes of the user are 2, and a closed pipe ends quietly: ``kcdp.cli.guarded`` sees to both.
ALL_TAGGED, SOME_FAILED = 0, 1

_SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``run``."""
    parser.add_argument("paths", nargs="+", metavar="PATH", help="picture, or folder of pictures")
    parser.add_argument("--model", required=True, metavar="NAME.kcdp", help="the bundle to tag with")
    parser.add_argument(
        "--format", choices=tuple(FORMATS), help="default: what the ending of --out says, else table"
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="write the rows here instead of to the terminal")
    parser.add_argument("--sheet", metavar="FILE.png", help="draw a contact sheet of the tagged pictures")
    parser.add_argument("--recursive", action="store_true", help="look into sub-folders too")
    parser.add_argument("--backend", default="auto", metavar="NAME", help="default: the best here, see kcdp doctor")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="pictures at once (default: 16)")
    collections.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Tags what the arguments name; a picture that fails is a row, not an end.

    Returns:
        0 when all pictures were tagged, 1 when some failed.

    Raises:
        KcdpError: nothing to tag, a bundle that cannot be used, a place that cannot be written.
        BrokenPipeError: the reader of the rows has gone away.
    """
    if collections.chosen(args):
        return collections.run(args)
    from kcdp.runtime.tagger import Tagger

    items = list(find_pictures(args.paths, recursive=args.recursive))
    if not items:
        raise _nothing_found(args.paths, args.recursive)
    _check_targets(args.out, args.sheet, items)
    form = args.format or _SUFFIXES.get(Path(args.out or "").suffix.lower(), "table")
    width = max(display_width(printable(item)) for item in items)
    opened = Tagger.load(args.model, backend=args.backend, threads=args.threads, batch_size=args.batch_size)
    with opened as tagger:
        if args.out:
            with atomic_file(args.out) as temporary, temporary.open("w", **TEXT) as stream:
                result = _write(tagger, items, make_writer(form, stream, width), keep=bool(args.sheet))
        else:
            stream = _standard_output()
            result = _write(tagger, items, make_writer(form, stream, width), keep=bool(args.sheet))
    tagged, failed, kept = result
    if args.sheet:
        from kcdp.runtime.sheet import write_contact_sheet

        write_contact_sheet(args.sheet, kept)
    written = [str(path) for path in (args.out, args.sheet) if path]
    print(
        f"{tagged} tagged, {failed} failed" + (f"; wrote {' and '.join(written)}" if written else ""), file=sys.stderr
    )
    return SOME_FAILED if failed else ALL_TAGGED


def _write(tagger: Tagger, items: Sequence[str], writer: TagWriter, *, keep: bool) -> tuple[int, int, list[Tag]]:
    """Number tagged, number failed, and the tags themselves where they are still needed."""
    counts, kept = [0, 0], []
    for tag in tagger.stream(items):
        writer.write(tag)
        counts[tag.error is not None] += 1
        if keep:
            kept.append(tag)
    return counts[0], counts[1], kept


def _nothing_found(paths: Sequence[str], recursive: bool) -> KcdpError:
    endings = ", ".join(sorted(PICTURE_EXTENSIONS))
    fix = "" if recursive else "add --recursive to look into sub-folders"
    return KcdpError(f"no pictures in {', '.join(paths)}", f"files that end in {endings}", fix)


def _check_targets(out: str | None, sheet: str | None, items: Sequence[str]) -> None:
    """Output must not replace a picture that is being read, nor a folder or a device."""
    if sheet and Path(sheet).suffix.lower() != ".png":
        raise KcdpError(f"--sheet is {sheet}", "a name that ends in .png")
    if out and sheet and os.path.abspath(out) == os.path.abspath(sheet):
        raise KcdpError(f"--out and --sheet are both {out}", "two names")
    for option, target in (("--out", out), ("--sheet", sheet)):
        if not target or not os.path.exists(target):
            continue
        if not os.path.isfile(target):
            raise KcdpError(f"{option} {target} is not a file", "the name of a file to write")
        if any(os.path.exists(item) and os.path.samefile(item, target) for item in items):
            raise KcdpError(f"{option} {target} is one of the pictures to tag", "another name")


def _standard_output() -> IO[str]:
    """sys.stdout, made to carry any file name."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        # a terminal keeps its own encoding; programs that read a pipe or a file get UTF-8
        reconfigure(**({"errors": "backslashreplace"} if sys.stdout.isatty() else TEXT))
    return sys.stdout
