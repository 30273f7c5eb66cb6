"""Several datasets as one: their pictures one after another, each still knowing the dataset it comes from."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path, PureWindowsPath

from PIL import Image

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.splits import split_of
from kcdp.errors import KcdpError


class Mixture(ImageDataset):
    """The pictures of all parts, the first part's first.

    A sample keeps its label. Its key is the part's number and the part's key (``1/happy/a.png``); its split is the one
    it has in its part, also where that one comes from the hash of the key; its group is its own, or else the part's
    name. A choice of a mixture's pictures (``subset``) is a plain dataset, without parts and weights.

    Attributes:
        parts: the datasets.
        ranges: the positions of each part's pictures in the mixture.
        weights: how often each part is drawn from: the expected share of drawn pictures is proportional to it. None:
            every picture is as likely as any other, so that a part's share is that of its pictures.
    """

    def __init__(self, parts: Sequence[ImageDataset], weights: Sequence[float] | None = None) -> None:
        """Raises KcdpError: no parts, one part twice, or not one weight above 0 for each part."""
        _check(parts, weights)
        self.parts = tuple(parts)
        self.weights = None if weights is None else tuple(map(float, weights))
        ends = list(accumulate(len(part) for part in parts))
        self.ranges = tuple(range(end - len(part), end) for part, end in zip(parts, ends, strict=True))
        samples: list[Sample] = []
        for number, (part, name) in enumerate(zip(parts, part_names([part.name for part in parts]), strict=True)):
            samples += [
                replace(s, key=f"{number}/{s.key}", split=split_of(s), group=s.group or name) for s in part.samples
            ]
        super().__init__(" + ".join(part.name for part in parts), samples)

    def image(self, index: int) -> Image.Image:
        """See ``ImageDataset.image``. Negative positions count from the end."""
        part, position = self._locate(index)
        return self.parts[part].image(position)

    def name_of(self, index: int) -> str:
        """The dataset string of the picture's part."""
        part, position = self._locate(index)
        return self.parts[part].name_of(position)

    def path_of(self, index: int) -> Path | None:
        """See ``ImageDataset.path_of``."""
        part, position = self._locate(index)
        return self.parts[part].path_of(position)

    def part_of(self, index: int) -> int:
        """The number of the part that holds the picture at a position.

        Raises:
            IndexError: there is no such position.
        """
        return self._locate(index)[0]

    def _locate(self, index: int) -> tuple[int, int]:
        """(number of the part, position in that part)."""
        index = range(len(self))[index]
        part = bisect_right([positions.stop for positions in self.ranges], index)
        return part, index - self.ranges[part].start


def part_names(texts: Sequence[str]) -> list[str]:
    """A short name for each of several dataset strings: ``kind:LAST-PART-OF-PATH``.

    Where two would be called the same, both are called by their whole path, and where that is the same too, by their
    whole string.
    """
    bare = [text.partition("?")[0] for text in texts]
    # A Windows path, for it takes both kinds of slash.
    short = [f"{kind}:{PureWindowsPath(path).name or path}" for kind, _, path in (name.partition(":") for name in bare)]
    count_short, count_bare = Counter(short), Counter(bare)
    return [
        s if count_short[s] == 1 else b if count_bare[b] == 1 else text
        for s, b, text in zip(short, bare, texts, strict=True)
    ]


def _check(parts: Sequence[ImageDataset], weights: Sequence[float] | None) -> None:
    if not parts:
        raise KcdpError("a mixture of no datasets", "at least one dataset")
    twice = [name for name, count in Counter(part.name for part in parts).items() if count > 1]
    if twice:
        raise KcdpError(
            f"dataset {twice[0]!r} is named twice", "each dataset once",
            "leave one out; to draw from it more often, give every dataset a weight=",
        )  # fmt: skip
    if weights is not None and (len(weights) != len(parts) or not all(0 < w < float("inf") for w in weights)):
        raise KcdpError(f"the weights of {len(parts)} datasets are {list(weights)}", "a number above 0 for each")
