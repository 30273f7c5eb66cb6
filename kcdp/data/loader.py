"""From a dataset to batches of tensors, in an order and with an augmentation that depend on nothing but the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from kcdp.data.dataset import ImageDataset
from kcdp.data.transforms import Augmentation, make_augmentation
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec

CACHE_BYTES = 2 << 30


class Item(NamedTuple):
    """One picture, or a batch of them with N in front.

    Attributes:
        images: uint8 [size, size, 3]; [0] where latents stand in for it.
        labels: int64; -1: none.
        strong: uint8 [size, size, 3], the strongly augmented view, where one is made.
        knowledge: float32 [T, W], knowledge tokens, where there are any.
        index: int64, the picture's place in its dataset.
        wanted: int64, the place that was asked for: another one where that picture cannot be read.
        latents, strong_latents: float32 [C, h, w], what a frozen encoder made of the two views, where that is cached.
    """

    images: torch.Tensor
    labels: torch.Tensor
    strong: torch.Tensor | None = None
    knowledge: torch.Tensor | None = None
    index: torch.Tensor | None = None
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
        return [Item(*column) for column in zip(*columns, strict=True)]  # type: ignore[arg-type]


class KnowledgeOf(Protocol):
    """Knowledge tokens of the pictures of one dataset."""

    def tokens(self, index: int) -> np.ndarray:
        """float32 [T, W] of a picture."""


class TensorDataset(Dataset):
    """Preprocessed pictures as tensors, kept in memory once read where the whole set fits in 2 GiB.

    Args:
        dataset: where pictures come from.
        spec: the preprocessing.
        augmentation: see ``make_augmentation``.
        seed: with the epoch and the index it fixes each augmented picture.
        strong: augmentation of a second view; empty: no second view.
        knowledge: knowledge tokens of ``dataset``'s pictures.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        spec: PreprocessSpec,
        augmentation: str = "none",
        seed: int = 0,
        *,
        strong: str = "",
        knowledge: KnowledgeOf | None = None,
    ) -> None:
        self.dataset, self.spec, self.seed, self.knowledge = dataset, spec, seed, knowledge
        self.labels = dataset.labels
        self._augment = make_augmentation(augmentation, spec.size)
        self._strong = make_augmentation(strong, spec.size) if strong else None
        shape = (len(dataset), spec.size, spec.size, 3)
        self._cache = np.empty(shape, np.uint8) if np.prod(shape) <= CACHE_BYTES else None
        self._cached = np.zeros(len(dataset), bool)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        """``index`` or ``(epoch, index)``."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture = self._preprocessed(index)
        seeds = (self.seed, epoch, index)
        strong = None if self._strong is None else _augmented(picture, self._strong, *seeds, 1)
        knowledge = None if self.knowledge is None else torch.from_numpy(self.knowledge.tokens(index))
        if self._augment is not None:
            picture = _augmented(picture, self._augment, *seeds)
        return Item(
            torch.from_numpy(picture), torch.tensor(int(self.labels[index])),
            None if strong is None else torch.from_numpy(strong), knowledge,
        )  # fmt: skip

    def subset(self, indices: Sequence[int]) -> Subset:
        """Some of the pictures, in the order given; they share this one's memory."""
        return Subset(self, indices)

    def _preprocessed(self, index: int) -> np.ndarray:
        if self._cache is None:
            return self.spec.apply(self.dataset.image(index)).copy()
        if not self._cached[index]:
            self._cache[index] = self.spec.apply(self.dataset.image(index))
            self._cached[index] = True
        return self._cache[index].copy()


class Subset(TensorDataset):
    """A choice of pictures of a ``TensorDataset``."""

    def __init__(self, whole: TensorDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, list(indices)
        self.dataset, self.spec, self.labels = whole.dataset, whole.spec, whole.labels[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        if isinstance(key, tuple):
            return self.whole[key[0], self.indices[key[1]]]
        return self.whole[self.indices[key]]


def _augmented(picture: np.ndarray, augment: Augmentation, *seeds: int) -> np.ndarray:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also touch the GPUs' generators, and takes a hundred times longer.
        torch.default_generator.manual_seed(mix_seeds(*seeds))
        return np.array(augment(Image.fromarray(picture)))


class EpochSampler:
    """Endless batches of ``(epoch, index)``: every epoch a new permutation, the last short batch dropped.

    Args:
        length: pictures in the dataset.
        batch_size: pictures per batch; at most ``length`` are used.
        seed: fixes all permutations.
        start: the batch to begin with, counted from the beginning of training (for resuming).
        shuffle: False: the dataset's own order, every epoch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0, shuffle: bool = True) -> None:
        self.length, self.seed, self.start, self.shuffle = length, seed, start, shuffle
        self.batch_size = min(batch_size, length)
        self.batches_per_epoch = length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, batch = divmod(self.start, self.batches_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(mix_seeds(self.seed, epoch))
            order = torch.randperm(self.length, generator=generator).tolist() if self.shuffle else range(self.length)
            for i in range(batch, self.batches_per_epoch):
                yield [(epoch, index) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]
            epoch, batch = epoch + 1, 0


def mix_seeds(*parts: int) -> int:
    """One 63-bit seed from several numbers, the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def collate(items: list[Item]) -> Item:
    """Items of one dataset to one item with N in front."""
    strong = [item.strong for item in items if item.strong is not None]
    knowledge = [item.knowledge for item in items if item.knowledge is not None]
    return Item(
        torch.stack([item.images for item in items]), torch.stack([item.labels for item in items]),
        torch.stack(strong) if strong else None, torch.stack(knowledge) if knowledge else None,
    )  # fmt: skip


def training_batches(
    data: TensorDataset, batch_size: int, seed: int, start: int = 0, workers: int = 0, shuffle: bool = True
) -> Iterator[Item]:
    """Endless batches.

    Raises:
        KcdpError: a picture cannot be read, by this process or a worker.
    """
    sampler = EpochSampler(len(data), batch_size, seed, start, shuffle)
    loader = DataLoader(
        data, batch_sampler=sampler, num_workers=workers, persistent_workers=False, collate_fn=collate
    )  # fmt: skip
    try:
        yield from loader
        return
    except KcdpError as error:  # of a worker's error torch makes one whose text is the worker's whole traceback
        plain = KcdpError(error.received.rpartition("kcdp.errors.KcdpError: ")[2], error.expected, error.fix)
        error.with_traceback(None)  # its frames would keep the workers, and they end slowly when collected late
    raise plain


def evaluation_batches(data: TensorDataset, batch_size: int, workers: int = 0) -> DataLoader:
    """Every picture once, in order."""
    return DataLoader(data, batch_size=batch_size, num_workers=workers, collate_fn=collate)
