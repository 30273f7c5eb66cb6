"""From any dataset to picture files that ``folder:`` reads back with the same labels, splits and pixels.

``OUT/<class>/<name>.png``; ``OUT/<split>/<class>/<name>.png`` where the dataset has splits of its own; pictures
without a label lie straight in ``OUT`` or ``OUT/<split>``. ``folder:`` takes a folder that holds either class
folders or loose pictures, so labelled and unlabelled pictures of one split are never written together.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from kcdp import __version__
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.folder import is_picture
from kcdp.data.progress import with_bar
from kcdp.data.registry import native_splits, split_of
from kcdp.errors import KcdpError
from kcdp.files import atomic_folder, write_json
from kcdp.labels import LABELS
from kcdp.preprocess import to_rgb

#: The file that says what the folder is; only a folder that holds it is ever replaced.
MARKER = "kcdp-pictures.json"
FORMAT_VERSION = 1

#: What --format takes -> Pillow's options; both keep every pixel, and the colour under full transparency.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "exact": True},
}

_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})
_LONGEST_NAME = 120  # bytes; file systems allow 255
_WINDOWS_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def write_pictures(dataset: ImageDataset, out: Path, *, form: str = "png", overwrite: bool = False) -> list[str]:
    """Writes every picture of a dataset, and a ``kcdp-pictures.json``; the whole folder or nothing.

    Pictures are turned upright as their EXIF says; transparency stays. PNG keeps palettes and 16-bit greys as they
    are, other modes become RGB or RGBA. Files are read back to the bytes that the model would have seen before.

    Args:
        dataset: what to write.
        out: the folder to make.
        form: "png" or "webp" (lossless).
        overwrite: replace a folder that an earlier call wrote.

    Returns:
        The files' paths below ``out``, in the dataset's order, with forward slashes.

    Raises:
        KcdpError: labelled and unlabelled pictures mixed, a damaged picture, or ``out`` cannot be written.
    """
    files = plan_files(dataset, form)
    with atomic_folder(out, overwrite=overwrite, marker=MARKER) as folder:
        for index in with_bar(range(len(dataset)), "write", len(dataset)):
            path = folder / files[index]
            path.parent.mkdir(parents=True, exist_ok=True)
            _save(dataset.image(index), path, form, dataset.samples[index].key)
        keys = (sample.key.encode("utf-8", "backslashreplace").decode() for sample in dataset.samples)
        write_json(folder / MARKER, {
            "kind": "pictures", "format_version": FORMAT_VERSION, "kcdp": __version__, "dataset": dataset.name,
            "files": dict(zip(files, keys, strict=True)),
        })  # fmt: skip
    return files


def plan_files(dataset: ImageDataset, form: str) -> list[str]:
    """Where each picture goes, relative to the folder; no two to one place, whatever the case of the letters.

    Raises:
        KcdpError: a split holds labelled and unlabelled pictures.
    """
    splits = [split_of(sample) if native_splits(dataset) else "" for sample in dataset.samples]
    _check_labels(dataset, splits)
    files: list[str] = []
    taken: set[str] = set()
    for sample, split in zip(dataset.samples, splits, strict=True):
        parts = [split] if split else []
        if sample.label is not None:
            parts.append(LABELS[sample.label])
        files.append(_free_path("/".join(parts), sample, form, taken))
        taken.add(files[-1].casefold())
    return files


def safe_name(key: str) -> str:
    """A file name without extension for a sample's key: letters, digits, dots, hyphens and underscores.

    Slashes and everything else become hyphens, a picture's extension goes. Never empty, hidden, a device name of
    Windows, or longer than 120 bytes. Different keys may get the same name.
    """
    stem = key.rpartition(".")[0] if is_picture(f"x{key.rpartition('/')[2]}") else key
    name = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", stem)).strip(".-")
    name = name.encode()[:_LONGEST_NAME].decode(errors="ignore").strip(".-")
    return f"_{name}" if _WINDOWS_DEVICES.fullmatch(name) else name or "picture"


def _free_path(folder: str, sample: Sample, form: str, taken: set[str]) -> str:
    """The sample's path; where its name is taken, a part of its key's SHA-256 is added."""
    name, digest = safe_name(sample.key), hashlib.sha256(sample.key.encode("utf-8", "surrogateescape")).hexdigest()
    tail, length = "", 0
    while True:
        path = "/".join(part for part in (folder, f"{name}{tail}.{form}") if part)
        if path.casefold() not in taken:
            return path
        length += 8
        tail = f"-{digest[:length]}"


def _check_labels(dataset: ImageDataset, splits: list[str]) -> None:
    counts = Counter((split, s.label is not None) for split, s in zip(splits, dataset.samples, strict=True))
    for split in dict.fromkeys(splits):
        labelled, unlabelled = counts[split, True], counts[split, False]
        if labelled and unlabelled:
            where = f" in split {split!r}" if split else ""
            raise KcdpError(
                f"dataset {dataset.name!r} holds {labelled} pictures with a label and {unlabelled} without{where}",
                "only one of the two, since folder: cannot tell them apart",
                "add only=labelled or labelled=no to the dataset string",
            )


def _save(image: Image.Image, path: Path, form: str, key: str) -> None:
    try:
        _storable(image, form).save(path, **FORMATS[form])
    except ValueError as error:  # WebP: no side above 16,383 pixels
        raise KcdpError(f"picture {key!r} cannot be written as {form} ({error})", fix="use --format png") from None


def _storable(image: Image.Image, form: str) -> Image.Image:
    """The picture upright, in a mode that the format holds without loss to what ``to_rgb`` makes of it."""
    image = ImageOps.exif_transpose(image)
    if form == "png" and image.mode in _PNG_MODES:
        return image
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts these one step at a time
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    if image.mode in ("LA", "PA", "RGBA"):
        return image.convert("RGBA")
    if "transparency" not in image.info:
        return to_rgb(image)
    if image.mode not in ("1", "L", "P", "RGB"):
        raise ValueError(f"it is {image.mode} with a transparent value")
    return image.convert("RGBA")
