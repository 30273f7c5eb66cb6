"""A dataset is named by one string, the same everywhere: ``kind:PATH?option=value&option=value``.

    folder:photos                                 class folders, with or without train/val/test above them
    fer2013:fer2013.zip?split=train               FER-2013, its own splits
    emoji:artwork?styles=noto,twemoji&only=labelled
    synthetic:stickers?n=600&labelled=no          drawn on the fly, nothing to fetch

``KINDS`` holds what each kind takes; ``COMMON`` the options that all of them take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from PIL import Image

from kcdp.data.dataset import SPLITS, ImageDataset, Sample
from kcdp.errors import KcdpError, nearest

#: Upper bounds of the hash of a key, as shares of its range, where the data has no splits of its own.
_SHARES = (("train", 0.80), ("val", 0.88), ("test", 1.0))


@dataclass(frozen=True)
class Option:
    """One option of a dataset string.

    Attributes:
        expected: what a right value is, for messages.
        parse: text to value; raises ValueError.
        words: the only valid values, where they can be listed.
    """

    expected: str
    parse: Callable[[str], Any]
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Kind:
    """One kind of dataset.

    Attributes:
        help: one line.
        path: what PATH stands for.
        read: opens it, given the parsed string and the dataset's name.
        options: what it takes beside ``COMMON``; handed to the reader.
        paths: the only valid PATHs, where they can be listed.
    """

    help: str
    path: str
    read: Callable[[DatasetSpec, str], ImageDataset]
    options: Mapping[str, Option] = field(default_factory=dict)
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetSpec:
    """A parsed dataset string. ``options`` holds values, not texts, and only the ones given."""

    kind: str
    path: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def own_options(self) -> dict[str, Any]:
        """The options that are the kind's own, to be handed to its reader."""
        return {key: value for key, value in self.options.items() if key in KINDS[self.kind].options}


def parse_spec(text: str) -> DatasetSpec:
    """Reads a dataset string; nothing is opened.

    Raises:
        KcdpError: unknown kind or option, a bad value, no path. The message names the nearest valid word.
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        raise KcdpError(f"dataset {text!r} has no kind", "kind:PATH", f"write folder:{text} for a folder of pictures")
    if kind not in KINDS:
        raise KcdpError(f"dataset {text!r}: kind {kind!r} is unknown{nearest(kind, KINDS)}", _one_of(KINDS))
    path, _, query = rest.partition("?")
    if not path:
        raise KcdpError(f"dataset {text!r} has no path", f"{kind}:{KINDS[kind].path}")
    paths = KINDS[kind].paths
    if paths and path not in paths:
        raise KcdpError(f"dataset {text!r}: {kind} has no {path!r}{nearest(path, paths)}", _one_of(paths))
    known = {**COMMON, **KINDS[kind].options}
    options: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in known:
            hint = nearest(name, known)
            raise KcdpError(f"dataset {text!r}: {kind} has no option {name!r}{hint}", _one_of(sorted(known)))
        if name in options:
            raise KcdpError(f"dataset {text!r} has the option {name!r} twice", "each option once")
        options[name] = _parse_value(text, name, known[name], value if equals else None)
    return DatasetSpec(kind, path, MappingProxyType(options))


def open_dataset(text: str, *, split: str | None = None) -> ImageDataset:
    """Opens the dataset a string names.

    The options are applied in this order: split, ``only=labelled``, limit, ``labelled=no``.

    Args:
        text: ``kind:PATH?option=value``.
        split: "train", "val", "test" or "all"; the string's own ``split`` wins over it. None is "all".

    Returns:
        the samples in the reader's order, under the name ``text``. Samples that carry no split of their own are
        divided by the SHA-256 of their key: 80 % train, 8 % val, 12 % test.

    Raises:
        KcdpError: the string is wrong, the reader cannot open the path, or nothing is left.
    """
    spec = parse_spec(text)
    wanted = spec.options.get("split", "all" if split is None else split)
    if wanted not in (*SPLITS, "all"):
        raise KcdpError(f"split is {wanted!r}{nearest(str(wanted), (*SPLITS, 'all'))}", _one_of((*SPLITS, "all")))
    dataset = KINDS[spec.kind].read(spec, text)
    keep = [i for i, sample in enumerate(dataset.samples) if wanted in ("all", split_of(sample))]
    if spec.options.get("only") == "labelled":
        keep = [i for i in keep if dataset.samples[i].label is not None]
    if not keep:
        sizes = ", ".join(f"{name} {size}" for name, size in split_sizes(dataset).items())
        only = " with a label" if "only" in spec.options else ""
        raise KcdpError(
            f"dataset {text!r} holds no pictures{only} in split {wanted!r}; its splits are {sizes}",
            fix="choose another split or other options",
        )
    if "limit" in spec.options:
        # Sorting by a hash is a shuffle that no library version and no other sample changes.
        shuffled = sorted(keep, key=lambda i: _digest("limit", dataset.samples[i].key))
        keep = sorted(shuffled[: spec.options["limit"]])
    if len(keep) < len(dataset):
        dataset = dataset.subset(keep)
    return dataset if spec.options.get("labelled", True) else _HiddenLabels(dataset)


def split_of(sample: Sample) -> str:
    """The sample's own split, else the one its key hashes to."""
    if sample.split is not None:
        return sample.split
    position = int.from_bytes(_digest("split", sample.key)[:8], "big") / 2**64
    return next(name for name, bound in _SHARES if position < bound)


