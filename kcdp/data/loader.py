"""From a dataset to batches of tensors, in an order and with an augmentation that depend on nothing but the seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from kcdp.data.dataset import ImageDataset
from kcdp.data.transforms import make_augmentation
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec

CACHE_BYTES = 2 << 30


class TensorDataset(Dataset):
    """Preprocessed pictures as tensors, kept in memory once read where the whole set fits in 2 GiB.

    Args:
        dataset: where pictures come from.
        spec: the preprocessing.
        augmentation: see ``make_augmentation``.
        seed: with the epoch and the index it fixes each augmented picture.
    """

    def __init__(self, dataset: ImageDataset, spec: PreprocessSpec, augmentation: str = "none", seed: int = 0) -> None:
        self.dataset, self.spec, self.seed = dataset, spec, seed
        self.labels = dataset.labels
        self._augment = make_augmentation(augmentation, spec.size)
        shape = (len(dataset), spec.size, spec.size, 3)
        self._cache = np.empty(shape, np.uint8) if np.prod(shape) <= CACHE_BYTES else None
        self._cached = np.zeros(len(dataset), bool)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[torch.Tensor, int]:
        """``index`` or ``(epoch, index)``: uint8 [size, size, 3] and the label (-1: none)."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        picture = self._preprocessed(index)
        if self._augment is not None:
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed: it would also touch the GPUs' generators, and takes a hundred times longer.
                torch.default_generator.manual_seed(_seed(self.seed, epoch, index))
                picture = np.array(self._augment(Image.fromarray(picture)))
        return torch.from_numpy(picture), int(self.labels[index])

    def _preprocessed(self, index: int) -> np.ndarray:
        if self._cache is None:
            return self.spec.apply(self.dataset.image(index)).copy()
        if not self._cached[index]:
            self._cache[index] = self.spec.apply(self.dataset.image(index))
            self._cached[index] = True
        return self._cache[index].copy()


class EpochSampler:
    """Endless batches of ``(epoch, index)``: every epoch a new permutation, the last short batch dropped.

    Args:
        length: pictures in the dataset.
        batch_size: pictures per batch; at most ``length`` are used.
        seed: fixes all permutations.
        start: the batch to begin with, counted from the beginning of training (for resuming).
    """

    def __init__(self, length: int, batch_size: int, seed: int, start: int = 0) -> None:
        self.length, self.seed, self.start = length, seed, start
        self.batch_size = min(batch_size, length)
        self.batches_per_epoch = length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, batch = divmod(self.start, self.batches_per_epoch)
        while True:
            generator = torch.Generator().manual_seed(_seed(self.seed, epoch))
            order = torch.randperm(self.length, generator=generator).tolist()
            for i in range(batch, self.batches_per_epoch):
                yield [(epoch, index) for index in order[i * self.batch_size : (i + 1) * self.batch_size]]
            epoch, batch = epoch + 1, 0


def _seed(*parts: int) -> int:
    """One 63-bit seed from several numbers, the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def training_batches(
    data: TensorDataset, batch_size: int, seed: int, start: int = 0, workers: int = 0
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless batches of (uint8 [N, size, size, 3], int64 [N]).

    Raises:
        KcdpError: a picture cannot be read, by this process or a worker.
    """
    sampler = EpochSampler(len(data), batch_size, seed, start)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers, persistent_workers=False)
    try:
        yield from loader
        return
    except KcdpError as error:  # of a worker's error torch makes one whose text is the worker's whole traceback
        plain = KcdpError(error.received.rpartition("kcdp.errors.KcdpError: ")[2], error.expected, error.fix)
        error.with_traceback(None)  # its frames would keep the workers, and they end slowly when collected late
    raise plain


def evaluation_batches(data: TensorDataset, batch_size: int, workers: int = 0) -> DataLoader:
    """Every picture once, in order."""
    return DataLoader(data, batch_size=batch_size, num_workers=workers)
