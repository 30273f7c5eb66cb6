"""``ser30k:FOLDER``: SER30K (Liu et al. 2022), stickers by topic, with the words written on them.

    FOLDER/Annotations/{train,val,test}.json      {"annotations": [{"topic", "file_name", "text", "anno"}, ...]}
    FOLDER/Images/<topic>/<file_name>

``anno`` is 1 surprise, 2 happiness, 3 disgust, 4 fear, 5 sadness, 6 anger, 7 neutral; neutral is dropped, and with
``neutral=only`` everything else is. The lists are the splits. There are thousands of topics, so they are no groups to
report by. The words are the sample's ``text``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kcdp.data.dataset import Sample
from kcdp.data.listed import ListedDataset, class_of, numbered_rows, path_below, require_folder, shown, split_lists
from kcdp.errors import KcdpError
from kcdp.files import read_json

_KEY = "annotations"
_FIELDS = ("topic", "file_name", "anno")
_EXPECTED = "an object with topic, file_name, text and anno"


def open_ser30k(name: str, path: str | Path, neutral: bool = False) -> ListedDataset:
    """The stickers that the lists name; ``neutral``: only those of no emotion, without a label.

    Raises:
        KcdpError: no folder, no list, or a row that is malformed, of an unknown class, or leads out of the folder.
    """
    root = require_folder(path, "ser30k")
    annotations = root / "Annotations"
    if not annotations.is_dir():
        raise KcdpError(f"{root} has no folder Annotations", "Annotations and Images", "check the path after ser30k:")
    lists = split_lists(annotations, "ser30k")
    samples = [_sample(row, split, where) for split, file in lists.items() for where, row in _rows(file)]
    return ListedDataset(name, root, samples, neutral)


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    content = read_json(path)
    if not isinstance(content, dict) or _KEY not in content:
        raise KcdpError(f"{path} has no {_KEY!r}", f'{{"{_KEY}": [...]}}', "fetch the file again")
    return numbered_rows(content[_KEY], path, f"a list as {_KEY!r}")


def _sample(row: Any, split: str, where: str) -> Sample:
    if not isinstance(row, dict):
        raise KcdpError(f"{where} is {shown(row)}", _EXPECTED, "fetch the file again")
    missing = [field for field in _FIELDS if field not in row]
    if missing:
        raise KcdpError(f"{where} has no {missing[0]!r}", _EXPECTED, "fetch the file again")
    text = row.get("text")
    if not isinstance(text, (str, type(None))):
        raise KcdpError(f"{where}: text is {shown(text)}", "a text or null")
    anno = int(row["anno"]) if isinstance(row["anno"], str) and row["anno"].isdecimal() else row["anno"]
    if not isinstance(anno, int):
        raise KcdpError(f"{where}: anno is {shown(anno)}", "a whole number from 1 to 7")
    folder, file = (path_below(row[field], f"{where}: {field}") for field in ("topic", "file_name"))
    return Sample(f"Images/{folder}/{file}", class_of("ser30k", anno, where), split, text=text or "")
