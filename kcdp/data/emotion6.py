"""``emotion6:FOLDER``: Emotion6 (Peng et al. 2015) and EmotionROI (Peng et al. 2016), photographs of six emotions.

    FOLDER/[images/]{anger,disgust,fear,joy,sadness,surprise}/<picture>
    FOLDER/training_testing_split/{training,testing}.txt      one picture a line, [images/]<class>/<picture>

With the two lists only the pictures they name count, training as train and testing as test; without them the pictures
have no splits of their own. Keys are ``class/picture`` in every layout.
"""

from __future__ import annotations

from pathlib import Path

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.folder import FolderDataset
from kcdp.data.listed import ListedDataset, class_of, path_below, require_folder
from kcdp.errors import KcdpError

_LISTS = {"train": "training.txt", "test": "testing.txt"}
_IMAGES, _SPLITS = "images", "training_testing_split"


def open_emotion6(name: str, path: str | Path) -> ImageDataset:
    """The reader for the layout that is there.

    Raises:
        KcdpError: no folder, no pictures, folders that are no class, one list without the other, or a line that names
            no picture of a class.
    """
    root = require_folder(path, "emotion6")
    images = root / _IMAGES if (root / _IMAGES).is_dir() else root
    lists = {split: root / _SPLITS / file for split, file in _LISTS.items()}
    present = [file for file in lists.values() if file.exists()]
    if not present:
        return FolderDataset(name, images, dataset="emotion6")
    if len(present) == 1:
        absent = next(file for file in lists.values() if file not in present)
        raise KcdpError(
            f"{present[0]} is there and {absent.name} beside it is not", "both of them or neither",
            "fetch the dataset again",
        )  # fmt: skip
    return ListedDataset(name, images, [sample for split, file in lists.items() for sample in _read(file, split)])


def _read(file: Path, split: str) -> list[Sample]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise KcdpError(f"{file} cannot be read ({reason})", "a text file", "fetch the dataset again") from None
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        key = path_below(line.strip(), where).removeprefix(f"{_IMAGES}/")
        emotion, slash, _ = key.partition("/")
        if not slash:
            raise KcdpError(f"{where} is {line.strip()!r}", "<class>/<picture>", "fetch the dataset again")
        found.append(Sample(key, class_of("emotion6", emotion, where), split))
    return found
