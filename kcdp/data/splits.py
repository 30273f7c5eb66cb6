"""Train, val and test: a picture's own split, or else the one that its key decides."""

from __future__ import annotations

import hashlib

from kcdp.data.dataset import SPLITS, ImageDataset, Sample

#: Upper bounds of the hash of a key, as shares of its range, where the data has no splits of its own.
_SHARES = (("train", 0.80), ("val", 0.88), ("test", 1.0))


def split_of(sample: Sample) -> str:
    """The sample's own split, else the one its key hashes to."""
    if sample.split is not None:
        return sample.split
    position = int.from_bytes(digest("split", sample.key)[:8], "big") / 2**64
    return next(name for name, bound in _SHARES if position < bound)


def split_sizes(dataset: ImageDataset) -> dict[str, int]:
    """Number of pictures in train, val and test, by ``split_of``."""
    splits = [split_of(sample) for sample in dataset.samples]
    return {name: splits.count(name) for name in SPLITS}


def native_splits(dataset: ImageDataset) -> tuple[str, ...]:
    """The splits that the samples carry themselves, in the order of ``SPLITS``; empty: ``split_of`` hashes keys."""
    own = {sample.split for sample in dataset.samples}
    return tuple(name for name in SPLITS if name in own)


def digest(purpose: str, key: str) -> bytes:
    """SHA-256 of a key, for "split" or "limit": what is chosen by the one says nothing about the other."""
    text = key if purpose == "split" else f"{purpose}\0{key}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
