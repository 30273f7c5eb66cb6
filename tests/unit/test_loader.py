"""Order, augmentation and views depend on the seed, the epoch and the picture, and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import kcdp.data.loader
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import (
    Item,
    Subset,
    TensorDataset,
    collate,
    evaluation_batches,
    training_batches,
)
from kcdp.data.registry import open_dataset
from kcdp.data.sampler import EpochSampler, mix_seeds
from kcdp.data.transforms import RandomCutOut, RandomErase, RandomTint, make_augmentation
from kcdp.errors import KcdpError
from kcdp.models.moe import MoEOutput
from kcdp.preprocess import PreprocessSpec
from kcdp.training.predict import predict, predict_logits

CPU = torch.device("cpu")
SPEC = PreprocessSpec(32)
AUGMENTATIONS = ("light", "randaugment", "strong")


class Pictures(ImageDataset):
    """Solid pictures whose red value is their index; counts how often each was read."""

    def __init__(self, count: int, broken: Sequence[int] = ()) -> None:
        super().__init__("pictures", [Sample(str(i), i % 6) for i in range(count)])
        self.read: list[int] = []
        self.broken = tuple(broken)

    def image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise KcdpError(f"picture {index} is damaged", "a whole picture", "copy it again")
        self.read.append(index)
        return Image.new("RGB", (40, 40), (index, 0, 0))


@pytest.fixture(scope="module")
def faces() -> ImageDataset:
    return open_dataset("synthetic:photos?n=12&size=48")


class Numbers:
    """Knowledge tokens that say which picture they belong to."""

    def tokens(self, index: int) -> np.ndarray:
        return np.full((3, 2), index, np.float32)


def epochs(
    length: int, batch_size: int, seed: int = 0, start: int = 0, count: int = 20, shuffle: bool = True
) -> list[list[tuple[int, int]]]:
    return list(islice(EpochSampler(length, batch_size, seed, start, shuffle), count))


def indices(batch: Item) -> list[int]:
    """Which of ``Pictures`` are in a batch."""
    return batch.images[:, 0, 0, 0].tolist()


def same(first: Item, second: Item) -> bool:
    """Whether two items agree to the bit, in what they lack too."""
    return all(
        a is b if a is None or b is None else a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(first, second, strict=True)
    )


def random_states() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


# --- the order --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "batch_size", "per_epoch"), [(10, 5, 2), (10, 3, 3), (7, 7, 1), (5, 1, 5)])
def test_an_epoch_holds_no_picture_twice(length, batch_size, per_epoch):
    sampler = EpochSampler(length, batch_size, seed=0)
    assert sampler.batches_per_epoch == per_epoch
    batches = epochs(length, batch_size, count=4 * per_epoch)
    for epoch in range(4):
        mine = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert all(len(batch) == batch_size for batch in mine)
        keys = [key for batch in mine for key in batch]
        assert {e for e, _ in keys} == {epoch}
        seen = [index for _, index in keys]
        assert len(set(seen)) == len(seen) == per_epoch * batch_size and set(seen) <= set(range(length))


def test_every_picture_comes_once_an_epoch_where_batches_divide_the_set():
    for epoch in range(3):
        keys = [key for batch in epochs(12, 4, count=9)[3 * epoch : 3 * epoch + 3] for key in batch]
        assert sorted(index for _, index in keys) == list(range(12))


def test_pictures_left_over_in_one_epoch_come_in_others():
    seen = {index for batch in epochs(10, 4, count=40) for _, index in batch}
    assert seen == set(range(10))


def test_epochs_and_seeds_differ_in_order():
    batches = epochs(50, 50, count=3)
    orders = [[index for _, index in batch] for batch in batches]
    orders.append([index for _, index in epochs(50, 50, seed=1, count=1)[0]])
    orders.append(list(range(50)))
    assert len({tuple(order) for order in orders}) == 5


def test_the_order_is_the_same_every_time():
    assert epochs(23, 4, seed=5) == epochs(23, 4, seed=5)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 12, 17])
def test_resuming_goes_on_with_the_same_batches_across_epochs(start):
    whole = epochs(23, 4, seed=5, count=30)  # five batches an epoch
    assert epochs(23, 4, seed=5, start=start, count=30 - start) == whole[start:]
    assert epochs(23, 4, seed=5, start=start, count=5) != whole[start + 1 : start + 6]


def test_a_batch_larger_than_the_dataset_is_the_dataset():
    sampler = EpochSampler(5, 64, seed=0)
    assert sampler.batch_size == 5 and sampler.batches_per_epoch == 1
    assert [sorted(i for _, i in batch) for batch in islice(sampler, 3)] == [list(range(5))] * 3


def test_without_shuffling_every_epoch_is_in_the_datasets_own_order():
    """As released: the last short batch is dropped, and so are the same last pictures every time."""
    own = [[(epoch, index) for index in range(first, first + 4)] for epoch in range(3) for first in (0, 4)]
    assert epochs(10, 4, count=6, shuffle=False) == own
    assert epochs(10, 4, seed=9, count=6, shuffle=False) == own  # the seed makes no difference
    for start in (1, 2, 5):
        assert epochs(10, 4, start=start, count=6 - start, shuffle=False) == own[start:]
    assert epochs(10, 4, count=6) != own


def test_a_batch_that_is_not_shuffled_has_the_augmentation_of_its_epoch():
    data = TensorDataset(open_dataset("synthetic:photos?n=4&size=32"), SPEC, "light")
    batches = list(islice(training_batches(data, 4, seed=0, shuffle=False), 3))
    assert all(batch.labels.tolist() == [0, 1, 2, 3] for batch in batches)
    for epoch, batch in enumerate(batches):
        assert all(torch.equal(batch.images[i], data[epoch, i].images) for i in range(4))
    assert not torch.equal(batches[0].images, batches[1].images)


def test_seeds_are_mixed_the_same_on_every_machine():
    assert mix_seeds(0, 1) == 2918264622725855778  # of numpy's SeedSequence, whose stream numpy guarantees
    mixed = {mix_seeds(*parts) for parts in ((0,), (1,), (0, 1), (1, 1), (0, 0, 1), (0, 1, 1), (0, 5, 3), (0, 5, 3, 1))}
    assert len(mixed) == 8 and all(0 <= seed < 2**63 for seed in mixed)


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_without_augmentation_a_picture_is_what_preprocessing_gives(faces):
    data = TensorDataset(faces, SPEC)
    for index in (0, 5, 11):
        picture, label, strong, knowledge = data[index][:4]
        assert strong is None and knowledge is None
        assert picture.dtype == torch.uint8 and tuple(picture.shape) == (32, 32, 3)
        np.testing.assert_array_equal(picture.numpy(), SPEC.apply(faces.image(index)))
        assert label == faces.samples[index].label == index % 6 and label.dtype == torch.int64
    assert len(data) == 12


def test_unlabelled_pictures_have_the_label_minus_one():
    data = TensorDataset(open_dataset("synthetic:photos?n=2&size=32&labelled=no"), SPEC)
    assert data[1][1] == -1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_depends_on_seed_epoch_and_index_alone(faces, name):
    first, second = TensorDataset(faces, SPEC, name, seed=3), TensorDataset(faces, SPEC, name, seed=3)
    keys = [(epoch, index) for epoch in range(3) for index in range(4)]
    forwards = {key: first[key][0] for key in keys}
    torch.manual_seed(99)
    backwards = {key: second[key][0] for key in reversed(keys)}
    for key in keys:
        assert torch.equal(forwards[key], backwards[key])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_differs_between_epochs_pictures_and_seeds(faces, name):
    same = faces.subset([0] * 4)  # one picture four times
    data, other = TensorDataset(same, SPEC, name, seed=0), TensorDataset(same, SPEC, name, seed=1)
    shown = [data[epoch, index][0] for epoch in range(4) for index in range(4)] + [other[0, i][0] for i in range(4)]
    assert len({picture.numpy().tobytes() for picture in shown}) == len(shown)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_leaves_all_global_random_generators_alone(faces, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    data = TensorDataset(faces, SPEC, name)
    before = random_states()
    for index in range(12):
        data[0, index]
    assert random_states() == before
    torch.rand(1)
    assert random_states() != before


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmented_pictures_keep_their_form(faces, name):
    augment = make_augmentation(name, 32)
    picture = Image.fromarray(SPEC.apply(faces.image(0)))
    for seed in range(50):
        torch.manual_seed(seed)
        out = augment(picture)
        assert out.mode == "RGB" and out.size == (32, 32)


def test_no_augmentation_is_none():
    assert make_augmentation("none", 32) is None


def test_randaugment_changes_what_a_crop_does_not_and_never_cuts_out(faces):
    """As released: crop, mirror and RandAugment, which among others inverts the order of grey levels; no ellipses."""
    picture = Image.fromarray(SPEC.apply(faces.image(0)))
    names = [type(part).__name__ for part in make_augmentation("randaugment", 32).transforms]
    assert names == ["RandomResizedCrop", "RandomHorizontalFlip", "RandAugment"]
    randaugment = make_augmentation("randaugment", 32).transforms[2]
    assert (randaugment.num_ops, randaugment.magnitude) == (2, 9)
    different = 0
    for seed in range(20):
        shown = []
        for name in ("light", "randaugment"):
            torch.manual_seed(seed)
            shown.append(np.asarray(make_augmentation(name, 32)(picture)))
        different += not np.array_equal(*shown)  # the same crop, and more
    assert different >= 15


def test_strong_changes_colours_and_light_does_not():
    flat = Image.new("RGB", (32, 32), (120, 130, 140))
    torch.manual_seed(0)
    assert {c for _ in range(20) for _, c in make_augmentation("light", 32)(flat).getcolors()} == {(120, 130, 140)}
    torch.manual_seed(0)
    assert len({c for _ in range(20) for _, c in make_augmentation("strong", 32)(flat).getcolors(2000)}) > 5


def test_tint_scales_each_colour_and_never_brightens():
    white = Image.new("RGB", (2, 2), (250, 250, 250))
    torch.manual_seed(0)
    colours = [RandomTint(p=1.0, low=0.4)(white).getpixel((0, 0)) for _ in range(30)]
    assert all(max(c) in (249, 250) and min(c) >= 99 for c in colours) and len(set(colours)) > 20
    assert RandomTint(p=0.0)(white) is white


def test_erasing_covers_two_to_fifteen_percent_with_grey():
    black = Image.new("RGB", (100, 100))
    torch.manual_seed(0)
    for _ in range(50):
        erased = np.asarray(RandomErase(p=1.0)(black))
        rows, columns = np.nonzero(erased[:, :, 0])
        assert 150 <= len(rows) <= 1600
        assert len(rows) == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert (erased[rows, columns] == 127).all()
    assert not np.asarray(black).any()  # the picture handed in is left alone
    assert RandomErase(p=0.0)(black) is black


def test_cutting_out_leaves_an_ellipse_on_a_plain_ground():
    picture = Image.new("RGB", (40, 40), (10, 200, 30))
    torch.manual_seed(0)
    grounds = set()
    for _ in range(40):
        out = np.asarray(RandomCutOut(p=1.0)(picture))
        assert out.shape == (40, 40, 3)
        ground = tuple(out[0, 0].tolist())
        grounds.add(ground)
        kept = (out == (10, 200, 30)).all(axis=2)
        assert 0.2 < kept.mean() < np.pi / 4 + 0.02 and not kept[0, 0] and not kept[-1, -1]
        assert (out[-1, -1] == ground).all()
    assert (255, 255, 255) in grounds and len(grounds) > 5
    assert RandomCutOut(p=0.0)(picture) is picture


# --- two views --------------------------------------------------------------------------------------------------------


def test_a_strong_view_is_made_where_one_is_asked_for(faces):
    both = TensorDataset(faces, SPEC, "light", seed=3, strong="strong")
    weak, strong = TensorDataset(faces, SPEC, "light", seed=3), TensorDataset(faces, SPEC, "strong", seed=3)
    for key in [(0, 0), (0, 5), (2, 5)]:
        item = both[key]
        assert torch.equal(item.images, weak[key].images)  # the other view changes nothing about the first
        assert item.strong.dtype == torch.uint8 and tuple(item.strong.shape) == (32, 32, 3)
        assert not torch.equal(item.strong, item.images) and not torch.equal(item.strong, strong[key].images)
        assert weak[key].strong is None and strong[key].strong is None


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_strong_view_depends_on_seed_epoch_and_index_alone(faces, name):
    first, second = (TensorDataset(faces, SPEC, "light", seed=3, strong=name) for _ in range(2))
    keys = [(epoch, index) for epoch in range(3) for index in range(3)]
    forwards = {key: first[key].strong for key in keys}
    torch.manual_seed(99)
    assert all(torch.equal(forwards[key], second[key].strong) for key in reversed(keys))
    other = TensorDataset(faces.subset([0] * 3), SPEC, "light", seed=4, strong=name)
    one = TensorDataset(faces.subset([0] * 3), SPEC, "light", seed=3, strong=name)
    shown = [data[key].strong.numpy().tobytes() for data in (one, other) for key in keys]
    assert len(set(shown)) == len(shown)


def test_the_same_augmentation_for_both_views_gives_two_pictures(faces):
    data = TensorDataset(faces, SPEC, "strong", strong="strong")
    assert not any(torch.equal(data[0, i].images, data[0, i].strong) for i in range(6))


def test_the_first_view_may_be_plain_and_the_strong_one_is_not(faces):
    item = TensorDataset(faces, SPEC, "none", strong="light")[0, 3]
    np.testing.assert_array_equal(item.images.numpy(), SPEC.apply(faces.image(3)))
    assert not torch.equal(item.images, item.strong)


def test_a_strong_view_leaves_the_cache_and_the_random_generators_alone(faces):
    data = TensorDataset(faces, SPEC, "light", strong="strong")
    before, items = random_states(), [data[0, i] for i in range(4)]
    assert random_states() == before
    for item in items:
        item.images.zero_()
        item.strong.zero_()
    assert all(item.images.any() and item.strong.any() for item in (data[0, i] for i in range(4)))


# --- knowledge --------------------------------------------------------------------------------------------------------


def test_knowledge_goes_with_its_picture():
    data = TensorDataset(Pictures(10), SPEC, knowledge=Numbers())
    assert data[7].knowledge.dtype == torch.float32 and data[7].knowledge.tolist() == [[7.0, 7.0]] * 3
    assert torch.equal(data[3, 7].knowledge, data[7].knowledge)  # augmentation and epoch do not change it
    for batch in islice(training_batches(data, 4, seed=7), 6):
        assert tuple(batch.knowledge.shape) == (4, 3, 2)
        assert batch.knowledge[:, 0, 0].tolist() == indices(batch)
    whole = list(evaluation_batches(data, 4))
    assert [index for batch in whole for index in batch.knowledge[:, 2, 1].tolist()] == list(range(10))


def test_collating_stacks_what_is_there_and_leaves_out_what_is_not(faces):
    plain = collate([TensorDataset(faces, SPEC)[i] for i in range(3)])
    assert plain.strong is None and plain.knowledge is None
    assert tuple(plain.images.shape) == (3, 32, 32, 3) and plain.labels.tolist() == [0, 1, 2]
    data = TensorDataset(faces, SPEC, strong="strong", knowledge=Numbers())
    full = collate([data[i] for i in (2, 0)])
    assert tuple(full.strong.shape) == (2, 32, 32, 3) and torch.equal(full.strong[1], data[0].strong)
    assert full.knowledge[:, 0, 0].tolist() == [2.0, 0.0] and full.labels.tolist() == [2, 0]


def test_an_item_moves_to_a_device_with_all_it_has(faces):
    data = TensorDataset(faces, SPEC, strong="strong", knowledge=Numbers())
    for item in (data[0], TensorDataset(faces, SPEC)[0]):
        moved = item.to(torch.device("meta"))
        assert [part is None for part in moved] == [part is None for part in item]
        assert {part.device.type for part in moved if part is not None} == {"meta"}
        assert same(item.to(torch.device("cpu")), item)


# --- a choice of the pictures -----------------------------------------------------------------------------------------


def test_a_subset_gives_the_pictures_of_the_whole_in_the_order_asked_for(faces):
    whole = TensorDataset(faces, SPEC, "light", seed=3, strong="strong", knowledge=Numbers())
    some = whole.subset([7, 2, 2])
    assert isinstance(some, Subset) and isinstance(some, TensorDataset) and len(some) == 3
    assert some.labels.tolist() == [1, 2, 2] and some.spec is SPEC
    for place, index in enumerate([7, 2, 2]):
        assert same(some[place], whole[index]) and same(some[4, place], whole[4, index])
    again = some.subset([2, 0])
    assert again.labels.tolist() == [2, 1] and same(again[1], whole[7])


def test_a_subset_shares_the_memory_of_the_whole():
    pictures = Pictures(6)
    whole = TensorDataset(pictures, SPEC)
    whole[3]
    some = whole.subset([3, 5])
    assert indices(collate([some[0], some[1]])) == [3, 5]
    assert pictures.read == [3, 5]  # the third was there already
    whole[5]
    assert pictures.read == [3, 5]


def test_a_subset_is_batched_like_anything_else():
    some = TensorDataset(Pictures(10), SPEC, knowledge=Numbers()).subset([9, 4, 6])
    (batch,) = evaluation_batches(some, 8)
    assert indices(batch) == [9, 4, 6] and batch.knowledge[:, 0, 0].tolist() == [9, 4, 6]
    first = next(training_batches(some, 3, seed=1))
    assert sorted(indices(first)) == [4, 6, 9] and first.labels.tolist() == [i % 6 for i in indices(first)]


# --- the cache --------------------------------------------------------------------------------------------------------


def test_pictures_are_read_once_where_they_fit_into_memory():
    pictures = Pictures(6)
    data = TensorDataset(pictures, SPEC)
    for _ in range(3):
        for index in (0, 3):
            data[index]
    assert pictures.read == [0, 3]


def test_pictures_are_read_each_time_where_they_do_not_fit(monkeypatch):
    monkeypatch.setattr(kcdp.data.loader, "CACHE_BYTES", 6 * 32 * 32 * 3 - 1)
    pictures = Pictures(6)
    data = TensorDataset(pictures, SPEC)
    for _ in range(3):
        data[2]
    assert pictures.read == [2, 2, 2]


@pytest.mark.parametrize("name", ["none", "strong"])
def test_the_cache_changes_nothing(faces, name, monkeypatch):
    cached = TensorDataset(faces, SPEC, name)
    monkeypatch.setattr(kcdp.data.loader, "CACHE_BYTES", 0)
    uncached = TensorDataset(faces, SPEC, name)
    assert cached._cache is not None and uncached._cache is None
    for key in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        assert torch.equal(cached[key][0], uncached[key][0])


def test_a_picture_that_is_changed_by_its_receiver_is_not_changed_in_the_cache(faces):
    data = TensorDataset(faces, SPEC)
    before = data[0][0].clone()
    data[0][0].zero_()
    assert torch.equal(data[0][0], before) and before.any()


# --- batches ----------------------------------------------------------------------------------------------------------


def test_training_batches_follow_the_sampler():
    data = TensorDataset(Pictures(10), SPEC)
    for start in (0, 2, 5):
        batches = list(islice(training_batches(data, 4, seed=7, start=start), 6))
        want = [[index for _, index in batch] for batch in epochs(10, 4, seed=7, start=start, count=6)]
        assert [indices(batch) for batch in batches] == want
        for (images, labels, strong, knowledge, *_), batch in zip(batches, want, strict=True):
            assert strong is None and knowledge is None
            assert images.dtype == torch.uint8 and tuple(images.shape) == (4, 32, 32, 3)
            assert labels.dtype == torch.int64 and labels.tolist() == [index % 6 for index in batch]


@pytest.mark.parametrize("shuffle", [True, False])
def test_workers_give_the_same_batches_as_the_process_itself(faces, shuffle):
    def batches(workers: int) -> list[Item]:
        data = TensorDataset(faces, SPEC, "light", seed=2, strong="strong", knowledge=Numbers())
        return list(islice(training_batches(data, 5, 2, 1, workers, shuffle), 5))

    alone, helped = batches(0), batches(2)
    assert all(same(one, other) for one, other in zip(alone, helped, strict=True)) and len(alone) == 5
    assert all(part is not None for part in alone[0][:6])
    assert not torch.equal(alone[0].images, alone[1].images) and not torch.equal(alone[0].strong, alone[1].strong)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_picture_is_one_line_whoever_reads_it(workers):
    batches = training_batches(TensorDataset(Pictures(6, broken=[4]), SPEC), 6, seed=0, workers=workers)
    with pytest.raises(KcdpError) as caught:
        next(iter(batches))
    assert str(caught.value) == "picture 4 is damaged; expected a whole picture; copy it again"


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_gives_every_picture_once_in_order(workers):
    data = TensorDataset(Pictures(10), SPEC)
    batches = list(evaluation_batches(data, 4, workers))
    assert [indices(batch) for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [label for batch in batches for label in batch.labels.tolist()] == [i % 6 for i in range(10)]


class Answers(torch.nn.Module):
    """In a model's place: notes what it is given, and answers zeros."""

    def __init__(self, knowledge: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.knowledge = knowledge
        self.seen: list[torch.Tensor] = []
        self.given: list[torch.Tensor | None] = []

    def forward(self, images: torch.Tensor, given: torch.Tensor | None = None, latents: Any = None) -> Any:
        assert not self.training and not torch.is_grad_enabled()
        self.seen.append(images.clone())
        self.given.append(given)
        zeros = torch.zeros(len(images), 6)
        gates = torch.full((len(images), 4), 0.25)
        moe = MoEOutput(zeros, gates, torch.tensor([[1.0, 1, 0, 0]]).expand(len(images), -1))
        return SimpleNamespace(logits=zeros, v=images.flatten(1)[:, :3].float(), moe=moe)


def test_evaluation_by_the_library_never_augments(faces):
    """``predict_logits`` wraps a dataset itself; what reaches the model is preprocessing and nothing else."""
    spy: Any = Answers()
    for _ in range(2):
        logits = predict_logits(spy, faces, SPEC, device=CPU, batch_size=5)
        assert logits.shape == (12, 6) and logits.dtype == np.float32
    want = SPEC.apply_batch([faces.image(i) for i in range(12)])
    for half in (spy.seen[:3], spy.seen[3:]):
        np.testing.assert_array_equal(torch.cat(half).numpy(), want)
    assert spy.given == [None] * 6


def test_a_prediction_tells_which_experts_answered(faces):
    model: Any = Answers()
    found = predict(model, faces, SPEC, device=CPU, batch_size=5)
    assert [part.shape for part in (found.logits, found.gates, found.chosen)] == [(12, 6), (12, 4), (12, 4)]
    assert {part.dtype for part in (found.logits, found.gates, found.chosen)} == {np.dtype(np.float32)}
    assert found.chosen.tolist() == [[1, 1, 0, 0]] * 12 and (found.gates == 0.25).all()
    np.testing.assert_array_equal(found.v, torch.cat(model.seen).flatten(1)[:, :3])
    assert found.v.dtype == np.float32 and (found.probabilities == 1 / 6).all()


def test_knowledge_reaches_a_model_that_has_none_of_its_own(faces):
    """A model of the mode "implicit" predicts its knowledge, and is measured by that alone."""
    data = TensorDataset(faces, SPEC, knowledge=Numbers())
    explicit: Any = Answers()
    predict(explicit, data, SPEC, device=CPU, batch_size=5)
    assert torch.cat(explicit.given)[:, 0, 0].tolist() == list(range(12))
    implicit: Any = Answers(torch.nn.Identity())
    predict(implicit, data, SPEC, device=CPU, batch_size=5)
    assert implicit.given == [None] * 3


def test_prediction_keeps_the_model_in_its_mode(faces):
    for training in (True, False):
        model: Any = Answers().train(training)
        predict_logits(model, faces, SPEC, device=CPU)
        assert model.training is training and model.seen


def test_prediction_keeps_the_mode_of_a_model_that_fails():
    model: Any = Answers().train()
    with pytest.raises(KcdpError, match="picture 3 is damaged"):
        predict_logits(model, Pictures(6, broken=[3]), SPEC, device=CPU)
    assert model.training
