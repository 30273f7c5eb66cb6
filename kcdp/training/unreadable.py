"""Pictures that cannot be read while a model trains: passed over, counted, named, and not too many of them."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm

from kcdp.data.loader import Item, TensorDataset
from kcdp.errors import KcdpError

#: Share of a dataset's pictures that may be unreadable.
LIMIT = 0.01
#: So many are named with their reason; the others are counted, and named in the log.
_NAMED = 10


def passed_over(item: Item, length: int) -> set[int]:
    """Places of the pictures that a batch should have had and could not.

    Args:
        item: a batch of a tolerant ``TensorDataset``.
        length: pictures in it.
    """
    found: set[int] = set()
    if item.place is None or item.wanted is None:
        return found
    for wanted, index in zip(item.wanted.tolist(), item.place.tolist(), strict=True):
        found.update((wanted + step) % length for step in range((index - wanted) % length))
    return found


def keys_of(item: Item, data: TensorDataset) -> list[str]:
    """The keys of a batch's pictures."""
    return [] if item.place is None else [data.dataset.samples[i].key for i in item.place.tolist()]


def note_unreadable(data: TensorDataset, places: Iterable[int], known: list[str], speak: bool) -> list[str]:
    """Add newly found ones to ``known`` and name them on the terminal.

    Args:
        known: keys found so far; grows.
        speak: whether this process writes to the terminal.

    Returns:
        the new keys.
    """
    keys = {data.dataset.samples[place].key: place for place in sorted(places)}
    new = [key for key in keys if key not in known]
    for key in new:
        known.append(key)
        if speak and len(known) <= _NAMED:
            tqdm.write(f"skipped {key}: {_reason(data, keys[key])}")
        elif speak and len(known) == _NAMED + 1:
            tqdm.write("more pictures cannot be read; their keys are in the log")
    return new


def check_unreadable(data: TensorDataset, known: list[str]) -> None:
    """Raises KcdpError: more than 1 % of a dataset's pictures cannot be read."""
    if len(known) > LIMIT * len(data):
        place = next(index for index, sample in enumerate(data.dataset.samples) if sample.key == known[0])
        raise KcdpError(
            f"{len(known)} of the {len(data)} pictures of {data.dataset.name!r} cannot be read, the first is "
            f"{known[0]}",
            "at most 1 %", f"look at them with: kcdp data check '{data.dataset.name_of(place)}'",
        )  # fmt: skip


def still_unreadable(data: TensorDataset, known: list[str]) -> list[str]:
    """Of the keys that a run had found, those that still cannot be read when it is resumed."""
    places = {sample.key: place for place, sample in enumerate(data.dataset.samples)}
    return [key for key in known if key in places and not _readable(data, places[key])]


def _readable(data: TensorDataset, place: int) -> bool:
    try:
        data.dataset.image(place)
        return True
    except KcdpError:
        return False


def _reason(data: TensorDataset, place: int) -> str:
    try:
        data.dataset.image(place)
        return "it can be read now"
    except KcdpError as error:
        return str(error)
