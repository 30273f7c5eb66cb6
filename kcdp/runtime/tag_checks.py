"""What ``kcdp tag`` was asked, looked over before anything is loaded or written."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kcdp.errors import KcdpError
from kcdp.files import check_writable
from kcdp.runtime.backends.options import MOST_THREADS
from kcdp.runtime.output import display_width, printable
from kcdp.runtime.rows_file import READABLE, check_start
from kcdp.runtime.sorting import FOLDERS

if TYPE_CHECKING:
    from kcdp.runtime.items import Item

#: ending of a file -> the format of its rows.
SUFFIXES = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}

_SURVEY_SECONDS = 2.0
#: Arguments that are numbers of something.
_COUNTS = (
    "threads", "batch_size", "workers", "part_rows",
    "workers_decode", "max_bytes", "max_pictures", "queue", "connections",
)  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """What lies ahead.

    Attributes:
        count: number of items; None: not known (names from standard input, or very many).
        width: columns of the longest name among those that were looked at.
    """

    count: int | None
    width: int


def form_of(args: argparse.Namespace) -> str:
    """The format of the rows: as asked for, else by the ending of ``--out``, else a table."""
    return args.format or SUFFIXES.get(Path(args.out or "").suffix.lower(), "table")


def targets_of(args: argparse.Namespace) -> dict[str, str]:
    """option -> file, of the files that were asked for."""
    named = {"--out": args.out, "--sheet": args.sheet, "--html": args.html}
    return {option: path for option, path in named.items() if path}


def check_arguments(args: argparse.Namespace) -> None:
    """Everything that can be told without looking at the pictures.

    Raises:
        KcdpError: a number out of range, an option that lacks its other, two files of one name, a target that is
            a folder or lies among the pictures, rows of an earlier run that would be lost.
    """
    check_numbers(args)
    check_paths(args)
    _check_pairs(args)
    targets = targets_of(args)
    for option, endings in (("--sheet", (".png",)), ("--html", (".html", ".htm"))):
        if option in targets and Path(targets[option]).suffix.lower() not in endings:
            raise KcdpError(f"{option} is {targets[option]}", f"a name that ends in {endings[0]}")
    if args.out and args.out.endswith(("/", os.sep)):
        raise KcdpError(f"--out {args.out} is a folder", "the name of a file", "add --engine ray for Parquet files")
    seen: dict[str, str] = {}
    for option, path in targets.items():
        if other := seen.get(os.path.realpath(path)):
            raise KcdpError(f"{other} and {option} are both {targets[other]}", "two names")
        seen[os.path.realpath(path)] = option
        if os.path.exists(path) and not os.path.isfile(path):
            raise KcdpError(f"{option} {path} is not a file", "the name of a file to write")
    if args.sort_into:
        _check_sort_folder(args)
    if args.out and form_of(args) in READABLE:
        check_start(args.out, resume=args.resume, append=args.watch)


def check_places(args: argparse.Namespace) -> None:
    """Raises KcdpError where a file that was asked for could not be made; after this, only a full disk can surprise."""
    for path in targets_of(args).values():
        check_writable(Path(path))
    if args.sort_into:
        check_writable(Path(args.sort_into) / "x")


def look_ahead(items: Iterable[Item], targets: Mapping[str, str]) -> Survey:
    """Goes through the names, for two seconds at most.

    Raises:
        KcdpError: a target is one of the pictures.
    """
    count, width, begun = 0, 0, time.monotonic()
    for item in guarded(items, targets):
        count += 1
        width = max(width, display_width(printable(item.name)))
        if time.monotonic() - begun > _SURVEY_SECONDS:
            return Survey(None, width)
    return Survey(count, width)


def guarded(items: Iterable[Item], targets: Mapping[str, str]) -> Iterator[Item]:
    """The items.

    Raises:
        KcdpError: one of them is a file that is going to be replaced.
    """
    replaced = {}
    for option, path in targets.items():
        if os.path.isfile(path):
            found = os.stat(path)
            replaced[found.st_dev, found.st_ino] = f"{option} {path}"
    for item in items:
        if replaced and isinstance(item.source, (str, os.PathLike)):
            try:
                status = os.stat(item.source)
            except (OSError, ValueError):
                status = None
            if status is not None and (target := replaced.get((status.st_dev, status.st_ino))):
                raise KcdpError(f"{target} is one of the pictures to tag", "another name")
        yield item


def nothing_found(args: argparse.Namespace) -> KcdpError:
    """What is said where there is nothing to tag."""
    from kcdp.runtime.media.archives import ARCHIVE_EXTENSIONS
    from kcdp.runtime.media.expansion import STICKER_EXTENSIONS

    endings = ", ".join(sorted(STICKER_EXTENSIONS | ARCHIVE_EXTENSIONS))
    fix = "" if args.recursive else "add --recursive to look into sub-folders"
    if args.include or args.exclude:
        fix = "look over --include and --exclude"
    if set(args.paths) == {"-"}:
        return KcdpError(
            "no pictures among the names on standard input", "names of pictures or folders, one a line", fix
        )
    return KcdpError(f"no pictures in {', '.join(args.paths)}", f"files that end in {endings}", fix)


def check_numbers(args: argparse.Namespace) -> None:
    """Raises KcdpError for a number out of range, named as it was typed: of ``kcdp tag`` and of ``kcdp serve``."""
    for name in _COUNTS:
        number = getattr(args, name, None)
        if number is not None and number < 1:
            raise KcdpError(f"--{name.replace('_', '-')} is {number}", "a whole number from 1")
    if args.threads is not None and args.threads > MOST_THREADS:
        raise KcdpError(f"--threads is {args.threads}", f"at most {MOST_THREADS}", "leave it out for all cores")
    if not 0 <= args.min_confidence <= 1:
        raise KcdpError(f"--min-confidence is {args.min_confidence:g}", "a number from 0 to 1")


def check_paths(args: argparse.Namespace) -> None:
    """Raises KcdpError for a name that is empty: a variable of the shell that was never set."""
    if "" in args.paths:
        raise KcdpError("an empty PATH", "names of pictures or folders", "set the variable that it came from")
    for option in ("out", "html", "sheet", "sort_into"):
        if getattr(args, option, None) == "":
            raise KcdpError(f"an empty --{option.replace('_', '-')}", "a name", "set the variable that it came from")


def _check_pairs(args: argparse.Namespace) -> None:
    for wanted, option, needed, other in (
        (args.link, "--link", args.sort_into, "--sort-into DIR"),
        (args.overwrite, "--overwrite", args.sidecar, "--sidecar json or xmp"),
        (args.resume, "--resume", args.out and form_of(args) in READABLE, "--out FILE.jsonl or FILE.csv"),
    ):
        if wanted and not needed:
            raise KcdpError(f"{option} was given without {other}", f"both or none of {option} and {other.split()[0]}")
    if not args.watch:
        return
    if "-" in args.paths:
        raise KcdpError("--watch was given with names from standard input", "files and folders to watch")
    if args.stats:
        raise KcdpError("--watch and --stats were both given", "one of them", "--stats is of a run that ends by itself")
    if args.out and form_of(args) not in READABLE:
        raise KcdpError(f"--watch writes {args.out} as a table", "--out FILE.jsonl or FILE.csv")


def _check_sort_folder(args: argparse.Namespace) -> None:
    """What is sorted must not be found again as something to tag."""
    if os.path.exists(args.sort_into) and not os.path.isdir(args.sort_into):
        raise KcdpError(f"--sort-into {args.sort_into} is not a folder", "a folder, or a new name")
    target = Path(os.path.realpath(args.sort_into))
    for path in args.paths:
        folder = Path(os.path.realpath(path))
        if not os.path.isdir(path):
            continue
        found_again = args.recursive and (target == folder or folder in target.parents)
        if found_again or (args.watch and folder in {target / name for name in FOLDERS}):
            raise KcdpError(
                f"--sort-into {args.sort_into} lies where {path} is searched", "a folder outside the pictures"
            )
