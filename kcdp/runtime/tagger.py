"""From pictures to tags: decode, preprocess, run, calibrate."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from PIL import Image

from kcdp.bundle import Manifest
from kcdp.decoding import Source, source_name
from kcdp.errors import KcdpError
from kcdp.runtime.backends.options import DEFAULTS, SessionOptions, check_options
from kcdp.runtime.backends.registry import open_session
from kcdp.runtime.items import Item, Prepared
from kcdp.runtime.media.frames import read_frames
from kcdp.runtime.pipeline import MOST_READERS, ClockedSpec, Stats, Threads, best_batch, flow
from kcdp.runtime.processor import processors
from kcdp.runtime.rows import UNSURE
from kcdp.runtime.session import NonFiniteLogits, Session

#: Frames at once, until a measurement says better; and how many tags make a stream long enough for one.
FIRST_BATCH, LONG_STREAM = 16, 64


@dataclass(frozen=True)
class Tag:
    """What was found in one picture, or why nothing was.

    Attributes:
        path: the picture's path as it was given; ``<bytes 3>`` and the like for the fourth item if it has none.
        label: the strongest of the six emotions, or "unsure"; None where ``error`` is set.
        confidence: the calibrated probability of the strongest, 0..1; None where ``error`` is set.
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

    >>> from kcdp.runtime import Tagger, find_items
    >>> with Tagger.load("stickers.kcdp") as tagger:
    ...     for tag in tagger.tag(["wave.png", "grump.webp", "gone.png"]):
    ...         print(tag.path, tag.label, tag.error)
    ...     counts = {}
    ...     for tag in tagger.stream(find_items("inbox/", recursive=True)):  # any number: memory is bounded
    ...         counts[tag.label] = counts.get(tag.label, 0) + 1
    wave.png happy None
    grump.webp anger None
    gone.png None gone.png does not exist; expected a picture file
    >>> counts
    {'happy': 2}

    Args:
        session: an opened session; the tagger closes it.
        batch_size: how many pictures (frames, of animations) go through the graph at once; None: found by a short
            measurement once a stream turns out to be long.
        min_confidence: 0..1; a picture whose strongest emotion has less is "unsure".
        threads: of the text graph, where the bundle takes captions; None: all cores.
        readers: threads that read pictures; None: one for each processor.

    Attributes:
        stats: where the time went, since the tagger was made.

    Raises:
        KcdpError: an argument or the bundle's calibration makes no sense.
    """

    def __init__(
        self, session: Session, *, batch_size: int | None = 16, min_confidence: float = 0.0, threads: int | None = None,
        readers: int | None = None,
    ) -> None:  # fmt: skip
        _check_numbers(batch_size, min_confidence, readers)
        self.session, self.min_confidence = session, float(min_confidence)
        self.stats = Stats()
        self._measure, self._measuring = batch_size is None and session.batch is None, threading.Lock()
        self.batch_size = self.stats.batch_size = batch_size or session.batch or FIRST_BATCH
        manifest = session.bundle.manifest
        self._temperature = float(manifest.calibration["temperature"])
        self._spec = ClockedSpec.from_dict(manifest.preprocess.to_dict())
        self._reader: Threads[Prepared] = Threads(readers or min(processors(), MOST_READERS))
        self._finisher: Threads[Sequence[Tag]] | None = (
            Threads(session.streams, "kcdp-run") if session.streams > 1 else None
        )
        self._encoder = None
        if session.takes_knowledge:
            from kcdp.runtime.text import KnowledgeEncoder

            self._encoder = KnowledgeEncoder.open(session.bundle, threads=threads)

    @classmethod
    def load(
        cls, path_or_name: str | os.PathLike[str], *, backend: str = "auto", threads: int | None = None,
        options: SessionOptions = DEFAULTS, batch_size: int | None = 16, min_confidence: float = 0.0,
        readers: int | None = None, many: bool = False,
    ) -> Tagger:  # fmt: skip
        """Open and check a bundle.

        Args:
            path_or_name: the bundle's folder, ``NAME.kcdp``, or its name; see ``kcdp.runtime.names``.
            backend: what runs it, a name of ``kcdp.runtime.backends.registry``; "auto": the best that is here.
            threads: how many threads the graph may use; None means all cores. Short for ``options.threads``.
            options: what else the backend is told: device, CUDA graph, cache, ...; see ``SessionOptions``.
            many: for long streams: on a processor, several batches go through a small graph side by side, which
                takes more memory and is faster; one picture alone takes longer.
            batch_size, min_confidence, readers: see the class.

        Raises:
            KcdpError: not a bundle, changed, made for a newer version, or the session library is missing; or a number
                that makes no sense, before anything is opened.
        """
        _check_numbers(batch_size, min_confidence, readers)
        options = check_options(options).with_threads(threads)
        session = open_session(path_or_name, backend, options=options, many=many)
        try:
            return cls(
                session, batch_size=batch_size, min_confidence=min_confidence, threads=options.threads, readers=readers
            )  # fmt: skip
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

    def stream(self, items: Source | Item | Iterable[Source | Item]) -> Iterator[Tag]:
        """Like ``tag``, but takes items as it needs them and keeps about two batches of small arrays, one more for each
        further run side by side.

        Threads read ahead while the graph runs: these batches are taken from ``items`` before the first tag is given
        (of live sources, use ``tag`` on each picture). Where ``items`` raises, the tags of what came before it come
        first.

        Raises:
            KcdpError: ``items`` is neither; or the tagger is closed, or is closed meanwhile.
        """
        self._reader.check()
        if hasattr(items, "read"):  # its lines are no pictures
            raise KcdpError(f"items: received {type(items).__name__}", "a picture or an iterable of pictures",
                            "pass what it reads: file.read()")  # fmt: skip
        one = isinstance(items, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Item))
        if one or (isinstance(items, np.ndarray) and items.ndim in (2, 3)):
            return self._alone(items)
        if not isinstance(items, Iterable):
            raise KcdpError(f"items: received {type(items).__name__}", "a picture or an iterable of pictures")
        return self._stream(items)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of preprocessed pictures.

        Args:
            images: uint8 [N, size, size, 3], RGB, 0..255, as ``manifest.preprocess.apply_batch`` makes them.

        Returns:
            float32 [N, 6]: softmax(logits / temperature), columns in the order of ``manifest.labels``; the
            temperature is found as in Guo et al., "On Calibration of Modern Neural Networks", 2017.

        Raises:
            KcdpError: wrong dtype or shape, a closed tagger, a bundle that takes captions (use ``tag``).
            NonFiniteLogits: of these pictures; its ``logits`` are those of the batch that held them.
        """
        self.session.check(images)
        starts = range(0, max(1, len(images)), self.batch_size)
        logits = []
        for start in starts:
            try:
                logits.append(self.session.run(images[start : start + self.batch_size]))
            except NonFiniteLogits as error:
                raise NonFiniteLogits([start + row for row in error.rows], error.logits) from None
        return softmax(np.concatenate(logits), self._temperature)

    def describe(self) -> dict[str, Any]:
        """The session's description, with the bundle's path and the batch size."""
        return {"bundle": str(self.session.bundle.path), "batch_size": self.batch_size, **self.session.describe()}

    def close(self) -> None:
        """Free the graph. Closing twice is fine."""
        self._reader.close()
        if self._finisher is not None:
            self._finisher.close()
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
        start = perf_counter()
        try:
            return self._read(item)
        except KcdpError as error:
            return Prepared.failed(item.name, error, caption=item.caption)
        finally:
            spent = ClockedSpec.take()
            self.stats.add(decode=perf_counter() - start - spent, preprocess=spent)

    def finish(self, prepared: Sequence[Prepared]) -> list[Tag]:
        """Tags of stickers that were read, in their order, by as few runs of the graph as the batch size allows.

        Of an animation, the probabilities of its frames are averaged, each as long as it is shown.

        Raises:
            KcdpError: a closed tagger, or a failure inside the session library.
        """
        good = [one for one in prepared if one.error is None]
        probabilities, finite = self._probabilities(good)
        tags, row = [], 0
        for one in prepared:
            rows = slice(row, row + len(one.pixels))
            row = rows.stop
            if one.error is not None:
                tags.append(Tag(one.name, None, None, error=str(one.error)))
            elif not finite[rows].all():
                tags.append(Tag(one.name, None, None, error=f"{one.name}: the graph gave logits that are not finite"))
            else:
                tags.append(self._named(one, probabilities[rows]))
        self.stats.add(
            pictures=len(tags), frames=row, failed=sum(tag.error is not None for tag in tags),
        )  # fmt: skip
        return tags

    def _read(self, item: Item) -> Prepared:
        if item.error is not None:
            raise item.error
        try:
            source = item.source() if callable(item.source) else item.source
        except KcdpError:
            raise
        except Exception as error:
            raise KcdpError(f"{item.name} cannot be read ({str(error) or type(error).__name__})") from error
        if self._encoder is not None:  # a caption that fails costs its own row; what it gives is remembered
            self._encoder.tokens([item.caption or ""])
        pixels, weights, frames = read_frames(source, self._spec, name=item.name)
        return Prepared(item.name, pixels, weights, frames, caption=item.caption)

    def _alone(self, item: Any) -> Iterator[Tag]:
        """One picture, without any thread."""
        self.stats.begin()
        try:
            tags = self.finish([self.prepare(item, name=None if isinstance(item, Item) else source_name(item, 0))])
        finally:
            self.stats.end()
        yield from tags

    def _stream(self, items: Iterable[Any]) -> Iterator[Tag]:
        def read(number: int, item: Any) -> Prepared:
            return self.prepare(item, name=None if isinstance(item, Item) else source_name(item, number))

        tags = flow(items, self._reader, read, self.finish, self._frames_at_once, self._finisher)
        try:
            while True:
                self.stats.begin()
                try:
                    tag = next(tags)
                except StopIteration:
                    return
                finally:
                    self.stats.end()
                yield tag
        finally:
            tags.close()  # type: ignore[attr-defined]  # a generator

    def _frames_at_once(self, settle: Callable[[], object]) -> int:
        """The batch size; measured once, when so many pictures have come that it is worth it and nothing is read."""
        if self._measure and self.stats.pictures >= LONG_STREAM:
            with self._measuring:
                if self._measure:
                    settle()
                    self._measure = False
                    self.batch_size = self.stats.batch_size = best_batch(self._seconds_of)
        return self.batch_size

    def _seconds_of(self, count: int) -> float:
        """What a run on so many empty pictures takes; infinite where it fails."""
        size, tokens = self.manifest.preprocess.size, self._tokens([""])
        images = np.zeros((count, size, size, 3), np.uint8)
        knowledge = None if tokens is None else np.repeat(tokens, count, axis=0)
        spent = []
        for _ in range(3):  # the first one sets things up for this size
            start = perf_counter()
            try:
                self.session.run(images, knowledge)
            except NonFiniteLogits:
                pass  # an empty picture is none of the user's
            except KcdpError:
                return float("inf")
            spent.append(perf_counter() - start)
        return min(spent[1:])

    def _tokens(self, captions: Sequence[str]) -> np.ndarray | None:
        """Knowledge for pictures with these captions; None where the graph takes none."""
        return None if self._encoder is None else self._encoder.tokens(captions)

    def _probabilities(self, good: Sequence[Prepared]) -> tuple[np.ndarray, np.ndarray]:
        """float32 [frames of all, 6], and for each row whether its logits were finite."""
        if not good:
            return np.empty((0, len(self.manifest.labels)), np.float32), np.empty(0, bool)
        start_all = perf_counter()
        pixels = np.concatenate([one.pixels for one in good]) if len(good) > 1 else good[0].pixels
        owners = np.repeat(np.arange(len(good)), [len(one.pixels) for one in good])
        logits, finite, size = [], np.ones(len(pixels), bool), self.batch_size
        for start in range(0, len(pixels), size):
            rows = slice(start, start + size)
            own, places = np.unique(owners[rows], return_inverse=True)
            tokens = self._tokens([good[i].caption or "" for i in own])
            try:
                logits.append(self.session.run(pixels[rows], None if tokens is None else tokens[places]))
            except NonFiniteLogits as error:  # a fault of single pictures: the others keep their tags
                logits.append(np.nan_to_num(error.logits))
                finite[[start + row for row in error.rows]] = False
        self.stats.add(inference=perf_counter() - start_all)
        return softmax(np.concatenate(logits), self._temperature), finite

    def _named(self, one: Prepared, probabilities: np.ndarray) -> Tag:
        """One tag of the probabilities of all its frames, float32 [F, 6]."""
        weights = one.weights.astype(np.float64)
        mean = weights @ probabilities.astype(np.float64)
        spread = float(weights @ np.abs(probabilities - mean).sum(axis=1) / 2)
        scores = {label: float(np.float32(p)) for label, p in zip(self.manifest.labels, mean, strict=True)}
        label = self.manifest.labels[int(mean.argmax())]
        shown = label if scores[label] >= self.min_confidence else UNSURE
        return Tag(one.name, shown, scores[label], scores, frames=one.frames, spread=spread)


def _check_numbers(batch_size: Any, min_confidence: Any, readers: Any) -> None:
    for name, number in (("batch_size", batch_size), ("readers", readers)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise KcdpError(f"{name} is {number!r}", "a whole number from 1")
    is_number = isinstance(min_confidence, (int, float)) and not isinstance(min_confidence, bool)
    if not is_number or not 0 <= min_confidence <= 1:
        raise KcdpError(f"min_confidence is {min_confidence!r}", "a number from 0 to 1")


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / temperature) along the last axis, in float64, returned as float32.

    Finite for any finite logits and any temperature above 0: the largest is subtracted first.
    """
    wide = logits.astype(np.float64)
    with np.errstate(over="ignore"):  # a tiny temperature: -inf, whose exponential is the right 0
        exponents = np.exp((wide - wide.max(axis=-1, keepdims=True, initial=-np.inf)) / temperature)
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), dtype=np.float32)
