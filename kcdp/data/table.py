"""``csv:FILE``: a table of one's own, one picture a row.

    path,label,split,group
    pets/one.png,happy,train,cats
    pets/two.png,Sadness,test,dogs

``path`` is relative to the folder that holds the table, or absolute. ``label`` is one of the six emotions or another
of their names ("joy", "angry", ...), in any case; empty for a picture without a label. "neutral" is dropped; with
``neutral=only`` everything else is. ``split`` (train, val, test) and ``group`` may be left out. Columns in any order,
UTF-8, commas between them.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from kcdp.data.dataset import SPLITS, ImageDataset, Sample
from kcdp.data.folder import SPLIT_FOLDERS, require_pictures
from kcdp.data.listed import class_of
from kcdp.decoding import decode
from kcdp.errors import KcdpError, nearest

_REQUIRED, _OPTIONAL = ("path", "label"), ("split", "group")
_COLUMNS = (*_REQUIRED, *_OPTIONAL)
_HEADER = "the columns path and label, and if need be split and group"


class TableDataset(ImageDataset):
    """The pictures that a csv file names. Keys are the paths as they stand in it, with forward slashes.

    A picture that is missing is an error when it is read, not before.

    Attributes:
        path: the table.
        dropped: number of rows left out because the task has no such class; with ``neutral``, of all others.
    """

    def __init__(self, name: str, path: str | Path, neutral: bool = False) -> None:
        """
        Args:
            name: the dataset string.
            path: the csv file.
            neutral: only the neutral pictures, without a label.

        Raises:
            KcdpError: no such file, other columns, or a row that is wrong: its line is named.
        """
        self.path = Path(path).expanduser()
        samples: list[Sample] = []
        self.dropped = 0
        lines: dict[str, int] = {}
        for number, row in _rows(self.path):
            where = f"{self.path} line {number}"
            sample, is_neutral = _sample(row, where)
            if sample.key in lines:
                raise KcdpError(
                    f"{where}: {sample.key!r} stands in line {lines[sample.key]} already", "each picture once",
                    "delete one of the two lines",
                )  # fmt: skip
            lines[sample.key] = number
            if is_neutral == neutral:
                samples.append(sample)
            else:
                self.dropped += 1
        if not lines:
            raise KcdpError(f"{self.path} holds no pictures", "one row a picture below the header")
        _check_splits(samples, lines, self.path)
        require_pictures(samples, self.dropped, str(self.path), neutral)
        super().__init__(name, samples)

    def image(self, index: int) -> Image.Image:
        """See ``ImageDataset.image``; of an animation, the first frame."""
        return decode(self.path_of(index))

    def path_of(self, index: int) -> Path:
        """See ``ImageDataset.path_of``."""
        return self.path.parent / self.samples[index].key


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, column -> value without spaces around it) of every row that is not empty."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        raise KcdpError(f"{path} {what}", "a table of pictures", "check the path after csv:")
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            reader = csv.reader(handle, strict=True)
            header = _read_header(next(reader, []), path)
            for row in reader:
                if not any(field.strip() for field in row):
                    continue
                if len(row) != len(header):
                    raise KcdpError(
                        f"{path} line {reader.line_num} has {len(row)} fields", str(len(header)),
                        "put a path that holds a comma in double quotes",
                    )  # fmt: skip
                yield reader.line_num, dict(zip(header, (field.strip() for field in row), strict=True))
    except UnicodeDecodeError as error:
        raise KcdpError(f"{path} is not UTF-8 ({error.reason})", "a csv file in UTF-8", "save it as UTF-8") from None
    except csv.Error as error:
        raise KcdpError(f"{path} line {reader.line_num} is not csv ({error})", "values separated by commas") from None
    except OSError as error:
        raise KcdpError(f"{path} cannot be read ({error.strerror})", "a csv file") from None


def _read_header(header: list[str], path: Path) -> list[str]:
    names = [name.strip().lower() for name in header]
    shown = ",".join(names)[:60]
    for name in names:
        if len(names) == 1 and (";" in name or "\t" in name):
            raise KcdpError(f"{path} has the header {shown!r}", _HEADER, "separate the columns by commas")
        if name not in _COLUMNS:
            raise KcdpError(
                f"{path}: column {name!r} is unknown{nearest(name, _COLUMNS)}", _HEADER, "rename it or take it out"
            )
    if len(set(names)) < len(names) or not set(_REQUIRED) <= set(names):
        raise KcdpError(f"{path} has the header {shown!r}", _HEADER)
    return names


def _sample(row: dict[str, str], where: str) -> tuple[Sample, bool]:
    """A row's sample, and whether it is one of no emotion."""
    key, raw, split = row["path"].replace("\\", "/"), row["label"], row.get("split", "")
    if not key:
        raise KcdpError(f"{where}: the path is empty", "the path of a picture")
    if split and split.lower() not in SPLIT_FOLDERS:
        raise KcdpError(
            f"{where}: split is {split!r}{nearest(split.lower(), SPLITS)}", f"one of {', '.join(SPLITS)}, or nothing"
        )
    label = class_of("csv", raw, where) if raw else None
    sample = Sample(key, label, SPLIT_FOLDERS[split.lower()] if split else None, row.get("group", ""))
    return sample, bool(raw) and label is None


def _check_splits(samples: list[Sample], lines: dict[str, int], path: Path) -> None:
    """Some rows with a split and some without would be two divisions of one table."""
    without = [sample for sample in samples if sample.split is None]
    if without and len(without) < len(samples):
        raise KcdpError(
            f"{path} line {lines[without[0].key]} has no split while others have one", "a split in all rows or in none"
        )
