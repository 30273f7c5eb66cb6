"""The six emotions, their order, and how every supported dataset's own classes map onto them.

The order is that of the released UCDVER code: 0 surprise, 1 happy, 2 disgust, 3 fear, 4 sad, 5 anger.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from kcdp.errors import KcdpError, nearest

LABELS: tuple[str, ...] = ("surprise", "happy", "disgust", "fear", "sad", "anger")
NUM_CLASSES = len(LABELS)

#: Marks a class that the six-emotion task leaves out (it is dropped, never mapped to a seventh class).
DROPPED = None

_ALIASES = {
    "surprise": "surprise", "surprised": "surprise", "excitement": "surprise", "awe": "surprise",
    "happy": "happy", "happiness": "happy", "joy": "happy", "contentment": "happy", "amusement": "happy",
    "disgust": "disgust", "disgusted": "disgust",
    "fear": "fear", "fearful": "fear",
    "sad": "sad", "sadness": "sad",
    "anger": "anger", "angry": "anger",
}  # fmt: skip


def _by_name(*names: str) -> dict[str | int, str | None]:
    return {name: _ALIASES.get(name) for name in names}


_MIKELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
_FER_CODES = ("anger", "disgust", "fear", "happy", "sad", "surprise", "neutral")
_SER_NAMES = ("surprise", "happiness", "disgust", "fear", "sadness", "anger", "neutral")

#: dataset -> the dataset's own class (a name or a number) -> one of LABELS, or None when it is dropped.
DATASET_CLASSES: MappingProxyType[str, Mapping[str | int, str | None]] = MappingProxyType({
    "emoset": _by_name(*_MIKELS),
    "ser30k": {
        **_by_name(*_SER_NAMES),
        **{i: _ALIASES.get(name) for i, name in enumerate(_SER_NAMES, start=1)},
    },
    "fi": {**_by_name(*_MIKELS), **{i: _ALIASES[name] for i, name in enumerate(_MIKELS)}},
    "emotion6": _by_name("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    "emo8": _by_name(*_MIKELS),
    "fer2013": {
        **_by_name("anger", "angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
        **{i: _ALIASES.get(name) for i, name in enumerate(_FER_CODES)},
    },
    "folder": {**_by_name(*_ALIASES), "neutral": DROPPED},
    "csv": {**_by_name(*_ALIASES), "neutral": DROPPED},
})  # fmt: skip


def map_class(dataset: str, raw: str | int) -> int | None:
    """The index in LABELS of a dataset's own class, or None where the class is dropped.

    Args:
        dataset: a key of DATASET_CLASSES.
        raw: the class as the dataset writes it; names are compared without case.

    Raises:
        KcdpError: the dataset does not have that class.
    """
    table = DATASET_CLASSES[dataset]
    key = raw.strip().lower() if isinstance(raw, str) else raw
    if key not in table:
        names = sorted(str(name) for name in table)
        raise KcdpError(
            f"{dataset}: class {raw!r} is unknown{nearest(str(raw).lower(), names)}",
            expected=f"one of {', '.join(names)}",
            fix="rename the class or leave those pictures out",
        )
    name = table[key]
    return None if name is None else LABELS.index(name)
