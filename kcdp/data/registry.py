"""A dataset is named by one string, the same everywhere: ``kind:PATH?option=value&option=value``.

    folder:photos                                 class folders, with or without train/val/test above them
    fer2013:fer2013.zip?split=train               FER-2013, its own splits
    csv:pets.csv                                  a table of one's own
    emoji:artwork?styles=noto,twemoji&only=labelled
    synthetic:stickers?n=600&labelled=no          drawn on the fly, nothing to fetch

Several strings together are one dataset, see ``open_datasets``. ``KINDS`` holds what each kind takes; ``COMMON`` the
options that all of them take.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from kcdp.data.dataset import SPLITS, ImageDataset
from kcdp.data.kinds import COMMON, KINDS, DatasetSpec, Option, one_of
from kcdp.data.mixture import Mixture
from kcdp.data.splits import digest, native_splits, split_of, split_sizes
from kcdp.errors import KcdpError, nearest

__all__ = [
    "COMMON", "KINDS", "DatasetSpec", "native_splits", "open_dataset", "open_datasets", "parse_spec", "split_of",
    "split_sizes",
]  # fmt: skip


def parse_spec(text: str) -> DatasetSpec:
    """Reads a dataset string; nothing is opened.

    Raises:
        KcdpError: unknown kind or option, a bad value, no path. The message names the nearest valid word.
    """
    kind, colon, rest = text.partition(":")
    if not colon:
        raise KcdpError(f"dataset {text!r} has no kind", "kind:PATH", f"write folder:{text} for a folder of pictures")
    if kind not in KINDS:
        raise KcdpError(f"dataset {text!r}: kind {kind!r} is unknown{nearest(kind, KINDS)}", one_of(KINDS))
    path, _, query = rest.partition("?")
    if not path:
        raise KcdpError(f"dataset {text!r} has no path", f"{kind}:{KINDS[kind].path}")
    paths = KINDS[kind].paths
    if paths and path not in paths:
        raise KcdpError(f"dataset {text!r}: {kind} has no {path!r}{nearest(path, paths)}", one_of(paths))
    known = {**COMMON, **KINDS[kind].options}
    options: dict[str, Any] = {}
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in known:
            hint = nearest(name, known)
            raise KcdpError(f"dataset {text!r}: {kind} has no option {name!r}{hint}", one_of(sorted(known)))
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
        raise KcdpError(f"split is {wanted!r}{nearest(str(wanted), (*SPLITS, 'all'))}", one_of((*SPLITS, "all")))
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
        shuffled = sorted(keep, key=lambda i: digest("limit", dataset.samples[i].key))
        keep = sorted(shuffled[: spec.options["limit"]])
    if len(keep) < len(dataset):
        dataset = dataset.subset(keep)
    return dataset if spec.options.get("labelled", True) else _HiddenLabels(dataset)


def open_datasets(texts: Sequence[str], *, split: str | None = None) -> ImageDataset:
    """Opens what one or several strings name as one dataset.

    Args:
        texts: dataset strings. Where several have ``weight=W``, the expected share of drawn pictures of each is
            proportional to W; either all of them have it or none. A single dataset's weight changes nothing.
        split: as for ``open_dataset``, for each of them.

    Returns:
        of one string, that dataset itself; of several, a ``Mixture``.

    Raises:
        KcdpError: no string, one named twice, weights for some only, or as ``open_dataset``.
    """
    if not texts:
        raise KcdpError("no dataset is named", "at least one dataset string, kind:PATH")
    weights = [parse_spec(text).options.get("weight") for text in texts]
    given = [weight for weight in weights if weight is not None]
    if given and len(given) < len(texts):
        without = ", ".join(repr(text) for text, weight in zip(texts, weights, strict=True) if weight is None)
        raise KcdpError(
            f"{len(given)} of {len(texts)} datasets have a weight, not {without}", "weight= in all of them or in none"
        )
    datasets = [open_dataset(text, split=split) for text in texts]
    return datasets[0] if len(datasets) == 1 else Mixture(datasets, given or None)


class _HiddenLabels(ImageDataset):
    """The same pictures; nothing that is handed out holds a label."""

    def __init__(self, parent: ImageDataset) -> None:
        super().__init__(parent.name, [replace(sample, label=None) for sample in parent.samples])
        self._parent = parent

    def image(self, index: int) -> Image.Image:
        return self._parent.image(index)

    def path_of(self, index: int) -> Path | None:
        return self._parent.path_of(index)


def _parse_value(text: str, name: str, option: Option, value: str | None) -> Any:
    try:
        if value is None or (option.words and value not in option.words):
            raise ValueError
        return option.parse(value)
    except ValueError:
        shown = f"option {name!r} has no value" if value is None else f"{name} is {value!r}"
        hint = nearest(value or "", option.words)
        raise KcdpError(f"dataset {text!r}: {shown}{hint}", option.expected) from None
