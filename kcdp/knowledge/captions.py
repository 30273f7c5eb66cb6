"""Captions on disk: one JSON object a line, found again by the content of the picture they describe.

    {"hash": "0f3c...", "key": "happy/1.png", "caption": "a panda bear holding a heart", "captioner": "coca ..."}

A row is appended as soon as it is there, so that an interrupted run goes on where it stopped. The key is the name that
the picture had in its dataset, for people; only the hash counts.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from kcdp.data.dataset import ImageDataset
from kcdp.errors import KcdpError, nearest
from kcdp.files import make_folder
from kcdp.preprocess import picture_hash

_FIELDS = ("hash", "key", "caption", "captioner")
_HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Caption:
    """One row.

    Attributes:
        hash: ``picture_hash`` of the picture.
        key: the sample's key.
        caption: one line of text; may be empty.
        captioner: what wrote it: name, weights, prefix.
        leaks_labels: the caption may hold the very word that is to be recognised (names of emoji).
    """

    hash: str
    key: str
    caption: str
    captioner: str
    leaks_labels: bool = False

    def to_json(self) -> str:
        """One line without its end; ``leaks_labels`` is only written where it is true."""
        row = {name: value for name, value in asdict(self).items() if name != "leaks_labels" or value}
        return json.dumps(row, ensure_ascii=False)


class CaptionFile:
    """A captions file: read whole when it is opened, written row by row.

    Use it as a context manager where rows are appended. A row that an interruption tore (the last line, without its
    end) is ignored while reading and cut off before the first row is appended.

    Attributes:
        path: the file; it need not exist yet.
        rows: hash -> row, in the file's order.
    """

    def __init__(self, path: str | Path, *, must_exist: bool = False) -> None:
        """Raises KcdpError: missing though it must exist, unreadable, or a line that is no row; the line is named."""
        self.path = Path(path).expanduser()
        if must_exist and not self.path.exists():
            raise KcdpError(
                f"{self.path} does not exist", "a captions file",
                f"run: kcdp knowledge caption --data SPEC --captioner NAME --out {self.path}",
            )  # fmt: skip
        self.rows: dict[str, Caption] = {}
        self._whole = 0  # bytes up to the end of the last whole row
        self._complete = True  # does the file end with a line's end?
        self._stream: IO[bytes] | None = None
        self._read()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Caption]:
        return iter(self.rows.values())

    def __contains__(self, hash: object) -> bool:
        return hash in self.rows

    def __enter__(self) -> CaptionFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, hash: str) -> Caption | None:
        """The row of a picture, None where there is none."""
        return self.rows.get(hash)

    @property
    def captioners(self) -> list[str]:
        """Everything that wrote rows, in order of appearance."""
        return list(dict.fromkeys(row.captioner for row in self))

    @property
    def leaks_labels(self) -> bool:
        """Whether any caption may give the label away."""
        return any(row.leaks_labels for row in self)

    def append(self, caption: Caption) -> None:
        """Writes one row and hands it to the system at once.

        Raises:
            KcdpError: the picture has another caption already, or the file cannot be written.
        """
        if caption.hash in self.rows:
            raise KcdpError(f"{self.path}: {caption.key!r} has a caption already", "one caption for a picture")
        line = caption.to_json().encode("utf-8", "backslashreplace") + b"\n"
        try:
            if self._stream is None:
                self._stream = self._open()
            self._stream.write(line)
            self._stream.flush()
        except OSError as error:
            raise KcdpError(
                f"writing {self.path} failed ({error.strerror or error})", fix="free some space or choose another place"
            ) from error
        self.rows[caption.hash] = caption

    def close(self) -> None:
        """Puts what was appended on the disk. More may be appended afterwards."""
        if self._stream is not None:
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._stream, self._complete = None, True
            self._whole = self.path.stat().st_size

    def _open(self) -> IO[bytes]:
        make_folder(self.path.parent)
        if not self._complete:
            os.truncate(self.path, self._whole)
        return open(self.path, "ab")

    def _read(self) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise KcdpError(f"{self.path} cannot be read ({error.strerror})", "a captions file") from None
        self._whole = data.rfind(b"\n") + 1
        self._complete = self._whole == len(data)
        where: dict[str, int] = {}
        for number, line in enumerate(data[: self._whole].split(b"\n")[:-1], 1):
            row = parse_row(line, f"{self.path} line {number}")
            known = self.rows.setdefault(row.hash, row)
            first = where.setdefault(row.hash, number)
            if known.caption != row.caption:
                raise KcdpError(
                    f"{self.path}: lines {first} and {number} hold different captions of one picture ({row.hash})",
                    "one caption for a picture",
                    "delete one of the two lines",
                )


def parse_row(line: bytes, where: str) -> Caption:
    """A row from one line.

    Raises:
        KcdpError: it is not a JSON object with exactly the fields of ``Caption``; ``where`` begins the message.
    """
    expected = "an object with hash, key, caption and captioner, all of them texts"
    try:
        row: Any = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise KcdpError(
            f"{where} is not JSON ({error})", expected, "delete the line and run the command again"
        ) from None
    if not isinstance(row, dict):
        raise KcdpError(f"{where} is {_kind(row)}", expected)
    for name in _FIELDS:
        if not isinstance(row.get(name), str):
            held = _kind(row[name]) if name in row else "missing"
            raise KcdpError(f"{where}: {name} is {held}", expected)
    for name in row:
        if name not in (*_FIELDS, "leaks_labels"):
            known = (*_FIELDS, "leaks_labels")
            raise KcdpError(f"{where}: field {name!r} is unknown{nearest(name, known)}", f"only {', '.join(known)}")
    if not _HASH.fullmatch(row["hash"]):
        raise KcdpError(f"{where}: hash is {row['hash']!r}", "32 hexadecimal digits in lower case")
    if not isinstance(row.get("leaks_labels", False), bool):
        raise KcdpError(f"{where}: leaks_labels is {_kind(row['leaks_labels'])}", "true or false")
    return Caption(**row)


def captions_for(
    dataset: ImageDataset, files: str | Path | CaptionFile | Sequence[str | Path | CaptionFile], *,
    measuring: bool = False,
) -> list[str]:  # fmt: skip
    """The caption of every picture, in the dataset's order. Every picture is decoded once, for its hash.

    One that cannot be read gets any caption, unless ``measuring``: training passes over it and counts it.

    Args:
        dataset: whose pictures.
        files: captions file, or its path, or several of them; of two captions of a picture the first file's is taken.
        measuring: accuracy is going to be reported on these pictures; captions that may hold the label are refused.

    Raises:
        KcdpError: the file misses pictures (how many, the first one, the command that fills the gap), a picture is
            damaged and ``measuring``, or the captions leak labels and ``measuring``.
    """
    listed = [files] if isinstance(files, (str, Path, CaptionFile)) else list(files)
    opened = [file if isinstance(file, CaptionFile) else CaptionFile(file, must_exist=True) for file in listed]
    captions = opened[0]
    held: dict[str, Caption] = {}
    for file in reversed(opened):
        held.update(file.rows)
    rows: list[Caption | None] = []
    for index in range(len(dataset)):
        try:
            rows.append(held.get(picture_hash(dataset.image(index))))
        except KcdpError:
            if measuring:
                raise
            rows.append(next(iter(held.values()), None))
    missing = [index for index, row in enumerate(rows) if row is None]
    if missing:
        name = captions.captioners[0].split()[0] if captions.captioners else "NAME"
        first, spec = dataset.samples[missing[0]].key, dataset.name_of(missing[0])
        raise KcdpError(
            f"{', '.join(str(file.path) for file in opened)} {'has' if len(opened) == 1 else 'have'} no caption for "
            f"{len(missing)} of {len(dataset)} pictures of {dataset.name!r} (first: {first!r})",
            "a caption for every picture",
            f'run: kcdp knowledge caption --data "{spec}" --captioner {name} --out {captions.path}',
        )
    found = [row for row in rows if row is not None]
    leaking = [row for row in found if row.leaks_labels]
    if measuring and leaking:
        raise KcdpError(
            f"{len(leaking)} captions of {captions.path} may hold the label (captioner {leaking[0].captioner!r})",
            "captions that do not name the emotion, where accuracy is reported",
            "caption these pictures with another captioner",
        )
    return [row.caption for row in found]


def _kind(value: Any) -> str:
    """A JSON value in the words of an error message."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number"}
    return names.get(type(value), type(value).__name__)
