"""``kcdp tag ... --engine ray``: what the command takes beside its other arguments, and how they are carried out."""

from __future__ import annotations

import argparse
import sys

from kcdp.errors import KcdpError
from kcdp.runtime.collections.options import CollectionOptions

#: Names that ``--engine`` takes: in this process, or by workers of Ray.
ENGINES = ("plain", "ray")


#: Options that need ``--engine ray``.
_OPTIONS = ("workers", "gpus", "ray_address", "column", "id_column", "caption_column", "part_rows")
#: Options that only the plain engine has.
_PLAIN = ("sheet", "html", "sidecar", "overwrite", "sort_into", "link", "watch", "resume", "stats")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares ``--engine`` and what it brings."""
    group = parser.add_argument_group("large collections")
    group.add_argument(
        "--engine", choices=ENGINES, default="plain",
        help="ray: workers on this machine or on a cluster; PATH may be Parquet, --out DIR/ writes it",
    )  # fmt: skip
    group.add_argument("--workers", type=int, metavar="N", help="processes that tag (default: all cores)")
    group.add_argument("--gpus", type=float, metavar="N", help="GPUs of a worker (default: 0)")
    group.add_argument("--ray-address", metavar="HOST:PORT", help="a running cluster; auto: this machine's")
    group.add_argument("--column", metavar="NAME", help="column with pictures (default: image, bytes)")
    group.add_argument("--id-column", metavar="NAME", help="column that names the rows (default: the picture's path)")
    group.add_argument("--caption-column", metavar="NAME", help="column with captions, for bundles that take them")
    group.add_argument("--part-rows", type=int, metavar="N", help="rows of a file in --out DIR/ (default: 10000)")


def chosen(args: argparse.Namespace) -> bool:
    """Whether ``run`` is what the arguments ask for.

    Raises:
        KcdpError: they ask for something that the plain engine has not.
    """
    if args.engine != "plain":
        return True
    for name in _OPTIONS:
        if getattr(args, name) is not None:
            raise KcdpError(f"--{name.replace('_', '-')} without --engine", "--engine ray beside it")
    return False


def run(args: argparse.Namespace) -> int:
    """Tags by workers what the arguments name; ``--threads`` are those of a worker, 1 by default.

    Returns:
        0 when all pictures were tagged, 1 when some failed.

    Raises:
        KcdpError: as the plain command; and arguments that do not go together.
    """
    from kcdp.runtime.collections.tables import Columns
    from kcdp.runtime.collections.tagging import is_folder, open_collection, tag_collection
    from kcdp.runtime.output import standard_output
    from kcdp.runtime.tag_checks import check_numbers, check_paths, form_of

    for name in _PLAIN:
        if getattr(args, name):
            option = name.replace("_", "-")
            raise KcdpError(f"--{option} with --engine ray", "rows alone", "leave out --engine for that")
    check_numbers(args)
    check_paths(args)
    if args.batch_size is None:
        raise KcdpError("--batch-size auto with --engine ray", "a whole number")
    given = {"threads": args.threads, "gpus": args.gpus, "part_rows": args.part_rows}
    options = CollectionOptions(
        workers=args.workers, batch_size=args.batch_size, backend=args.backend, address=args.ray_address,
        load={"min_confidence": args.min_confidence} if args.min_confidence else {},
        **{name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    form = args.format
    if form is None and not (args.out and is_folder(args.out)):
        form = form_of(args)
    collection = open_collection(
        args.paths, recursive=args.recursive, include=args.include, exclude=args.exclude,
        columns=Columns(args.column, args.id_column, args.caption_column),
    )  # fmt: skip
    done = tag_collection(collection, args.model, out=args.out or standard_output(), form=form, options=options)
    said = f"{done.tagged} tagged, {done.failed} failed"
    if done.kept:
        said += f", {done.kept} of them in an earlier run"
    print(said + (f"; wrote {args.out}" if args.out else ""), file=sys.stderr)
    return 1 if done.failed else 0
