"""``file``: captions that somebody else wrote, keyed by picture. A position in a list is never a key.

    JSON    {"happy/1.png": "a dog ...", ...}
            [["happy/1.png", "a dog ..."], ...]                  the released UCDVER code's list, with its paths
            [{"image": "happy/1.png", "caption": "a dog ..."}, ...]
    JSONL   one such pair or object a line; a captions file of this package is one
    CSV     a header with one of the key columns and one of the text columns

A key is a sample's key, a file path that ends in it (or is its end), or a picture's hash.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from kcdp.data.dataset import Sample
from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.knowledge.captioners.base import Captioner, Request
from kcdp.preprocess import picture_hash

#: What the path and the text may be called, the first one that is there counts.
KEY_FIELDS = ("image", "file_name", "image_path", "path", "file", "key")
TEXT_FIELDS = ("caption", "text")
_EXPECTED = (
    "pairs [path, caption], objects with one of "
    f"{', '.join(KEY_FIELDS)} or hash and one of {', '.join(TEXT_FIELDS)}, or one object path -> caption"
)


class FileCaptions(Captioner):
    """Looks captions up: by hash, by the exact key, by a longer path that ends in the key, by the end of the key.

    Args:
        path: the file.
        keys: all keys of the dataset, to see where the end of one is the end of another too.

    Raises:
        KcdpError: unreadable, another form, or two different captions under one key.
    """

    batch_size = 1  # so that a picture without a caption does not cost its neighbours theirs

    def __init__(self, path: Path, keys: Sequence[str]) -> None:
        self.name, self.path = f"file {path.name}", path
        self._captions: dict[str, str] = {}
        for names, text, leaks in _entries(path):
            self.leaks_labels = self.leaks_labels or leaks
            for name in names:
                plain = name.replace("\\", "/")
                if self._captions.setdefault(plain, text) != text:
                    raise KcdpError(f"{path} holds two different captions for {plain!r}", "one caption for a picture")
        self._entries, self._keys = _by_last_part(self._captions), _by_last_part(keys)

    def caption(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> list[str]:
        return [self._find(image, sample.key) for image, sample in zip(images, samples, strict=True)]

    def _find(self, image: Image.Image, key: str) -> str:
        for exact in (picture_hash(image), key):
            if exact in self._captions:
                return self._captions[exact]
        last = key.rpartition("/")[2]
        entries = self._entries.get(last, [])
        found = [entry for entry in entries if entry.endswith(f"/{key}")]
        if not found:
            found = sorted((entry for entry in entries if key.endswith(f"/{entry}")), key=len)[-1:]
            others = [
                k for k in self._keys.get(last, []) for entry in found if k != key and f"/{k}".endswith(f"/{entry}")
            ]
            if others:
                raise KcdpError(f"{self.path}: {found[0]!r} could be {key!r} or {others[0]!r}", *_AMBIGUOUS)
        if len({self._captions[entry] for entry in found}) > 1:
            raise KcdpError(f"{self.path}: {key!r} could be {found[0]!r} or {found[1]!r}", *_AMBIGUOUS)
        if not found:
            raise KcdpError(f"{self.path} has no caption for {key!r}", "its path or its hash among the keys")
        return self._captions[found[0]]


_AMBIGUOUS = ("one path with that end", "write longer paths into the file")


def _by_last_part(paths: Iterable[str]) -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for path in paths:
        table.setdefault(path.rpartition("/")[2], []).append(path)
    return table


def _entries(path: Path) -> Iterator[tuple[list[str], str, bool]]:
    """(keys, caption, may it hold the label?) of every entry."""
    rows = _READERS.get(path.suffix.lower())
    if rows is None:
        raise KcdpError(f"{path} is a {path.suffix or 'nameless kind of'} file", f"one of {', '.join(_READERS)}")
    for where, row in rows(path):
        yield _entry(row, f"{path} {where}")


def _entry(row: Any, where: str) -> tuple[list[str], str, bool]:
    if isinstance(row, (list, tuple)) and len(row) == 2 and all(isinstance(part, str) for part in row):
        return [row[0]], " ".join(row[1].split()), False
    if isinstance(row, dict):
        texts = [row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str)]
        keys = [row[name] for name in KEY_FIELDS if isinstance(row.get(name), str) and row[name]][:1]
        keys += [row["hash"]] if isinstance(row.get("hash"), str) and row["hash"] else []
        if texts and keys:
            return keys, " ".join(texts[0].split()), row.get("leaks_labels") is True
        raise KcdpError(f"{where} is an object with {', '.join(map(str, row)) or 'nothing'}", _EXPECTED)
    if isinstance(row, str):
        raise KcdpError(f"{where} is a text alone", _EXPECTED, "captions are never matched by their position")
    shape = f"a list of {len(row)}" if isinstance(row, list) else type(row).__name__
    raise KcdpError(f"{where} is {shape}", _EXPECTED)


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    data = read_json(path)
    if isinstance(data, dict):
        data = [[key, text] for key, text in data.items()]
    if not isinstance(data, list):
        raise KcdpError(f"{path} holds {type(data).__name__}", _EXPECTED)
    yield from ((f"entry {number}", row) for number, row in enumerate(data, 1))


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except ValueError as error:
                raise KcdpError(f"{path} line {number} is not JSON ({error})", _EXPECTED) from None


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    table = csv.DictReader(io.StringIO(_text(path), newline=""))
    columns = table.fieldnames or []
    for names in ((*KEY_FIELDS, "hash"), TEXT_FIELDS):
        if not set(names) & set(columns):
            raise KcdpError(
                f"{path} has the columns {', '.join(map(str, columns)) or 'none'}",
                f"one of {', '.join(names)} among them",
            )
    yield from ((f"row {number}", row) for number, row in enumerate(table, 1))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise KcdpError(f"{path} does not exist", "a file of captions") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KcdpError(f"{path} cannot be read ({error})", "a UTF-8 text file") from None


_READERS = {".json": _json, ".jsonl": _json_lines, ".csv": _csv}


def create(request: Request) -> FileCaptions:
    """See ``registry``."""
    path = Path(request.needed_weights("file", "a .json, .jsonl or .csv file")).expanduser()
    return FileCaptions(path, [sample.key for sample in request.dataset.samples])
