"""``kcdp data check``: reads a dataset whole and says whether it can be used.

What is kept of a picture are its hash, an outline and a small grey copy, 300 bytes, whatever its size.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from kcdp.data.dataset import SPLITS, ImageDataset
from kcdp.data.fingerprint import SIDE, Fingerprint, find_alike, fingerprint, is_card, same_content
from kcdp.data.progress import with_bar
from kcdp.data.splits import native_splits, split_of
from kcdp.errors import KcdpError
from kcdp.labels import LABELS

_WAITING = 8  # pictures read ahead for each thread
_MOST_THREADS = 16


@dataclass(frozen=True)
class Unreadable:
    """A picture that could not be read.

    Attributes:
        index: its position in the dataset.
        reason: the reader's message, which names the file.
        missing: there is no such file; else it is there and damaged.
    """

    index: int
    reason: str
    missing: bool


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        dataset: what was checked.
        unreadable: in order.
        same: groups of positions whose pictures are equal pixel by pixel, upright, transparency over white.
        alike: groups of positions whose pictures look the same though not all pixels are equal.
    """

    dataset: ImageDataset
    unreadable: tuple[Unreadable, ...]
    same: tuple[tuple[int, ...], ...]
    alike: tuple[tuple[int, ...], ...]

    @cached_property
    def keys(self) -> list[str]:
        """The samples' keys, in a form that can be printed and written whatever bytes a file's name has."""
        return [_printable(sample.key) for sample in self.dataset.samples]

    @property
    def missing(self) -> list[Unreadable]:
        """Pictures that the dataset names and that are not there."""
        return [picture for picture in self.unreadable if picture.missing]

    @property
    def damaged(self) -> list[Unreadable]:
        """Pictures that are there and cannot be decoded."""
        return [picture for picture in self.unreadable if not picture.missing]

    @cached_property
    def cards(self) -> list[tuple[int, ...]]:
        """Groups, equal or alike, that are one picture under many keys and labels: see ``is_card``."""
        labels = self.dataset.labels
        alike, same = ([group for group in found if is_card(labels[list(group)])] for found in (self.alike, self.same))
        known = {index for group in alike for index in group}
        return [*alike, *(group for group in same if group[0] not in known)]

    @cached_property
    def conflicts(self) -> list[tuple[int, ...]]:
        """Groups of equal pictures that have different labels."""
        return [group for group in self.same if len(self.labels_of(group)) > 1]

    def labels_of(self, group: tuple[int, ...]) -> list[str]:
        """The different labels of a group, in the order of ``LABELS``; pictures without one do not count."""
        found = {self.dataset.samples[index].label for index in group}
        return [name for number, name in enumerate(LABELS) if number in found]

    def splits_of(self, group: tuple[int, ...]) -> list[str]:
        """The different splits of a group, in the order of ``SPLITS``."""
        found = {split_of(self.dataset.samples[index]) for index in group}
        return [name for name in SPLITS if name in found]

    def across_splits(self, groups: tuple[tuple[int, ...], ...]) -> list[tuple[int, ...]]:
        """Those of the groups that have pictures in more than one split."""
        return [group for group in groups if len(self.splits_of(group)) > 1]

    @property
    def absent(self) -> dict[str, list[str]]:
        """split -> the labels of which it has no picture, for splits that have some labels and lack others.

        "all" where the dataset has no splits of its own: a division by keys may always miss a rare label.
        """
        counts = self.counts() if native_splits(self.dataset) else {"all": self.dataset.class_counts()}
        lacking = {
            split: [name for name in LABELS if not by_class[name]]
            for split, by_class in counts.items()
            if any(by_class[name] for name in LABELS)
        }
        return {split: names for split, names in lacking.items() if names}

    def counts(self) -> dict[str, dict[str, int]]:
        """split -> label, "unlabelled" last, -> number of pictures; splits without pictures left out."""
        counted = Counter((split_of(sample), sample.label) for sample in self.dataset.samples)
        columns = [*enumerate(LABELS), (None, "unlabelled")]
        table = {split: {name: counted[split, label] for label, name in columns} for split in SPLITS}
        return {split: row for split, row in table.items() if any(row.values())}

    @property
    def verdict(self) -> str:
        """ "broken": a run would stop at a picture that cannot be read. "usable with remarks", or "usable"."""
        if self.unreadable:
            return "broken"
        return "usable with remarks" if self.same or self.alike or self.absent else "usable"

    @property
    def passed(self) -> bool:
        """Nothing missing, damaged, or with two labels."""
        return not self.unreadable and not self.conflicts

    def to_dict(self) -> dict[str, Any]:
        """Everything, in plain JSON types; pictures are named by their keys."""

        def groups(found: Any) -> list[dict[str, Any]]:
            return [
                {
                    "pictures": [self.keys[i] for i in group],
                    "labels": self.labels_of(group),
                    "splits": self.splits_of(group),
                }
                for group in found
            ]

        def unread(found: list[Unreadable]) -> list[dict[str, str]]:
            return [{"picture": self.keys[picture.index], "reason": picture.reason} for picture in found]

        return {
            "dataset": self.dataset.name, "pictures": len(self.keys), "verdict": self.verdict, "passed": self.passed,
            "counts": self.counts(), "absent": self.absent, "missing": unread(self.missing),
            "damaged": unread(self.damaged), "conflicting": groups(self.conflicts), "equal": groups(self.same),
            "alike": groups(self.alike), "cards": groups(self.cards),
        }  # fmt: skip


