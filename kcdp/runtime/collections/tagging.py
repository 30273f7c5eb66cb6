"""A collection tagged: rows to a stream, to a file, or to a folder of Parquet files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO

from kcdp.bundle import MANIFEST, Bundle
from kcdp.errors import KcdpError
from kcdp.files import atomic_file, sha256_file
from kcdp.runtime.collections.cluster import cluster
from kcdp.runtime.collections.items import Files
from kcdp.runtime.collections.options import CollectionOptions
from kcdp.runtime.collections.parts import Parts
from kcdp.runtime.collections.tables import EXTENSIONS, Columns, Tables, find_tables
from kcdp.runtime.media.archives import ARCHIVE_EXTENSIONS
from kcdp.runtime.media.expansion import STICKER_EXTENSIONS
from kcdp.runtime.names import find_model
from kcdp.runtime.output import TEXT, make_writer
from kcdp.runtime.rows import DIGEST_DIGITS
from kcdp.runtime.sources import find_items
from kcdp.runtime.tagger import Tag

_DEFAULT, _COLUMNS = CollectionOptions(), Columns()


@dataclass(frozen=True)
class Tally:
    """How many were tagged and how many failed, in all; ``kept``: how many of both were there from an earlier run."""

    tagged: int
    failed: int
    kept: int = 0


def open_collection(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = False,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    columns: Columns = _COLUMNS,
) -> Files | Tables:
    """What is to be tagged: Parquet files where a path or a column names them, or a folder holds them and no pictures.

    Args:
        recursive, include, exclude: of files; see ``kcdp.runtime.sources.find_items``.

    Raises:
        KcdpError: nothing is there; a Parquet file or a column of it cannot be read.
    """
    paths = [os.fspath(path) for path in ([source] if isinstance(source, (str, os.PathLike)) else source)]
    parquet = columns != _COLUMNS or any(path.lower().endswith(EXTENSIONS) for path in paths)
    items = [] if parquet else list(find_items(paths, recursive=recursive, include=include, exclude=exclude))
    tables = [] if items else find_tables(paths, recursive=recursive)
    if not items and not tables:
        endings = ", ".join(sorted({*STICKER_EXTENSIONS, *ARCHIVE_EXTENSIONS, *EXTENSIONS}))
        fix = "" if recursive else "add --recursive to look into sub-folders"
        raise KcdpError(f"no pictures in {', '.join(paths)}", f"files that end in {endings}", fix)
    collection = Tables(tables, columns) if tables else Files(items)
    if not collection.count:
        raise KcdpError(f"no rows in {', '.join(tables)}", "at least one picture")
    return collection


def stream_collection(
    collection: Files | Tables, model: str | os.PathLike[str], options: CollectionOptions = _DEFAULT, *, start: int = 0
) -> Iterator[Tag]:
    """Tags of a collection in its order, from item number ``start`` on. Closing the iterator ends the workers.

    Raises:
        KcdpError: Ray is not installed or does not start; see ``kcdp.runtime.collections.engine.stream``.
    """
    from kcdp.runtime.collections.engine import stream

    with cluster(options) as ray:
        yield from stream(ray, collection, os.path.abspath(model), options, start=start)


def tag_collection(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | Files | Tables,
    model: str | os.PathLike[str],
    *,
    out: str | os.PathLike[str] | IO[str],
    form: str | None = None,
    options: CollectionOptions = _DEFAULT,
    recursive: bool = False,
    columns: Columns = _COLUMNS,
) -> Tally:
    """Tag files, folders or the pictures in Parquet files by many workers.

    Args:
        source: paths, or a collection that is open already.
        model: the bundle's folder, or its name.
        out: a text stream; a file, which is written whole or not at all; or a folder (one that is there, or a name
            that ends in "/") of Parquet files. The folder keeps what is finished when a run ends early, and the same
            call goes on from there; the others begin anew.
        form: a name of ``kcdp.runtime.output.FORMATS``; None: "csv" for a file that ends so, else "jsonl". A folder
            has none.
        columns: of Parquet files.

    Raises:
        KcdpError: a bundle, a source, a place or a setting that cannot be used.
    """
    collection = source if isinstance(source, (Files, Tables)) else open_collection(
        source, recursive=recursive, columns=columns
    )  # fmt: skip
    bundle = Bundle.open(find_model(model))  # before anything is started
    if not isinstance(out, (str, os.PathLike)):
        return _write(collection, bundle, options, form or "jsonl", out)
    if is_folder(out):
        if form is not None:
            raise KcdpError(f"the format {form} and the folder {os.fspath(out)}", "a file, or no format: a folder gets "
                            "Parquet files")  # fmt: skip
        return _to_parts(collection, bundle, Path(out), options)
    path = Path(out)
    if path.suffix.lower() in EXTENSIONS:
        raise KcdpError(f"--out {path}", "a folder for Parquet files", f"write --out {path.with_suffix('')}/")
    if path.exists() and any(os.path.exists(one) and path.samefile(one) for one in collection.paths):
        raise KcdpError(f"--out {path} is one of the files to tag", "another name")
    with atomic_file(path) as temporary, temporary.open("w", **TEXT) as stream:
        form = form or ("csv" if path.suffix.lower() == ".csv" else "jsonl")
        return _write(collection, bundle, options, form, stream)


def is_folder(out: str | os.PathLike[str]) -> bool:
    """Whether an output means a folder of Parquet files."""
    return os.fspath(out).endswith(("/", os.sep)) or os.path.isdir(out)


def _write(
    collection: Files | Tables, bundle: Bundle, options: CollectionOptions, form: str, stream: IO[str]
) -> Tally:
    tags = stream_collection(collection, bundle.path, options)
    model = bundle.manifest.digest[:DIGEST_DIGITS]
    begun = list(islice(tags, 1))  # before what stands above the rows: a cluster that is not there leaves no header
    return _tally(chain(begun, tags), make_writer(form, stream, collection.width, model=model).write)


def _to_parts(collection: Files | Tables, bundle: Bundle, folder: Path, options: CollectionOptions) -> Tally:
    belongs_to = {
        "collection": collection.fingerprint(), "items": collection.count, "model": sha256_file(bundle.path / MANIFEST),
        "backend": options.backend, "batch_size": options.batch_size,
        "load": {name: repr(value) for name, value in options.load.items()},
    }  # fmt: skip
    rows, model = options.batches_of_a_part * options.batch_size, bundle.manifest.digest[:DIGEST_DIGITS]
    parts = Parts(folder, belongs_to, rows, model)
    if parts.kept >= collection.count:
        return Tally(parts.kept - parts.failed, parts.failed, parts.kept)
    done = _tally(parts.write(stream_collection(collection, bundle.path, options, start=parts.kept)), lambda tag: None)
    kept = parts.kept
    return Tally(done.tagged + kept - parts.failed, done.failed + parts.failed, kept)


def _tally(tags: Iterable[Tag], write: Callable[[Tag], None]) -> Tally:
    counts = [0, 0]
    for tag in tags:
        write(tag)
        counts[tag.error is not None] += 1
    return Tally(*counts)
