"""``emoset:FOLDER``: EmoSet-118K (Yang et al. 2023), photographs of eight emotions by name.

    FOLDER/{train,val,test}.json      rows [label, image, annotation] or [label, id, image, annotation]
    FOLDER/image/<class>/<file>.jpg

A row's length tells which of the two forms it has. ``info.json`` and the annotations (brightness, scene, ...) are not
needed. The lists are the splits; contentment and amusement are happy, awe and excitement are surprise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kcdp.data.dataset import Sample
from kcdp.data.listed import ListedDataset, class_of, path_below, read_rows, require_folder, shown, split_lists
from kcdp.errors import KcdpError

#: length of a row -> position of the picture's path in it; the label comes first in both.
_IMAGE_AT = {3: 1, 4: 2}


def open_emoset(name: str, path: str | Path) -> ListedDataset:
    """The pictures that the lists name.

    Raises:
        KcdpError: no folder, no list, or a row that is malformed, of an unknown class, or leads out of the folder.
    """
    root = require_folder(path, "emoset")
    lists = split_lists(root, "emoset")
    samples = [_sample(row, split, where) for split, file in lists.items() for where, row in read_rows(file)]
    return ListedDataset(name, root, samples)


def _sample(row: Any, split: str, where: str) -> Sample:
    if not isinstance(row, list) or len(row) not in _IMAGE_AT:
        raise KcdpError(
            f"{where} is {shown(row)}", "[label, image, annotation] or [label, id, image, annotation]",
            "fetch the file again",
        )  # fmt: skip
    if not isinstance(row[0], str):
        raise KcdpError(f"{where}: the label is {shown(row[0])}", "the name of a class")
    return Sample(path_below(row[_IMAGE_AT[len(row)]], where), class_of("emoset", row[0], where), split)
