"""What is kept of a picture to find it again: a hash of its pixels, and a small grey copy for likeness.

"Picture unavailable" cards are the same drawing under many names: what a photo site served where a picture had been
deleted. Sizes and compressions differ, so that hashes of pixels do not meet; small grey copies do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from kcdp.preprocess import picture_hash, to_rgb

#: Side of the small copy in pixels.
SIDE = 16

#: A card is a picture under at least so many keys, of at least so many labels where labels are known. FER-2013 holds
#: none: the most copies of one photograph found there are five, under two labels.
MIN_CARD, MIN_CARD_LABELS = 10, 3
#: Most bits of the outline in which two copies differ, of 64.
_MOST_BITS = 4
#: A difference in grey levels below this is no edge: what compression does to a plain area.
_EDGE = 4
#: Mean and largest difference of two copies' small copies are at most a + b * contrast, in grey levels; contrast is the
#: standard deviation of the pixels. Its share keeps faint drawings on one background apart.
_MEAN, _LARGEST = (0.5, 0.05), (5.0, 0.08)


@dataclass(frozen=True)
class Fingerprint:
    """One picture.

    Attributes:
        content: ``picture_hash``: equal for two pictures whose upright RGB pixels are all equal.
        outline: uint8 [8]; bit c of byte r is set where the grey picture, 9 wide and 8 high, is darker by more than
            4 levels at column c + 1 than at column c (a difference hash).
        small: uint8 [16, 16], grey, 0..255, the whole picture squashed.
    """

    content: str
    outline: np.ndarray
    small: np.ndarray


def fingerprint(image: Image.Image) -> Fingerprint:
    """Of any Pillow image, upright, transparency over white.

    Raises:
        KcdpError: as ``to_rgb``.
    """
    rgb = to_rgb(image)
    grey = rgb.convert("L")
    columns = np.asarray(grey.resize((9, 8), Image.Resampling.HAMMING), dtype=np.int16)
    darker = columns[:, :-1] - columns[:, 1:] > _EDGE
    small = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.HAMMING))
    return Fingerprint(picture_hash(rgb), np.packbits(darker, axis=1, bitorder="little")[:, 0], small)


def find_alike(outlines: np.ndarray, small: np.ndarray) -> list[list[int]]:
    """Groups of pictures that look the same: copies in another size or compression, cards.

    Every outline is compared with every other: 0.6 s for 28,000 pictures, growing with the square.

    Args:
        outlines: uint8 [N, 8].
        small: uint8 [N, 16, 16].

    Returns:
        positions in order, groups of at least two, the largest first; each looks like the group's first one. No
        position is in two groups.
    """
    means = small.reshape(len(small), SIDE * SIDE).mean(axis=1)
    words = np.ascontiguousarray(outlines).view(np.uint64).reshape(len(outlines))
    free = np.ones(len(outlines), dtype=bool)
    groups = []
    for position in range(len(words)):
        if not free[position]:
            continue
        near = position + np.flatnonzero(_bits_set(words[position:] ^ words[position]) <= _MOST_BITS)
        if len(near) > 1:
            members = _like(position, near[free[near]], small, means)
            if len(members) > 1:
                free[members] = False
                groups.append(members.tolist())
    return sorted(groups, key=lambda group: (-len(group), group[0]))


def is_card(labels: np.ndarray) -> bool:
    """Whether pictures that look the same are a card rather than a photograph that was taken up several times.

    Args:
        labels: int64 [N], of the group, -1 for none.
    """
    known = labels[labels >= 0]
    return len(labels) >= MIN_CARD and (len(known) == 0 or len(np.unique(known)) >= MIN_CARD_LABELS)


def same_content(contents: Sequence[str]) -> list[list[int]]:
    """Positions that hold equal hashes, in groups of at least two, in order of their first; "" is no hash."""
    groups: dict[str, list[int]] = {}
    for position, content in enumerate(contents):
        if content:
            groups.setdefault(content, []).append(position)
    return [group for group in groups.values() if len(group) > 1]


def _bits_set(words: np.ndarray) -> np.ndarray:
    """uint8 [N]: how many of the 64 bits of each uint64 are set."""
    if hasattr(np, "bitwise_count"):  # from NumPy 2.0
        counted: np.ndarray = np.bitwise_count(words)
        return counted
    return np.unpackbits(words.view(np.uint8).reshape(len(words), 8), axis=1).sum(axis=1, dtype=np.uint8)


def _like(position: int, others: np.ndarray, small: np.ndarray, means: np.ndarray) -> np.ndarray:
    """int64 [M]: those of the positions ``others`` whose small copy shows what that of ``position`` shows."""
    centre = small[position].astype(np.float32)
    mean, largest = (a + b * float(centre.std()) for a, b in (_MEAN, _LARGEST))
    others = others[np.abs(means[others] - means[position]) <= mean]  # no mean of differences is below this one
    difference = np.abs(small[others].astype(np.float32) - centre).reshape(len(others), SIDE * SIDE)
    alike: np.ndarray = others[(difference.mean(axis=1) <= mean) & (difference.max(axis=1) <= largest)]
    return alike
