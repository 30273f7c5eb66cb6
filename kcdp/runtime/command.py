"""``kcdp tag PATH... --model NAME.kcdp``: pictures in, rows out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from kcdp.runtime.collections import command as collections
from kcdp.runtime.output import FORMATS
from kcdp.runtime.sources import find_items
from kcdp.runtime.tag_checks import Survey, check_arguments, check_places, look_ahead, nothing_found, targets_of

if TYPE_CHECKING:
    from kcdp.runtime.items import Item

_EPILOG = """\
exit status: 0 all tagged, 1 some failed (or a file beside them could not be written), 2 a mistake in the call or its
input, 130 interrupted; --watch ends with 0 at Ctrl-C

examples:
  kcdp tag stickers/ --model demo.kcdp --format jsonl
  kcdp tag stickers/ --recursive --model demo.kcdp --out tags.csv --html tags.html
  kcdp tag stickers/ --recursive --model demo.kcdp --out tags.csv --resume     (go on after an interrupt)
  kcdp tag stickers/ --model demo.kcdp --sort-into sorted/ --min-confidence 0.5
  kcdp tag inbox/ --model demo.kcdp --watch --out tags.jsonl --sidecar xmp
  find . -name '*.webp' | kcdp tag - --model demo.kcdp
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of ``run``."""
    parser.epilog = _EPILOG
    parser.add_argument("paths", nargs="+", metavar="PATH", help="picture, folder, zip or pattern; -: names on stdin")
    parser.add_argument("--model", required=True, metavar="NAME.kcdp", help="the bundle to tag with")
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="X", help="0..1; below, the label is 'unsure' (default: 0)"
    )
    what = parser.add_argument_group("which pictures")
    what.add_argument("--recursive", action="store_true", help="look into sub-folders too")
    what.add_argument("--include", action="append", default=[], metavar="GLOB", help="only such names (repeatable)")
    what.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="no such names (repeatable)")
    what.add_argument("--watch", action="store_true", help="go on with what arrives or changes, until Ctrl-C")
    rows = parser.add_argument_group("rows")
    rows.add_argument("--format", choices=tuple(FORMATS), help="default: what the ending of --out says, else table")
    rows.add_argument(
        "--out", type=_out_file, metavar="FILE", help="write the rows here instead of to the terminal (which - means)"
    )
    rows.add_argument("--resume", action="store_true", help="go on with FILE of an interrupted run")
    more = parser.add_argument_group("more than rows")
    more.add_argument("--html", metavar="FILE.html", help="write a page of all pictures that opens offline")
    more.add_argument("--sheet", metavar="FILE.png", help="draw a contact sheet of the tagged pictures")
    more.add_argument("--sidecar", choices=("json", "xmp"), help="write NAME.EXT.json or .xmp beside each picture")
    more.add_argument("--overwrite", action="store_true", help="let sidecars replace those of other programs")
    more.add_argument("--sort-into", metavar="DIR", help="copy the pictures to DIR/happy/ and so on")
    more.add_argument("--link", action="store_true", help="hard links instead of copies in DIR")
    how = parser.add_argument_group("how it is run")
    how.add_argument("--backend", default="auto", metavar="NAME", help="default: the best here, see kcdp doctor")
    how.add_argument("--threads", type=int, metavar="N", help="processor threads (default: all cores)")
    how.add_argument(
        "--batch-size", type=_batch_size, default=16, metavar="N", help="pictures at once, or auto (default: 16)"
    )
    how.add_argument("--stats", action="store_true", help="say where the time went")
    collections.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Tags what the arguments name; a picture that fails is a row, not an end.

    Returns:
        0 when all pictures were tagged, 1 when some failed or a file beside them could not be written.

    Raises:
        KcdpError: nothing to tag, a bundle that cannot be used, a place that cannot be written.
        BrokenPipeError: the reader of the rows has gone away.
    """
    if collections.chosen(args):
        return collections.run(args)
    from kcdp.runtime.tag_run import tag_arrivals, tag_once

    check_arguments(args)
    survey = Survey(None, 0)
    if "-" not in args.paths:
        survey = look_ahead(_items(args), targets_of(args))
    items: Iterator[Item] = iter(())
    if not args.watch:
        items = _items(args)
        first = next(items, None)
        if first is None:
            raise nothing_found(args)
        items = chain([first], items)
    check_places(args)
    from kcdp.runtime.tagger import Tagger

    with Tagger.load(
        args.model, backend=args.backend, threads=args.threads, batch_size=args.batch_size,
        min_confidence=args.min_confidence, many=survey.count != 1 and not args.watch,
    ) as tagger:  # fmt: skip
        if args.watch:
            return tag_arrivals(args, tagger, lambda: _items(args), Survey(None, survey.width))
        return tag_once(args, tagger, items, survey)


def _items(args: argparse.Namespace) -> Iterator[Item]:
    """What the arguments name, in their order."""
    return find_items(args.paths, recursive=args.recursive, include=args.include, exclude=args.exclude)


def _out_file(text: str) -> str | None:
    """None for ``-``."""
    return None if text == "-" else text


def _batch_size(text: str) -> int | None:
    """None for ``auto``."""
    if text != "auto" and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}; expected a whole number, or auto")
    return None if text == "auto" else int(text)
