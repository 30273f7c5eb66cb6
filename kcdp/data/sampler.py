"""The order of training: batches of places in a dataset that depend on nothing but the seed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from kcdp.data.dataset import ImageDataset
from kcdp.data.mixture import Mixture
from kcdp.errors import KcdpError


class Share(NamedTuple):
    """This process among those that train together: its number, 0-based, and how many they are."""

    rank: int = 0
    world: int = 1


ALONE = Share()


class EpochSampler:
    """Endless batches of ``(pass, index)``: every epoch a new permutation, the last short batch dropped.

    The pass counts how often a picture may have come before; it and the index fix a picture's augmentation.

    Args:
        length: pictures in the dataset.
        batch_size: pictures per batch, over all processes; at most ``length`` are used.
        seed: fixes all permutations.
        start: the batch to begin with, counted from the beginning of training (for resuming).
        shuffle: False: the dataset's own order, every epoch.
        mixture: ranges and weights of parts that are drawn from by weight. An epoch is then still ``length`` draws;
            each part's pictures come in permutations of their own, which go on from epoch to epoch.
        share: of each batch, the rows of this process are given.

    Raises:
        KcdpError: weights without shuffling, or a batch that cannot be divided among the processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        seed: int,
        start: int = 0,
        shuffle: bool = True,
        *,
        mixture: tuple[Sequence[range], Sequence[float]] | None = None,
        share: Share = ALONE,
    ) -> None:
        if mixture is not None and not shuffle:
            raise KcdpError(
                "training.shuffle is false and the datasets have weights", "weighted datasets in a shuffled order",
                "leave out weight= or set training.shuffle=true",
            )  # fmt: skip
        self.length, self.seed, self.start, self.shuffle = length, seed, start, shuffle
        self.mixture, self.share = mixture, share
        self.batch_size = min(batch_size, length)
        if self.batch_size % share.world:
            raise KcdpError(
                f"a batch of {self.batch_size} pictures for {share.world} processes", f"a multiple of {share.world}",
                "change training.batch_size or training.target_batch_size",
            )  # fmt: skip
        self.batches_per_epoch = length // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, batch = divmod(self.start, self.batches_per_epoch)
        own = self.batch_size // self.share.world
        while True:
            order = self.order(epoch)
            for i in range(batch, self.batches_per_epoch):
                first = i * self.batch_size + self.share.rank * own
                yield order[first : first + own]
            epoch, batch = epoch + 1, 0

    def order(self, epoch: int) -> list[tuple[int, int]]:
        """All draws of an epoch."""
        if self.mixture is not None:
            return self._weighted(epoch, *self.mixture)
        indices = self._permutation(self.length, epoch) if self.shuffle else range(self.length)
        return [(epoch, index) for index in indices]

    def _weighted(self, epoch: int, ranges: Sequence[range], weights: Sequence[float]) -> list[tuple[int, int]]:
        bounds = np.cumsum(weights) / math.fsum(weights)
        bounds[-1] = 1.0

        def drawn(epochs: int) -> list[int]:
            """How often each part has been drawn from after so many epochs; never less than an epoch before."""
            whole = [math.floor(bound * epochs * self.length) for bound in bounds]
            return [high - low for low, high in zip([0, *whole], whole, strict=False)]

        draws: list[tuple[int, int]] = []
        for number, (places, first, last) in enumerate(zip(ranges, drawn(epoch), drawn(epoch + 1), strict=True)):
            for turn in range(first // len(places), -(-last // len(places))):
                order = self._permutation(len(places), turn, number)
                begin, end = (min(max(x - turn * len(places), 0), len(places)) for x in (first, last))
                draws += [(turn, places[index]) for index in order[begin:end]]
        return [draws[i] for i in self._permutation(len(draws), epoch)]

    def _permutation(self, length: int, *purpose: int) -> list[int]:
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, *purpose))
        return torch.randperm(length, generator=generator).tolist()


def mixture_of(dataset: ImageDataset) -> tuple[Sequence[range], Sequence[float]] | None:
    """Ranges and weights of a weighted mixture, for ``EpochSampler``; None for anything else."""
    if isinstance(dataset, Mixture) and dataset.weights is not None:
        return dataset.ranges, dataset.weights
    return None


def mix_seeds(*parts: int) -> int:
    """One 63-bit seed from several numbers, the same on every machine."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
