"""From pictures to tags: decode, preprocess, run, calibrate."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from kcdp.bundle import Bundle, Manifest
from kcdp.decoding import Source, decode, source_name
from kcdp.errors import KcdpError
from kcdp.runtime.session import NonFiniteLogits, OnnxRuntimeSession, Session

_Prepared: TypeAlias = "tuple[str, np.ndarray | KcdpError]"


@dataclass(frozen=True)
class Tag:
    """What was found in one picture, or why nothing was.

    Attributes:
        path: the picture's path as it was given; ``<bytes 3>`` and the like for the fourth item if it has none.
        label: the strongest of the six emotions; None where ``error`` is set.
        confidence: its calibrated probability, 0..1; None where ``error`` is set.
        scores: probability of each emotion, in the order of the labels, sum 1; empty where ``error`` is set.
        error: one line, or None when all went well.
    """

    path: str
    label: str | None
    confidence: float | None
    scores: dict[str, float] = field(default_factory=dict)
    error: str | None = None


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

    def _stream(self, items: Iterator[Any]) -> Iterator[Tag]:
        numbered = enumerate(items)
        # each picture shrinks to the model's size before the next is read
        while prepared := [self._prepare(index, item) for index, item in islice(numbered, self.batch_size)]:
            yield from self._tags(prepared)

    def _prepare(self, index: int, item: Any) -> _Prepared:
        name = source_name(item, index)
        try:
            return name, self.manifest.preprocess.apply(decode(item, name=name))
        except KcdpError as error:
            return name, error

    def _tags(self, prepared: list[_Prepared]) -> Iterator[Tag]:
        good = [array for _, array in prepared if isinstance(array, np.ndarray)]
        broken: dict[int, str] = {}
        try:
            size = self.manifest.preprocess.size
            logits = self.session.run(np.stack(good) if good else np.empty((0, size, size, 3), np.uint8))
        except NonFiniteLogits as error:  # a fault of single pictures: the others keep their tags
            logits = np.nan_to_num(error.logits)
            broken = dict.fromkeys(error.rows, "the graph gave logits that are not finite")
        probabilities = softmax(logits, self._temperature)
        row = 0
        for name, array in prepared:
            if isinstance(array, KcdpError):
                yield Tag(name, None, None, error=str(array))
                continue
            if row in broken:
                yield Tag(name, None, None, error=f"{name}: {broken[row]}")
            else:
                yield self._named(name, probabilities[row])
            row += 1

    def _named(self, name: str, probabilities: np.ndarray) -> Tag:
        scores = {label: float(p) for label, p in zip(self.manifest.labels, probabilities, strict=True)}
        label = self.manifest.labels[int(probabilities.argmax())]
        return Tag(name, label, scores[label], scores)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / temperature) along the last axis, in float64, returned as float32.

    Finite for any finite logits and any temperature above 0: the largest is subtracted first.
    """
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose exponential is the right 0
        exponents = np.exp((wide - wide.max(axis=-1, keepdims=True, initial=-np.inf)) / temperature)
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), dtype=np.float32)
