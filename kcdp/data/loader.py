"""From a dataset to batches of tensors, in an order and with an augmentation that depend on nothing but the seed."""

from __future__ import annotations

import copy
import math
import mmap
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from kcdp.data.dataset import ImageDataset
from kcdp.data.sampler import ALONE, EpochSampler, Share, mix_seeds, mixture_of
from kcdp.data.transforms import Augmentation, make_augmentation
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec

CACHE_BYTES = 2 << 30
#: How many unreadable pictures in a row are passed over.
PATIENCE = 100


class Item(NamedTuple):
    """One picture, or a batch of them with N in front.

    Attributes:
        images: uint8 [size, size, 3]; [0] where latents stand in for it.
        labels: int64; -1: none.
        strong: uint8 [size, size, 3], the strongly augmented view, where one is made.
        knowledge: float32 [T, W], knowledge tokens, where there are any.
        place: int64, which picture of its dataset it is.
        wanted: int64, which one was asked for: another one where that picture cannot be read.
        latents, strong_latents: float32 [C, h, w], what a frozen encoder made of the two views, where that is cached.
    """

    images: torch.Tensor
    labels: torch.Tensor
    strong: torch.Tensor | None = None
    knowledge: torch.Tensor | None = None
    place: torch.Tensor | None = None
    wanted: torch.Tensor | None = None
    latents: torch.Tensor | None = None
    strong_latents: torch.Tensor | None = None

    def to(self, device: torch.device) -> Item:
        """The same on a device."""
        return Item(*(None if part is None else part.to(device, non_blocking=True) for part in self))  # type: ignore[arg-type]

    def seen(self) -> Item:
        """The batch as the model is to see it: its strong view where there is one."""
        return self._replace(
            images=self.images if self.strong is None else self.strong,
            latents=self.latents if self.strong_latents is None else self.strong_latents,
        )

    def parts(self, count: int) -> list[Item]:
        """A batch as ``count`` smaller ones of one size; N must be a multiple of it."""
        columns = [[None] * count if part is None else part.chunk(count) for part in self]
        return [Item(*column) for column in zip(*columns, strict=True)]


class KnowledgeOf(Protocol):
    """Knowledge tokens of the pictures of one dataset."""

    def tokens(self, index: int) -> np.ndarray:
        """float32 [T, W] of a picture."""


class LatentsOf(Protocol):
    """What a frozen encoder made of the views of one dataset's pictures."""

    def views(self, turn: int, wanted: int) -> tuple[int, np.ndarray, np.ndarray | None]:
        """Of the pass ``turn``: ``Item.place`` and both views' latents, float32 [C, h, w]; None: no strong view."""


class TensorDataset(Dataset):
    """Preprocessed pictures as tensors, kept in memory once read where the whole set fits in 2 GiB.

    Worker processes that are forked share that memory.

    Args:
        dataset: where pictures come from.
        spec: the preprocessing.
        augmentation: see ``make_augmentation``.
        seed: with the pass and the index it fixes each augmented picture.
        strong: augmentation of a second view; empty: no second view.
        knowledge: knowledge tokens of ``dataset``'s pictures.
        views: how many augmentations of a picture there are, used in turn; 0: a new one every pass.
        tolerant: in the place of a picture that cannot be read, give the next one that can.

    Attributes:
        latents: stand in for pictures, which are then not opened; see ``with_latents``.
    """

    latents: LatentsOf | None = None

    def __init__(
        self,
        dataset: ImageDataset,
        spec: PreprocessSpec,
        augmentation: str = "none",
        seed: int = 0,
        *,
        strong: str = "",
        knowledge: KnowledgeOf | None = None,
        views: int = 0,
        tolerant: bool = False,
    ) -> None:
        self.dataset, self.spec, self.seed, self.knowledge = dataset, spec, seed, knowledge
        self.views, self.tolerant = views, tolerant
        self.augmentation, self.strong = augmentation, strong
        self.labels = dataset.labels
        self._augment = make_augmentation(augmentation, spec.size)
        self._strong = make_augmentation(strong, spec.size) if strong else None
        self._unreadable: set[int] = set()
        self._reserve()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """``index`` or ``(pass, index)``.

        Raises:
            KcdpError: the picture cannot be read; where ``tolerant``, none of a hundred in a row.
        """
        turn, wanted = key if isinstance(key, tuple) else (0, key)
        if self.latents is not None:
            place, *latents = self.latents.views(turn, wanted)
            return self._item(wanted, place, np.empty(0, np.uint8), None, *latents)
        index, picture = self._readable(wanted)
        seeds = (self.seed, turn % self.views if self.views else turn, wanted)
        strong = None if self._strong is None else _augmented(picture, self._strong, *seeds, 1)
        if self._augment is not None:
            picture = _augmented(picture, self._augment, *seeds)
        return self._item(wanted, index, picture, strong)

    @property
    def distinct_views(self) -> int:
        """How many views of a picture differ; 0: a new one every pass."""
        return 1 if self._augment is None and self._strong is None else self.views

    def with_latents(self, latents: LatentsOf | None) -> TensorDataset:
        """The same pictures as their latents, so that none is opened any more; None: as pictures again."""
        other = copy.copy(self)
        other.latents = latents
        return other

    def subset(self, indices: Sequence[int]) -> Subset:
        """Some of the pictures, in the order given; they share this one's memory."""
        return Subset(self, indices)

    def _item(
        self, wanted: int, place: int, picture: np.ndarray, strong: np.ndarray | None, *latents: np.ndarray | None
    ) -> Item:
        knowledge = None if self.knowledge is None else self.knowledge.tokens(place)
        second, tokens, *encoded = (
            None if array is None else torch.from_numpy(array) for array in (strong, knowledge, *latents)
        )
        return Item(
            torch.from_numpy(picture), torch.tensor(int(self.labels[place])), second, tokens,
            torch.tensor(place), torch.tensor(wanted), *encoded,
        )  # fmt: skip

    def _readable(self, wanted: int) -> tuple[int, np.ndarray]:
        """The picture that was asked for, or the next one that can be read, with its place."""
        for step in range(min(PATIENCE, len(self)) if self.tolerant else 1):
            index = (wanted + step) % len(self)
            if index in self._unreadable:
                continue
            try:
                return index, self._preprocessed(index)
            except KcdpError:
                if not self.tolerant:
                    raise
                self._unreadable.add(index)
        raise KcdpError(
            f"{self.dataset.name}: {min(PATIENCE, len(self))} pictures in a row cannot be read, the first is "
            f"{self.dataset.samples[wanted].key}",
            "pictures that can be read", "look at them with: kcdp data check",
        )  # fmt: skip

    def _preprocessed(self, index: int) -> np.ndarray:
        if self._cache is None:
            return self.spec.apply(self.dataset.image(index)).copy()
        if not self._cached[index]:
            self._cache[index] = self.spec.apply(self.dataset.image(index))
            self._cached[index] = True
        return self._cache[index].copy()

    def _reserve(self) -> None:
        """Memory for the pictures; it is taken only as they come."""
        shape = (len(self.dataset), self.spec.size, self.spec.size, 3)
        fits = np.prod(shape) <= CACHE_BYTES
        self._cache = _shared(shape, np.uint8) if fits else None
        self._cached = _shared(shape[:1], bool)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_cache", "_cached")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reserve()