def split_sizes(dataset: ImageDataset) -> dict[str, int]:
    """Number of pictures in train, val and test, by ``split_of``."""
    splits = [split_of(sample) for sample in dataset.samples]
    return {name: splits.count(name) for name in SPLITS}


def native_splits(dataset: ImageDataset) -> tuple[str, ...]:
    """The splits that the samples carry themselves, in the order of ``SPLITS``; empty: ``split_of`` hashes keys."""
    own = {sample.split for sample in dataset.samples}
    return tuple(name for name in SPLITS if name in own)


class _HiddenLabels(ImageDataset):
    """The same pictures; nothing that is handed out holds a label."""

    def __init__(self, parent: ImageDataset) -> None:
        super().__init__(parent.name, [replace(sample, label=None) for sample in parent.samples])
        self._parent = parent

    def image(self, index: int) -> Image.Image:
        return self._parent.image(index)


def _digest(purpose: str, key: str) -> bytes:
    text = key if purpose == "split" else f"{purpose}\0{key}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


def _parse_value(text: str, name: str, option: Option, value: str | None) -> Any:
    try:
        if value is None or (option.words and value not in option.words):
            raise ValueError
        return option.parse(value)
    except ValueError:
        shown = f"option {name!r} has no value" if value is None else f"{name} is {value!r}"
        hint = nearest(value or "", option.words)
        raise KcdpError(f"dataset {text!r}: {shown}{hint}", option.expected) from None


def _one_of(words: Mapping[str, Any] | Sequence[str]) -> str:
    return f"one of {', '.join(words)}" if len(words) > 1 else next(iter(words))


def _whole(low: int, high: int | None = None) -> Option:
    def parse(value: str) -> int:
        number = int(value)
        if number < low or (high is not None and number > high):
            raise ValueError
        return number

    return Option(f"a whole number from {low}" + (f" to {high}" if high is not None else ""), parse)


def _word(*words: str) -> Option:
    return Option(_one_of(words), str, words)


def _names(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise ValueError
    return names


def _read_folder(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.folder import FolderDataset

    return FolderDataset(name, spec.path)


def _read_fer2013(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.fer2013 import open_fer2013

    return open_fer2013(name, spec.path)


def _read_emoji(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.emoji import EmojiDataset

    return EmojiDataset(name, spec.path, **spec.own_options)


def _read_synthetic(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.synthetic import SyntheticFaces

    return SyntheticFaces(spec.path, name=name, **spec.own_options)


COMMON: Mapping[str, Option] = MappingProxyType({
    "split": _word(*SPLITS, "all"),
    "limit": _whole(1),
    "labelled": Option("yes or no", lambda value: value == "yes", ("yes", "no")),
    "only": _word("labelled"),
})  # fmt: skip

KINDS: Mapping[str, Kind] = MappingProxyType({
    "folder": Kind("one folder a class, with or without train/val/test above, or pictures alone", "FOLDER",
                   _read_folder),
    "fer2013": Kind("FER-2013 as a folder, a .zip (read in place) or the original .csv", "FILE-OR-FOLDER",
                    _read_fer2013),
    "emoji": Kind("face emoji fetched by kcdp data emoji", "FOLDER", _read_emoji,
                  {"styles": Option("style names, comma-separated", _names)}),
    "synthetic": Kind("faces drawn on the fly, as photographs or as stickers", "photos or synthetic:stickers",
                      _read_synthetic,
                      {"n": _whole(1), "seed": _whole(0), "size": _whole(32, 512),
                       "prior": _word("balanced", "natural")},
                      ("photos", "stickers")),
})  # fmt: skip
