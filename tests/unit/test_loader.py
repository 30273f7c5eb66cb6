"""Order and augmentation depend on the seed, the epoch and the picture, and on nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

import kcdp.data.loader
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.loader import EpochSampler, TensorDataset, evaluation_batches, training_batches
from kcdp.data.registry import open_dataset
from kcdp.data.transforms import RandomCutOut, RandomErase, RandomTint, make_augmentation
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec

SPEC = PreprocessSpec(32)


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


def epochs(length: int, batch_size: int, seed: int = 0, start: int = 0, count: int = 20) -> list[list[tuple[int, int]]]:
    return list(islice(EpochSampler(length, batch_size, seed, start), count))


def indices(batch: tuple[torch.Tensor, torch.Tensor]) -> list[int]:
    """Which of ``Pictures`` are in a batch."""
    return batch[0][:, 0, 0, 0].tolist()


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


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_without_augmentation_a_picture_is_what_preprocessing_gives(faces):
    data = TensorDataset(faces, SPEC)
    for index in (0, 5, 11):
        picture, label = data[index]
        assert picture.dtype == torch.uint8 and tuple(picture.shape) == (32, 32, 3)
        np.testing.assert_array_equal(picture.numpy(), SPEC.apply(faces.image(index)))
        assert label == faces.samples[index].label == index % 6
    assert len(data) == 12


def test_unlabelled_pictures_have_the_label_minus_one():
    data = TensorDataset(open_dataset("synthetic:photos?n=2&size=32&labelled=no"), SPEC)
    assert data[1][1] == -1


@pytest.mark.parametrize("name", ["light", "strong"])
def test_augmentation_depends_on_seed_epoch_and_index_alone(faces, name):
    first, second = TensorDataset(faces, SPEC, name, seed=3), TensorDataset(faces, SPEC, name, seed=3)
    keys = [(epoch, index) for epoch in range(3) for index in range(4)]
    forwards = {key: first[key][0] for key in keys}
    torch.manual_seed(99)
    backwards = {key: second[key][0] for key in reversed(keys)}
    for key in keys:
        assert torch.equal(forwards[key], backwards[key])


@pytest.mark.parametrize("name", ["light", "strong"])
def test_augmentation_differs_between_epochs_pictures_and_seeds(faces, name):
    same = faces.subset([0] * 4)  # one picture four times
    data, other = TensorDataset(same, SPEC, name, seed=0), TensorDataset(same, SPEC, name, seed=1)
    shown = [data[epoch, index][0] for epoch in range(4) for index in range(4)] + [other[0, i][0] for i in range(4)]
    assert len({picture.numpy().tobytes() for picture in shown}) == len(shown)


@pytest.mark.parametrize("name", ["light", "strong"])
def test_augmentation_leaves_all_global_random_generators_alone(faces, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs were seeded"))
    data = TensorDataset(faces, SPEC, name)
    before = random_states()
    for index in range(12):
        data[0, index]
    assert random_states() == before
    torch.rand(1)
    assert random_states() != before


@pytest.mark.parametrize("name", ["light", "strong"])
def test_augmented_pictures_keep_their_form(faces, name):
    augment = make_augmentation(name, 32)
    picture = Image.fromarray(SPEC.apply(faces.image(0)))
    for seed in range(50):
        torch.manual_seed(seed)
        out = augment(picture)
        assert out.mode == "RGB" and out.size == (32, 32)


def test_no_augmentation_is_none():
    assert make_augmentation("none", 32) is None


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
        for (images, labels), batch in zip(batches, want, strict=True):
            assert images.dtype == torch.uint8 and tuple(images.shape) == (4, 32, 32, 3)
            assert labels.dtype == torch.int64 and labels.tolist() == [index % 6 for index in batch]


def test_workers_give_the_same_batches_as_the_process_itself(faces):
    alone = list(islice(training_batches(TensorDataset(faces, SPEC, "strong", seed=2), 5, seed=2, start=1), 5))
    helped = list(
        islice(training_batches(TensorDataset(faces, SPEC, "strong", seed=2), 5, seed=2, start=1, workers=2), 5)
    )
    for (images, labels), (other_images, other_labels) in zip(alone, helped, strict=True):
        assert torch.equal(images, other_images) and torch.equal(labels, other_labels)
    assert not torch.equal(alone[0][0], alone[1][0])


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
    assert [label for _, labels in batches for label in labels.tolist()] == [i % 6 for i in range(10)]


def test_evaluation_by_the_library_never_augments(faces):
    """``predict_logits`` wraps a dataset itself; what reaches the model is preprocessing and nothing else."""
    from kcdp.models.kadap import Kadap
    from kcdp.training.predict import predict_logits

    seen = []

    class Spy(torch.nn.Module):
        def forward(self, images):
            seen.append(images.clone())
            return type("Output", (), {"logits": torch.zeros(len(images), 6)})

    spy: Kadap = Spy()  # type: ignore[assignment]
    for _ in range(2):
        logits = predict_logits(spy, faces, SPEC, device=torch.device("cpu"), batch_size=5)
        assert logits.shape == (12, 6) and logits.dtype == np.float32
    want = SPEC.apply_batch([faces.image(i) for i in range(12)])
    for half in (seen[:3], seen[3:]):
        np.testing.assert_array_equal(torch.cat(half).numpy(), want)


def test_prediction_keeps_the_model_in_its_mode(faces):
    from kcdp.training.predict import predict_logits

    class Mode(torch.nn.Module):
        def forward(self, images):
            assert not self.training and not torch.is_grad_enabled()
            return type("Output", (), {"logits": torch.zeros(len(images), 6)})

    for training in (True, False):
        model = Mode().train(training)
        predict_logits(model, faces, SPEC, device=torch.device("cpu"))  # type: ignore[arg-type]
        assert model.training is training
