"""The kinds of dataset: what each is called, what it takes, and which module reads it.

A reader's module is imported when a dataset of its kind is opened, not before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kcdp.data.dataset import SPLITS, ImageDataset


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


def one_of(words: Mapping[str, Any] | Sequence[str]) -> str:
    """The valid words, for a message; a single one stands alone."""
    return f"one of {', '.join(words)}" if len(words) > 1 else next(iter(words))


def _whole(low: int, high: int | None = None) -> Option:
    def parse(value: str) -> int:
        number = int(value)
        if number < low or (high is not None and number > high):
            raise ValueError
        return number

    return Option(f"a whole number from {low}" + (f" to {high}" if high is not None else ""), parse)


def _above_zero(value: str) -> float:
    number = float(value)
    if not 0 < number < float("inf"):
        raise ValueError
    return number


def _word(*words: str) -> Option:
    return Option(one_of(words), str, words)


def _names(value: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in value.split(","))
    if not all(names):
        raise ValueError
    return names


def _read_folder(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.folder import FolderDataset

    return FolderDataset(name, spec.path, **spec.own_options)


def _read_fer2013(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.fer2013 import open_fer2013

    return open_fer2013(name, spec.path, **spec.own_options)


def _read_emoset(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.emoset import open_emoset

    return open_emoset(name, spec.path)


def _read_ser30k(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.ser30k import open_ser30k

    return open_ser30k(name, spec.path, **spec.own_options)


def _read_fi(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.fi import open_fi

    return open_fi(name, spec.path)


def _read_emotion6(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.emotion6 import open_emotion6

    return open_emotion6(name, spec.path)


def _read_emo8(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.folder import FolderDataset

    return FolderDataset(name, spec.path, dataset="emo8")


def _read_csv(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.table import TableDataset

    return TableDataset(name, spec.path, **spec.own_options)


def _read_emoji(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.emoji import EmojiDataset

    return EmojiDataset(name, spec.path, **spec.own_options)


def _read_synthetic(spec: DatasetSpec, name: str) -> ImageDataset:
    from kcdp.data.synthetic import SyntheticFaces

    return SyntheticFaces(spec.path, name=name, **spec.own_options)


#: Of a kind that has pictures of no emotion: exactly those, without a label, to see what a model makes of them.
_NEUTRAL: Mapping[str, Option] = {"neutral": Option("only", lambda value: value == "only", ("only",))}

COMMON: Mapping[str, Option] = MappingProxyType({
    "split": _word(*SPLITS, "all"),
    "limit": _whole(1),
    "labelled": Option("yes or no", lambda value: value == "yes", ("yes", "no")),
    "only": _word("labelled"),
    "weight": Option("a number above 0", _above_zero),
})  # fmt: skip

KINDS: Mapping[str, Kind] = MappingProxyType({
    "folder": Kind("one folder a class, with or without train/val/test above, or pictures alone", "FOLDER",
                   _read_folder, _NEUTRAL),
    "fer2013": Kind("FER-2013 as a folder, a .zip (read in place) or the original .csv", "FILE-OR-FOLDER",
                    _read_fer2013, _NEUTRAL),
    "emoset": Kind("EmoSet-118K, its lists and its image folder", "FOLDER", _read_emoset),
    "ser30k": Kind("SER30K stickers, its Annotations and Images", "FOLDER", _read_ser30k, _NEUTRAL),
    "fi": Kind("Flickr and Instagram, as lists or as class folders", "FOLDER", _read_fi),
    "emotion6": Kind("Emotion6 or EmotionROI, with or without their split lists", "FOLDER", _read_emotion6),
    "emo8": Kind("Emo8, class folders below train, val and test", "FOLDER", _read_emo8),
    "csv": Kind("a table of your own: path,label and if need be split,group", "FILE", _read_csv, _NEUTRAL),
    "emoji": Kind("face emoji fetched by kcdp data emoji", "FOLDER", _read_emoji,
                  {"styles": Option("style names, comma-separated", _names)}),
    "synthetic": Kind("faces drawn on the fly, as photographs or as stickers", "photos or synthetic:stickers",
                      _read_synthetic,
                      {"n": _whole(1), "seed": _whole(0), "size": _whole(32, 512),
                       "prior": _word("balanced", "natural")},
                      ("photos", "stickers")),
})  # fmt: skip
