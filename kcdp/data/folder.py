"""``folder:PATH``: pictures in one folder a class, with or without train/val/test folders above them.

``PATH/<class>/**/*.png`` or ``PATH/{train,val,test}/<class>/**/*.png``; a folder that holds nothing but pictures
is an unlabelled set. Class folders are named as in ``kcdp.labels`` ("happy", "joy", ...), in any case. "neutral" is
dropped; with ``neutral=only`` everything else is, and the neutral pictures have no label.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kcdp.data.dataset import SPLITS, ImageDataset, Sample
from kcdp.decoding import decode
from kcdp.errors import KcdpError, nearest
from kcdp.files import PICTURE_EXTENSIONS
from kcdp.labels import map_class

#: Folder name (lower-case) -> split. Some archives spell "val" out.
SPLIT_FOLDERS = {**{name: name for name in SPLITS}, "valid": "val", "validation": "val"}


class FolderDataset(ImageDataset):
    """Pictures below one folder; a sample's key is its path below that folder, with forward slashes.

    Attributes:
        root: the folder.
        dropped: number of pictures left out because the task has no such class ("neutral"); with ``neutral``, of all
            others.
    """

    def __init__(self, name: str, path: str | Path, neutral: bool = False, dataset: str = "folder") -> None:
        """
        Args:
            name: the dataset string.
            path: the folder.
            neutral: only the neutral pictures.
            dataset: the kind, a key of ``kcdp.labels.DATASET_CLASSES``, whose class names count; only "folder" may
                hold pictures without a class.

        Raises:
            KcdpError: no such folder, no pictures in it, or folders that are no class.
        """
        self.root = Path(path).expanduser()
        if not self.root.is_dir():
            what = "is not a folder" if self.root.exists() else "does not exist"
            raise KcdpError(f"{self.root} {what}", "a folder of pictures", f"check the path after {dataset}:")
        keys = find_pictures(self.root)
        samples, self.dropped = classify(keys, dataset=dataset, where=str(self.root), neutral=neutral)
        loose = [sample.key for sample in samples if sample.label is None and not neutral]
        if loose and dataset != "folder":
            raise KcdpError(
                f"{self.root} holds {loose[0]}", "[train|val|test/]<class>/<picture>",
                "use folder: for pictures without a class",
            )  # fmt: skip
        super().__init__(name, samples)

    def image(self, index: int) -> Image.Image:
        """See ``ImageDataset.image``; of an animation, the first frame."""
        return decode(self.path_of(index))

    def path_of(self, index: int) -> Path:
        """See ``ImageDataset.path_of``."""
        return self.root / self.samples[index].key


def find_pictures(root: Path) -> list[str]:
    """Sorted paths of the pictures below ``root``, relative, with forward slashes. Hidden ones are ignored.

    Raises:
        KcdpError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise KcdpError(f"cannot list {error.filename}: {error.strerror}", "a readable folder") from None

    found = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = Path(folder).relative_to(root)
        found += [(below / name).as_posix() for name in files]
    return sorted(filter(is_picture, found))


def is_picture(key: str) -> bool:
    """By its extension, and not hidden: no part of the path starts with a dot (or is what macOS adds to a zip)."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in key.split("/"))
    return key.lower().endswith(tuple(PICTURE_EXTENSIONS)) and not hidden


def classify(keys: Sequence[str], *, dataset: str, where: str, neutral: bool = False) -> tuple[list[Sample], int]:
    """Samples from paths: ``[split/]class/.../file``, or files alone (unlabelled).

    Args:
        keys: sorted relative paths with forward slashes; each becomes a sample's key.
        dataset: a key of ``kcdp.labels.DATASET_CLASSES``, whose class names count.
        where: the folder or archive, for messages.
        neutral: only the pictures of dropped classes, without a label, instead of all others.

    Returns:
        the samples in the order given, and how many pictures were left out.

    Raises:
        KcdpError: no pictures; a folder that is neither a split nor a class; loose pictures beside class folders.
    """
    if not keys:
        raise KcdpError(f"{where} holds no pictures", f"files ending in {', '.join(sorted(PICTURE_EXTENSIONS))}")
    tops = {key.split("/", 1)[0].lower() for key in keys if "/" in key}
    has_splits = not tops.isdisjoint(SPLIT_FOLDERS)
    samples, dropped = [], 0
    classes: dict[str, int | None] = {}
    loose: dict[str | None, str] = {}
    foldered: set[str | None] = set()
    for key in keys:
        split, rest = _split_of(key, where) if has_splits else (None, key)
        if "/" not in rest:
            loose.setdefault(split, key)
            if neutral:
                dropped += 1
            else:
                samples.append(Sample(key, None, split))
            continue
        foldered.add(split)
        raw = rest.split("/", 1)[0]
        if raw not in classes:
            classes[raw] = _class_of(raw, dataset, f"{where}/{key[: len(key) - len(rest)]}{raw}")
        if (classes[raw] is None) != neutral:
            dropped += 1
        else:
            samples.append(Sample(key, classes[raw], split))
    mixed = sorted(key for split, key in loose.items() if split in foldered)
    if mixed:
        raise KcdpError(
            f"{where} holds class folders and loose pictures beside them ({mixed[0]})",
            "either folders or pictures",
            "move the loose pictures into a class folder, or out",
        )
    require_pictures(samples, dropped, where, neutral)
    return samples, dropped


def require_pictures(samples: Sequence[Sample], dropped: int, where: str, neutral: bool) -> None:
    """Raises KcdpError where nothing is left of the ``dropped`` pictures of ``where``; ``neutral`` was asked for."""
    if not samples and neutral:
        raise KcdpError(f"{where} holds no neutral pictures ({dropped} others)", fix="leave neutral=only out")
    if not samples:
        raise KcdpError(f"{where} holds only dropped classes ({dropped} pictures)", "one of the six emotions")


def _split_of(key: str, where: str) -> tuple[str, str]:
    top, _, rest = key.partition("/")
    if top.lower() not in SPLIT_FOLDERS or not rest:
        raise KcdpError(
            f"{where} holds {top!r} beside its split folders{nearest(top.lower(), SPLITS)}",
            f"only {', '.join(SPLITS)}",
            "rename it or move it out",
        )
    return SPLIT_FOLDERS[top.lower()], rest


def _class_of(raw: str, dataset: str, where: str) -> int | None:
    try:
        return map_class(dataset, raw)
    except KcdpError as error:
        raise KcdpError(f"{where}: {error.received}", error.expected, error.fix) from None
