"""What the readers of listed datasets share: files whose rows name a picture and its class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from typing import Any

from PIL import Image

from kcdp.data.dataset import SPLITS, ImageDataset, Sample
from kcdp.data.folder import require_pictures
from kcdp.decoding import decode
from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.labels import map_class

_SHOWN = 60  # characters of a row in a message


class ListedDataset(ImageDataset):
    """Pictures of one folder that files list. A picture that is missing is an error when it is read, not before.

    A sample's key is the picture's path below the folder, with forward slashes; where a picture is listed again, the
    key of the second row ends in ``#2``.

    Attributes:
        root: the folder.
        dropped: number of rows left out because the task has no such class; with ``neutral``, of all others.
    """

    def __init__(self, name: str, root: Path, rows: Sequence[Sample], neutral: bool = False) -> None:
        """
        Args:
            name: the dataset string.
            root: the folder.
            rows: every row, its picture's path as key; no label stands for a dropped class.
            neutral: only the rows of dropped classes, without a label.

        Raises:
            KcdpError: no rows are left.
        """
        self.root = root
        chosen = [row for row in rows if (row.label is None) == neutral]
        self.dropped = len(rows) - len(chosen)
        if not rows:
            raise KcdpError(f"{root} lists no pictures", "one row a picture", "fetch the dataset again")
        require_pictures(chosen, self.dropped, str(root), neutral)
        self._files = tuple(row.key for row in chosen)
        super().__init__(name, with_unique_keys(chosen))

    def image(self, index: int) -> Image.Image:
        """See ``ImageDataset.image``; of an animation, the first frame."""
        return decode(self.path_of(index))

    def path_of(self, index: int) -> Path:
        """See ``ImageDataset.path_of``."""
        return self.root / self._files[index]


def with_unique_keys(samples: Sequence[Sample]) -> list[Sample]:
    """The samples in order; a key that was there before gets ``#2``, ``#3``, ... at its end."""
    taken: set[str] = set()
    found = []
    for sample in samples:
        key, number = sample.key, 1
        while key in taken:
            number += 1
            key = f"{sample.key}#{number}"
        taken.add(key)
        found.append(sample if key == sample.key else replace(sample, key=key))
    return found


def require_folder(path: str | Path, kind: str) -> Path:
    """The folder of a dataset of that kind.

    Raises:
        KcdpError: there is none.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise KcdpError(f"{root} {what}", f"the folder of the dataset {kind}", f"check the path after {kind}:")
    return root


def split_lists(folder: Path, kind: str) -> dict[str, Path]:
    """split -> the list of that split, ``train.json`` and so on, as far as they are there.

    Raises:
        KcdpError: none is there.
    """
    names = {split: folder / f"{split}.json" for split in SPLITS}
    found = {split: path for split, path in names.items() if path.exists()}
    if not found:
        listed = ", ".join(path.name for path in names.values())
        raise KcdpError(f"{folder} has none of {listed}", "at least one", f"check the path after {kind}:")
    return found


def numbered_rows(rows: Any, path: Path, expected: str) -> Iterator[tuple[str, Any]]:
    """(where it stands, row) for every row of a JSON list; rows are counted from 1.

    Raises:
        KcdpError: ``rows`` is no list.
    """
    if not isinstance(rows, list):
        raise KcdpError(f"{path} is {shown(rows)}", expected, "fetch the file again")
    for number, row in enumerate(rows, 1):
        yield f"{path} row {number}", row


def read_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """``numbered_rows`` of a JSON file that is one list."""
    return numbered_rows(read_json(path), path, "a list of rows")


def path_below(raw: Any, where: str) -> str:
    """A path out of a list, with forward slashes, that stays below the dataset's folder.

    Raises:
        KcdpError: no text, an absolute path, or one that goes up.
    """
    if not isinstance(raw, str) or not raw.strip():
        raise KcdpError(f"{where}: the path is {shown(raw)}", "a path below the dataset's folder")
    path = raw.replace("\\", "/")
    windows = PureWindowsPath(path)
    if windows.drive or windows.root or ".." in windows.parts:
        raise KcdpError(
            f"{where}: the path {raw!r} leaves the dataset's folder", "a path below it",
            "do not use this file, or mend the row",
        )  # fmt: skip
    return windows.as_posix()


def class_of(dataset: str, raw: Any, where: str) -> int | None:
    """``map_class`` for a value out of a JSON row or a table; ``where`` begins the message.

    Raises:
        KcdpError: the dataset does not have that class, or ``raw`` is neither a text nor a whole number.
    """
    if isinstance(raw, bool) or not isinstance(raw, (str, int)):
        raise KcdpError(f"{where}: the class is {shown(raw)}", "a name or a whole number")
    try:
        return map_class(dataset, raw)
    except KcdpError as error:
        raise KcdpError(f"{where}: {error.received}", error.expected, error.fix) from None


def shown(value: Any) -> str:
    """A JSON value for a message, not longer than a line's part."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
