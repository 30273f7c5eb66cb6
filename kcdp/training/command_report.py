"""``kcdp report``: evaluated runs side by side, with mean and spread over seeds."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path

from kcdp.errors import KcdpError, require
from kcdp.files import atomic_file, make_folder, write_json
from kcdp.training import PACKAGES

#: Files that are written.
PAGE, TABLE, PLOT = "comparison.md", "comparison.json", "comparison.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="evaluated runs, or folders that kcdp evaluate has written"
    )
    parser.add_argument(
        "--name", action="append", default=[], metavar="NAME",
        help="of a row, repeatable, in the order of the rows (default: profile, preset, source and target)",
    )  # fmt: skip
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help=f"folder for {PAGE}, {TABLE} and {PLOT} (default: print the table only)"
    )
    parser.add_argument(
        "--resamples", type=int, default=2000, metavar="N", help="of the paired bootstrap of two runs (default: 2000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the paired bootstrap (default: 0)")


def run(args: argparse.Namespace) -> int:
    """Compare, write where asked to, print the tables."""
    for package in (*PACKAGES, "matplotlib"):
        require(package, "train")
    from kcdp.training.reports.comparison import check_comparable, compare, paired, read_report
    from kcdp.training.reports.comparison_page import comparison_table, comparison_text, plot_comparison

    for name, least in (("resamples", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise KcdpError(f"--{name} is {getattr(args, name)}", f"{least} or more")
    reports = [read_report(path) for path in args.runs]
    check_comparable(reports)
    found = compare(reports, args.name)
    if len(reports) == 2:
        found["paired"] = paired(*reports, resamples=args.resamples, seed=args.seed)
    for place, data in enumerate(found["datasets"]):
        print(f"{data['data']}, {data['n']} pictures\n\n{comparison_table(found, place)}\n")
    if args.out is None:
        print("next: the same with --out DIR, for a page and a plot")
        return 0
    make_folder(args.out)
    date, command = time.strftime("%Y-%m-%d"), command_line(args)
    plot_comparison(args.out / PLOT, found)
    with atomic_file(args.out / PAGE) as temporary:
        text = comparison_text(found, command, date, PLOT)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
    write_json(args.out / TABLE, {"date": date, "command": command, **found})
    print(f"report: {args.out / PAGE}")
    return 0


def command_line(args: argparse.Namespace) -> str:
    """The command that was typed, without what is as by default."""
    words = ["kcdp", "report", *map(str, args.runs)]
    words += [part for name in args.name for part in ("--name", name)]
    for name, usual in (("out", None), ("resamples", 2000), ("seed", 0)):
        if getattr(args, name) != usual:
            words += [f"--{name}", str(getattr(args, name))]
    return shlex.join(words)