class Subset(TensorDataset):
    """A choice of pictures of a ``TensorDataset``."""

    def __init__(self, whole: TensorDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, list(indices)
        self.dataset, self.spec, self.labels = whole.dataset, whole.spec, whole.labels[self.indices]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        if isinstance(key, tuple):
            return self.whole[key[0], self.indices[key[1]]]
        return self.whole[self.indices[key]]


def _shared(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Zeros that a forked child sees and changes too."""
    size = max(1, math.prod(shape) * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, size), dtype, math.prod(shape)).reshape(shape)


def _augmented(picture: np.ndarray, augment: Augmentation, *seeds: int) -> np.ndarray:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also touch the GPUs' generators, and takes a hundred times longer.
        torch.default_generator.manual_seed(mix_seeds(*seeds))
        return np.array(augment(Image.fromarray(picture)))


def collate(items: list[Item]) -> Item:
    """Items of one dataset to one item with N in front."""
    columns = ([part for part in column if part is not None] for column in zip(*items, strict=True))
    batch = Item(*(torch.stack(column) if column else None for column in columns))  # type: ignore[arg-type]
    # The encoder gives its latents channels last; in another order, a convolution's sums are rounded otherwise.
    weak, strong = (
        None if latents is None else latents.contiguous(memory_format=torch.channels_last)
        for latents in (batch.latents, batch.strong_latents)
    )  # fmt: skip
    return batch._replace(latents=weak, strong_latents=strong)


def training_batches(
    data: TensorDataset,
    batch_size: int,
    seed: int,
    start: int = 0,
    workers: int = 0,
    shuffle: bool = True,
    *,
    share: Share = ALONE,
    pin_memory: bool = False,
) -> Iterator[Item]:
    """Endless batches; see ``EpochSampler`` for the arguments.

    Args:
        pin_memory: in memory from which a GPU can copy while it computes.

    Raises:
        KcdpError: a picture cannot be read, by this process or a worker.
    """
    sampler = EpochSampler(
        len(data), batch_size, seed, start, shuffle, mixture=mixture_of(data.dataset), share=share
    )  # fmt: skip
    yield from _loaded(data, sampler, workers, pin_memory)


def view_batches(data: TensorDataset, turn: int, start: int, batch_size: int, workers: int = 0) -> Iterator[Item]:
    """Every picture from ``start`` on, once, in order, as the pass ``turn`` sees it.

    Raises:
        KcdpError: as ``training_batches``.
    """
    places = [(turn, index) for index in range(start, len(data))]
    return _loaded(data, [places[i : i + batch_size] for i in range(0, len(places), batch_size)], workers)


def _loaded(
    data: TensorDataset, batches: Iterable[list[tuple[int, int]]], workers: int, pin_memory: bool = False
) -> Iterator[Item]:
    """Batches of places as batches of pictures; see ``training_batches``."""
    loader = DataLoader(
        data, batch_sampler=batches, num_workers=workers, persistent_workers=False, collate_fn=collate,
        pin_memory=pin_memory, worker_init_fn=_outlast_signals if workers else None,
    )  # fmt: skip
    try:
        yield from loader
        return
    except KcdpError as error:  # of a worker's error torch makes one whose text is the worker's whole traceback
        plain = KcdpError(error.received.rpartition("kcdp.errors.KcdpError: ")[2], error.expected, error.fix)
        error.with_traceback(None)  # its frames would keep the workers, and they end slowly when collected late
    raise plain


def _outlast_signals(_worker: int) -> None:
    """A worker ends when its parent says so: a signal to the whole group must not take a step's pictures away."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def evaluation_batches(data: TensorDataset, batch_size: int, workers: int = 0) -> DataLoader:
    """Every picture once, in order."""
    return DataLoader(data, batch_size=batch_size, num_workers=workers, collate_fn=collate)
