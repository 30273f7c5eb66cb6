"""Several datasets by weight, and the shares of several processes; the order of one dataset is in test_loader."""

from __future__ import annotations

from collections import Counter
from itertools import chain, islice

import pytest
from tiny_runs import fails

from kcdp.data.mixture import Mixture
from kcdp.data.registry import open_dataset, open_datasets
from kcdp.data.sampler import EpochSampler, Share, mixture_of

#: Three parts of 50, 30 and 20 pictures, drawn from 1 : 1 : 2.
RANGES, WEIGHTS = (range(50), range(50, 80), range(80, 100)), (1.0, 1.0, 2.0)
MIXTURE = (RANGES, WEIGHTS)


def part(index: int) -> int:
    return next(number for number, places in enumerate(RANGES) if index in places)


def drawn(epochs: int, length: int = 100) -> list[tuple[int, int]]:
    sampler = EpochSampler(length, 10, seed=3, mixture=MIXTURE)
    return [draw for epoch in range(epochs) for draw in sampler.order(epoch)]


def test_shares_of_draws_are_those_of_the_weights_in_every_epoch():
    for epoch in range(7):
        order = EpochSampler(100, 10, seed=3, mixture=MIXTURE).order(epoch)
        counts = Counter(part(index) for _, index in order)
        assert len(order) == 100 and all(abs(counts[n] - want) <= 1 for n, want in enumerate((25, 25, 50)))


def test_weights_that_do_not_divide_an_epoch_come_right_over_many():
    sampler = EpochSampler(10, 5, seed=0, mixture=((range(7), range(7, 10)), (1.0, 2.0)))
    draws = [index for epoch in range(300) for _, index in sampler.order(epoch)]
    assert len(draws) == 3000 and abs(sum(index >= 7 for index in draws) - 2000) <= 1


def test_every_part_is_gone_through_before_one_of_its_pictures_comes_again():
    draws = drawn(8)
    for number, places in enumerate(RANGES):
        mine = [(turn, index) for turn, index in draws if part(index) == number]
        for turn in range(len(mine) // len(places)):
            assert sorted(index for t, index in mine if t == turn) == list(places)
    assert len(set(draws)) == len(draws)  # so that no two have one augmentation


def test_parts_are_mixed_and_every_epoch_is_another():
    order = [part(index) for _, index in drawn(1)]
    assert len(set(order[:20])) == 3 and order != sorted(order)
    assert drawn(2)[:100] != drawn(2)[100:]


def test_resuming_a_weighted_order_goes_on_with_the_same_batches():
    def batches(start: int, count: int) -> list[list[tuple[int, int]]]:
        return list(islice(EpochSampler(100, 8, 3, start, mixture=MIXTURE), count))

    whole = batches(0, 40)
    for start in (1, 11, 12, 25):
        assert batches(start, 40 - start) == whole[start:]


def test_weights_need_a_shuffled_order():
    assert fails(lambda: EpochSampler(100, 8, 3, shuffle=False, mixture=MIXTURE)) == (
        "training.shuffle is false and the datasets have weights; expected weighted datasets in a shuffled order; "
        "leave out weight= or set training.shuffle=true"
    )


@pytest.mark.parametrize("mixture", [None, MIXTURE])
def test_processes_divide_each_batch_among_them(mixture):
    whole = list(islice(EpochSampler(100, 12, 5, 2, mixture=mixture), 30))
    for world in (2, 3):
        parts = [list(islice(EpochSampler(100, 12, 5, 2, mixture=mixture, share=Share(rank, world)), 30))
                 for rank in range(world)]  # fmt: skip
        assert all(len(batch) == 12 // world for batches in parts for batch in batches)
        assert [list(chain(*together)) for together in zip(*parts, strict=True)] == whole


def test_a_batch_that_processes_cannot_divide():
    assert fails(lambda: EpochSampler(100, 9, 5, share=Share(0, 2))) == (
        "a batch of 9 pictures for 2 processes; expected a multiple of 2; change training.batch_size or "
        "training.target_batch_size"
    )


def test_weights_are_read_from_the_dataset_strings():
    mixed = open_datasets(["synthetic:photos?n=30&weight=3", "synthetic:photos?n=20&seed=4&weight=1"])
    assert isinstance(mixed, Mixture) and mixture_of(mixed) == ((range(30), range(30, 50)), (3.0, 1.0))
    plain = open_datasets(["synthetic:photos?n=30", "synthetic:photos?n=20&seed=4"])
    assert mixture_of(plain) is None and mixture_of(open_dataset("synthetic:photos?n=30&weight=3")) is None
