"""From pictures to tags: decode, preprocess, run, calibrate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from kcdp.bundle import Bundle, Manifest
from kcdp.decoding import Source, source_name
from kcdp.errors import KcdpError
from kcdp.runtime.items import Item, Prepared
from kcdp.runtime.media.frames import read_frames
from kcdp.runtime.session import NonFiniteLogits, OnnxRuntimeSession, Session


@dataclass(frozen=True)
class Tag:
    """What was found in one picture, or why nothing was.

    Attributes:
        path: the picture's path as it was given; ``<bytes 3>`` and the like for the fourth item if it has none.
        label: the strongest of the six emotions; None where ``error`` is set.
        confidence: its calibrated probability, 0..1; None where ``error`` is set.
        scores: probability of each emotion, in the order of the labels, sum 1; empty where ``error`` is set.
        error: one line, or None when all went well.
        frames: how many frames the picture has; 0 where ``error`` is set.
        spread: how far its frames disagree, 0..1: the part of the probability that an average frame has elsewhere
            than their mean (total variation); 0 of a still picture, None where ``error`` is set.
    """

    path: str
    label: str | None
    confidence: float | None
    scores: dict[str, float] = field(default_factory=dict)
    error: str | None = None
    frames: int = 0
    spread: float | None = None


class Tagger:
    """A bundle, ready to tag. Several threads may use one tagger at once.

    >>> with Tagger.load("stickers.kcdp") as tagger:            # doctest: +SKIP
    ...     for tag in tagger.tag(["wave.png", "grump.webp"]):
    ...         print(tag.path, tag.label, f"{tag.confidence:.2f}")
    wave.png happy 0.93
    grump.webp anger 0.71

    Args:
        session: an opened session; the tagger closes it.
        batch_size: how many pictures go through the graph at once.

    Raises:
        KcdpError: ``batch_size`` or the bundle's calibration makes no sense.
    """

    def __init__(self, session: Session, *, batch_size: int = 16) -> None:
        if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
            raise KcdpError(f"batch_size is {batch_size!r}", "a whole number from 1")
        if session.takes_knowledge:
            raise KcdpError(
                f"{session.bundle.path} takes knowledge with every picture", "a bundle that finds it itself",
                "export with --knowledge implicit or constant, or run kcdp.runtime.session.OnnxRuntimeSession with "
                "tokens of kcdp.runtime.text.KnowledgeEncoder",
            )  # fmt: skip
        self.session, self.batch_size = session, batch_size
        self._temperature = float(session.bundle.manifest.calibration["temperature"])

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, threads: int | None = None, batch_size: int = 16) -> Tagger:
        """Open and check a bundle.

        Args:
            path: the bundle's folder, ``NAME.kcdp``.
            threads: how many threads one batch may use; None means all cores.
            batch_size: how many pictures go through the graph at once.

        Raises:
            KcdpError: not a bundle, changed, made for a newer version, or onnxruntime is missing.
        """
        session = OnnxRuntimeSession(Bundle.open(os.fspath(path)), threads)
        try:
            return cls(session, batch_size=batch_size)
        except KcdpError:
            session.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self.session.bundle.manifest

    def tag(self, items: Source | Iterable[Source]) -> list[Tag]:
        """Tags in the order of the items; a picture that cannot be read gives a tag with an error.

        Args:
            items: paths, files' bytes, Pillow images or uint8 arrays [H, W, 3|4] or [H, W]; or just one of
                them. For a folder, pass ``find_pictures(folder)``.

        Raises:
            KcdpError: ``items`` is neither; or the tagger is closed. Broken pictures never raise.
        """
        return list(self.stream(items))

    def stream(self, items: Source | Iterable[Source]) -> Iterator[Tag]:
        """Like ``tag``, but takes items as it needs them and keeps no more than one batch of small arrays.

        Tags come in groups: a batch is read before its first tag is given.
        """
        one = isinstance(items, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))
        if one or (isinstance(items, np.ndarray) and items.ndim in (2, 3)):
            return self._stream(iter([items]))
        if not isinstance(items, Iterable):
            raise KcdpError(f"items: received {type(items).__name__}", "a picture or an iterable of pictures")
        return self._stream(iter(items))

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of preprocessed pictures.

        Args:
            images: uint8 [N, size, size, 3], RGB, 0..255, as ``manifest.preprocess.apply_batch`` makes them.

        Returns:
            float32 [N, 6]: softmax(logits / temperature), columns in the order of ``manifest.labels``; the
            temperature is found as in Guo et al., "On Calibration of Modern Neural Networks", 2017.

        Raises:
            KcdpError: wrong dtype or shape, a closed tagger, logits that are not finite.
        """
        self.session.check(images)
        starts = range(0, max(1, len(images)), self.batch_size)
        logits = [self.session.run(images[start : start + self.batch_size]) for start in starts]
        return softmax(np.concatenate(logits), self._temperature)

    def describe(self) -> dict[str, Any]:
        """The session's description, with the bundle's path and the batch size."""
        return {"bundle": str(self.session.bundle.path), "batch_size": self.batch_size, **self.session.describe()}

    def close(self) -> None:
        """Free the graph. Closing twice is fine."""
        self.session.close()

    def __enter__(self) -> Tagger:
        return self

    def __exit__(self, *details: Any) -> None:
        self.close()

    def prepare(self, item: Any, *, name: str | None = None, caption: str | None = None) -> Prepared:
        """Read one sticker, for ``finish``. Any number of threads may do so at once; nothing is raised.

        Args:
            item: an ``Item``, or a picture as ``tag`` takes it.
            name: what its row is called; by default its path.
            caption: what is said about it, for bundles that take captions.
        """
        if not isinstance(item, Item):
            item = Item(name or source_name(item), item, caption)
        if item.error is not None:
            return Prepared.failed(item.name, item.error, caption=item.caption)
        try:
            source = item.source() if callable(item.source) else item.source
            pixels, weights, frames = read_frames(source, self.manifest.preprocess, name=item.name)
        except KcdpError as error:
            return Prepared.failed(item.name, error, caption=item.caption)
        return Prepared(item.name, pixels, weights, frames, caption=item.caption)

    def finish(self, prepared: Sequence[Prepared]) -> list[Tag]:
        """Tags of stickers that were read, in their order, by as few runs of the graph as the batch size allows.

        Of an animation, the probabilities of its frames are averaged, each as long as it is shown.

        Raises:
            KcdpError: a closed tagger, or a failure inside the session library.
        """
        good = [one for one in prepared if one.error is None]
        counts = [len(one.pixels) for one in good]
        probabilities, finite = self._probabilities(good, counts)
        ends = np.cumsum(counts)
        found = {
            id(one): (probabilities[end - count : end], bool(finite[end - count : end].all()))
            for one, count, end in zip(good, counts, ends, strict=True)
        }
        tags = []
        for one in prepared:
            if one.error is not None:
                tags.append(Tag(one.name, None, None, error=str(one.error)))
            elif not found[id(one)][1]:
                tags.append(Tag(one.name, None, None, error=f"{one.name}: the graph gave logits that are not finite"))
            else:
                tags.append(self._named(one, found[id(one)][0]))
        return tags

    def _stream(self, items: Iterator[Any]) -> Iterator[Tag]:
        numbered = enumerate(items)
        # each picture shrinks to the model's size before the next is read
        while prepared := [
            self.prepare(item, name=None if isinstance(item, Item) else source_name(item, index))
            for index, item in islice(numbered, self.batch_size)
        ]:
            yield from self.finish(prepared)

    def _probabilities(self, good: Sequence[Prepared], counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """float32 [sum of counts, 6], and for each row whether its logits were finite."""
        if not good:
            return np.empty((0, len(self.manifest.labels)), np.float32), np.empty(0, bool)
        pixels = np.concatenate([one.pixels for one in good])
        logits, finite = [], np.ones(len(pixels), bool)
        for start in range(0, len(pixels), self.batch_size):
            try:
                logits.append(self.session.run(pixels[start : start + self.batch_size]))
            except NonFiniteLogits as error:  # a fault of single pictures: the others keep their tags
                logits.append(np.nan_to_num(error.logits))
                finite[[start + row for row in error.rows]] = False
        return softmax(np.concatenate(logits), self._temperature), finite

    def _named(self, one: Prepared, probabilities: np.ndarray) -> Tag:
        """One tag of the probabilities of all its frames, float32 [F, 6]."""
        weights = one.weights.astype(np.float64)
        mean = weights @ probabilities.astype(np.float64)
        spread = float(weights @ np.abs(probabilities - mean).sum(axis=1) / 2)
        scores = {label: float(np.float32(p)) for label, p in zip(self.manifest.labels, mean, strict=True)}
        label = self.manifest.labels[int(mean.argmax())]
        return Tag(one.name, label, scores[label], scores, frames=one.frames, spread=spread)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / temperature) along the last axis, in float64, returned as float32.

    Finite for any finite logits and any temperature above 0: the largest is subtracted first.
    """
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose exponential is the right 0
        exponents = np.exp((wide - wide.max(axis=-1, keepdims=True, initial=-np.inf)) / temperature)
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), dtype=np.float32)