def check_dataset(dataset: ImageDataset, *, threads: int | None = None) -> Check:
    """Decodes every picture once, in several threads, with a progress bar on a terminal.

    Args:
        dataset: what to check; its pictures may be read by several threads at a time.
        threads: None: one for each processor, 16 at most.

    Raises:
        KeyboardInterrupt: after the pictures being decoded are done.
    """
    count = len(dataset)
    contents = [""] * count
    outlines, small = np.zeros((count, 8), np.uint8), np.zeros((count, SIDE, SIDE), np.uint8)
    unreadable = []
    threads = threads or min(os.cpu_count() or 1, _MOST_THREADS)
    for index, found in enumerate(with_bar(_read_all(dataset, threads), "check", count)):
        if isinstance(found, Unreadable):
            unreadable.append(found)
        else:
            contents[index], outlines[index], small[index] = found.content, found.outline, found.small
    same = same_content(contents)
    readable = np.array([bool(content) for content in contents])
    return Check(
        dataset, tuple(unreadable), tuple(map(tuple, same)), tuple(_alike(contents, readable, outlines, small))
    )


def _alike(
    contents: list[str], readable: np.ndarray, outlines: np.ndarray, small: np.ndarray
) -> Iterator[tuple[int, ...]]:
    """The groups of ``find_alike`` among the readable pictures that are not merely equal."""
    positions = np.flatnonzero(readable)
    for group in find_alike(outlines[positions], small[positions]):
        found = tuple(positions[group].tolist())
        if len({contents[index] for index in found}) > 1:
            yield found


def _read_all(dataset: ImageDataset, threads: int) -> Iterator[Fingerprint | Unreadable]:
    """One result for each picture, in order; only so many are read ahead that memory stays bounded."""
    waiting: deque[Future[Fingerprint | Unreadable]] = deque()
    pool = ThreadPoolExecutor(threads)
    read = partial(_read, dataset)
    try:
        for index in range(len(dataset)):
            waiting.append(pool.submit(read, index))
            if len(waiting) >= threads * _WAITING:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(dataset: ImageDataset, index: int) -> Fingerprint | Unreadable:
    try:
        return fingerprint(dataset.image(index))
    except KcdpError as error:
        path = dataset.path_of(index)
        return Unreadable(index, _printable(str(error)), path is not None and not path.exists())


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
