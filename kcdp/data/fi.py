"""``fi:FOLDER``: Flickr and Instagram (You et al. 2016), photographs of eight emotions.

    FOLDER/{train,val,test}.json      rows [path, id]: 0 amusement, 1 anger, 2 awe, 3 contentment, 4 disgust,
                                      5 excitement, 6 fear, 7 sadness
    FOLDER/[train|val|test/]<class>/<picture>      where there are no lists

A path is one below FOLDER, or below FOLDER/train (val, test) where there is such a folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kcdp.data.dataset import SPLITS, ImageDataset, Sample
from kcdp.data.folder import FolderDataset
from kcdp.data.listed import ListedDataset, class_of, path_below, read_rows, require_folder, shown, split_lists
from kcdp.errors import KcdpError


def open_fi(name: str, path: str | Path) -> ImageDataset:
    """The reader for the layout that is there: lists win over class folders.

    Raises:
        KcdpError: no folder, or neither of the layouts; a row that is malformed, of an unknown class, or leads out of
            the folder.
    """
    root = require_folder(path, "fi")
    if not any((root / f"{split}.json").exists() for split in SPLITS):
        return FolderDataset(name, root, dataset="fi")
    samples = []
    for split, file in split_lists(root, "fi").items():
        above = f"{split}/" if (root / split).is_dir() else ""
        samples += [_sample(row, split, above, where) for where, row in read_rows(file)]
    return ListedDataset(name, root, samples)


def _sample(row: Any, split: str, above: str, where: str) -> Sample:
    if not isinstance(row, list) or len(row) != 2:
        raise KcdpError(f"{where} is {shown(row)}", "[path, id]", "fetch the file again")
    path, code = path_below(row[0], where), row[1]
    if isinstance(code, str) and code.strip().isdecimal():
        code = int(code)
    key = path if path.startswith(above) else f"{above}{path}"
    return Sample(key, class_of("fi", code, where), split)
