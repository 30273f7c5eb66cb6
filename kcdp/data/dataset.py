"""What every dataset is: an ordered list of samples whose pictures are read on demand."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from kcdp.labels import LABELS

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One picture of a dataset, without its pixels.

    Attributes:
        key: unique and stable name inside the dataset (a relative path, a code point and style, ...).
        label: index in ``LABELS``, or None where the picture has no label.
        split: "train", "val" or "test" where the dataset says so itself, else None.
        group: a sub-population to report by (an artwork style, say); empty when there is none.
        text: words that come with the picture, such as what is written on a sticker; empty when there are none.
    """

    key: str
    label: int | None
    split: str | None = None
    group: str = ""
    text: str = ""


class ImageDataset(ABC):
    """An ordered, indexable set of pictures. Readers subclass this and implement ``image``.

    Attributes:
        name: the dataset string it was opened with.
        samples: what it holds, in a fixed order.
    """

    def __init__(self, name: str, samples: Sequence[Sample]) -> None:
        self.name = name
        self.samples: tuple[Sample, ...] = tuple(samples)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """The picture as stored: any Pillow mode, EXIF and transparency untouched.

        Raises:
            KcdpError: the picture is missing or cannot be decoded; the message names it.
        """

    def name_of(self, index: int) -> str:
        """The dataset string under which the picture at a position is found: of a mixture, that of its part."""
        return self.name

    def path_of(self, index: int) -> Path | None:
        """The file that holds the picture at a position, where it has one of its own; it may be missing."""
        return None

    def subset(self, indices: Sequence[int]) -> ImageDataset:
        """The same pictures, fewer of them, in the order given."""
        return Subset(self, indices)

    def spread(self, count: int) -> ImageDataset:
        """At most ``count`` of the pictures, evenly over them, the first and the last included."""
        places = np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(int)
        return self.subset([int(place) for place in np.unique(places)])

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def labels(self) -> np.ndarray:
        """int64 [N], index in LABELS, -1 where a picture has no label."""
        return np.array([-1 if s.label is None else s.label for s in self.samples], dtype=np.int64)

    def class_counts(self) -> dict[str, int]:
        """Label name -> number of pictures, every label listed, "unlabelled" last when there are any."""
        labels = self.labels
        counts = {name: int((labels == i).sum()) for i, name in enumerate(LABELS)}
        if (labels < 0).any():
            counts["unlabelled"] = int((labels < 0).sum())
        return counts


class Subset(ImageDataset):
    """Chosen samples of another dataset."""

    def __init__(self, parent: ImageDataset, indices: Sequence[int]) -> None:
        super().__init__(parent.name, [parent.samples[i] for i in indices])
        self._parent, self._indices = parent, tuple(indices)

    def image(self, index: int) -> Image.Image:
        return self._parent.image(self._indices[index])

    def name_of(self, index: int) -> str:
        return self._parent.name_of(self._indices[index])

    def path_of(self, index: int) -> Path | None:
        return self._parent.path_of(self._indices[index])
