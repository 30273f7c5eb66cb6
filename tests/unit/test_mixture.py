"""Several datasets as one: order, keys, splits, groups, weights, and every message."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.mixture import Mixture, part_names
from kcdp.data.registry import native_splits, open_dataset, open_datasets, split_of
from kcdp.errors import KcdpError
from kcdp.knowledge.captions import captions_for
from kcdp.labels import LABELS
from kcdp.preprocess import picture_hash

PHOTOS, STICKERS = "synthetic:photos?n=5&size=32", "synthetic:stickers?n=4&size=32"


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def folder(root: Path, *names: str) -> str:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3), (number * 20, 0, 9)).save(root / name)
    return f"folder:{root}"


class Numbers(ImageDataset):
    """``n`` grey pictures; picture i is ``first`` + i."""

    def __init__(self, name: str, n: int, first: int = 0) -> None:
        self.first = first
        super().__init__(name, [Sample(f"{i}.png", i % 6) for i in range(n)])

    def image(self, index):
        return Image.new("L", (1, 1), self.first + range(len(self))[index])


def test_one_string_is_that_dataset_itself():
    data = open_datasets([PHOTOS])
    assert type(data) is type(open_dataset(PHOTOS)) and data.name == PHOTOS
    assert type(open_datasets([PHOTOS + "&weight=3"])) is type(data)


def test_pictures_of_all_parts_in_order():
    data = open_datasets([PHOTOS, STICKERS])
    parts = [open_dataset(PHOTOS), open_dataset(STICKERS)]
    assert isinstance(data, Mixture) and data.name == f"{PHOTOS} + {STICKERS}"
    assert data.ranges == (range(5), range(5, 9)) and [len(part) for part in data.parts] == [5, 4]
    assert data.weights is None
    assert [s.key for s in data.samples] == [f"{n}/{s.key}" for n, part in enumerate(parts) for s in part.samples]
    assert len({s.key for s in data.samples}) == 9
    assert data.labels.tolist() == [*parts[0].labels, *parts[1].labels]
    for n, part in enumerate(parts):
        for i in range(len(part)):
            index = data.ranges[n][i]
            np.testing.assert_array_equal(data.image(index), part.image(i))
            assert data.part_of(index) == n and data.name_of(index) == part.name


def test_positions_from_the_end_and_beyond_it():
    data = Mixture([Numbers("a:x", 3), Numbers("b:x", 2, 100)])
    assert [data.image(i).getpixel((0, 0)) for i in (0, 2, 3, 4, -1, -5)] == [0, 2, 100, 101, 101, 0]
    assert data.part_of(-1) == 1
    for call in (data.image, data.part_of, data.name_of):
        with pytest.raises(IndexError):
            call(5)


def test_every_picture_keeps_its_split_also_one_that_its_key_decided(tmp_path):
    text = folder(tmp_path, "train/happy/a.png", "val/sad/b.png", "test/fear/c.png")
    drawn = "synthetic:photos?n=40&size=32"
    data = open_datasets([drawn, text])
    wanted = [split_of(s) for part in data.parts for s in part.samples]
    assert [split_of(s) for s in data.samples] == wanted and len(set(wanted[:40])) == 3
    # The twin: by its new key alone a picture would change sides.
    moved = [split_of(Sample(s.key, s.label)) for s in data.samples]
    assert moved != wanted
    for split in ("train", "val", "test"):
        mixed = open_datasets([drawn, text], split=split)
        assert {s.key for s in mixed.samples if s.key.startswith("0/")} == {
            s.key for s in data.samples if s.key.startswith("0/") and s.split == split
        }
    assert native_splits(data) == ("train", "val", "test")


def test_the_string_of_a_part_wins_over_the_split(tmp_path):
    text = folder(tmp_path, "train/happy/a.png", "test/fear/c.png")
    data = open_datasets([f"{text}?split=test", PHOTOS], split="train")
    assert [s.key for s in data.parts[0].samples] == ["test/fear/c.png"]


def test_groups_are_the_parts_own_or_its_name(tmp_path):
    data = open_datasets([folder(tmp_path / "pets", "happy/a.png"), STICKERS])
    assert data.samples[0].group == "folder:pets"
    assert [s.group for s in data.samples[1:]] == [s.group for s in open_dataset(STICKERS).samples]


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["fer2013:../data/fer.zip?split=train", "folder:b/pets"], ["fer2013:fer.zip", "folder:pets"]),
        (["folder:a/pets/", "folder:b/pets?limit=3"], ["folder:a/pets/", "folder:b/pets"]),
        (["folder:pets?limit=3", "folder:pets?limit=4"], ["folder:pets?limit=3", "folder:pets?limit=4"]),
        (["folder:..", "synthetic:photos?n=2", r"folder:C:\x\pets"], ["folder:..", "synthetic:photos", "folder:pets"]),
        (["folder:/", "folder:."], ["folder:/", "folder:."]),
    ],
)
def test_names_of_parts(texts, names):
    assert part_names(texts) == names


def test_labels_of_a_part_may_be_hidden():
    data = open_datasets([PHOTOS, STICKERS + "&labelled=no"])
    assert data.labels.tolist() == [0, 1, 2, 3, 4, -1, -1, -1, -1]
    assert data.name_of(7) == STICKERS + "&labelled=no"


def test_weights():
    data = open_datasets([PHOTOS + "&weight=3", STICKERS + "&weight=0.5"])
    assert data.weights == (3.0, 0.5) and len(data) == 9


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "much", ""])
def test_a_weight_is_a_number_above_zero(value):
    text = f"{PHOTOS}&weight={value}"
    message = f"dataset {text!r}: weight is {value!r}; expected a number above 0"
    assert fails(lambda: open_dataset(text)) == message
    assert fails(lambda: open_datasets([text])) == message


def test_a_weight_for_some_only():
    third = "synthetic:photos?n=3&seed=8&size=32"
    message = fails(lambda: open_datasets([PHOTOS, STICKERS + "&weight=2", third]))
    assert message == (
        f"1 of 3 datasets have a weight, not {PHOTOS!r}, {third!r}; expected weight= in all of them or in none"
    )
    assert open_datasets([PHOTOS, STICKERS, third]).weights is None


def test_nothing_named():
    assert fails(lambda: open_datasets([])) == "no dataset is named; expected at least one dataset string, kind:PATH"
    assert fails(lambda: Mixture([])) == "a mixture of no datasets; expected at least one dataset"


def test_one_dataset_twice():
    assert fails(lambda: open_datasets([PHOTOS, STICKERS, PHOTOS])) == (
        f"dataset {PHOTOS!r} is named twice; expected each dataset once; leave one out; to draw from it more often, "
        "give every dataset a weight="
    )


@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [1.0, 0.0], [1.0, -2.0], [1.0, float("nan")]])
def test_weights_that_do_not_fit(weights):
    parts = [Numbers("a:x", 3), Numbers("b:x", 2)]
    assert fails(lambda: Mixture(parts, weights)) == (
        f"the weights of 2 datasets are {weights}; expected a number above 0 for each"
    )
    assert Mixture(parts, [1.0, 2.0]).weights == (1.0, 2.0)


def test_a_choice_of_pictures():
    data = Mixture([Numbers("a:x", 3), Numbers("b:x", 2, 100)]).subset([4, 0, 3])
    assert [s.key for s in data.samples] == ["1/1.png", "0/0.png", "1/0.png"]
    assert [data.image(i).getpixel((0, 0)) for i in range(3)] == [101, 0, 100]
    assert [data.name_of(i) for i in range(3)] == ["b:x", "a:x", "b:x"]
    assert not isinstance(data, Mixture)


def test_a_mixture_of_mixtures_names_the_innermost():
    inner = Mixture([Numbers("a:x", 2), Numbers("b:x", 2)])
    outer = Mixture([inner, Numbers("c:x", 1)])
    assert [outer.name_of(i) for i in range(5)] == ["a:x", "a:x", "b:x", "b:x", "c:x"]


def test_pickled_copy_reads_the_same_pictures():
    data = open_datasets([PHOTOS, STICKERS])
    copy = pickle.loads(pickle.dumps(data))
    np.testing.assert_array_equal(copy.image(6), data.image(6))
    assert copy.ranges == data.ranges


def test_damaged_picture_of_a_part_is_named(tmp_path):
    text = folder(tmp_path, "happy/a.png")
    data = open_datasets([PHOTOS, text])
    (tmp_path / "happy/a.png").write_bytes(b"")
    assert fails(lambda: data.image(5)) == (
        f"{tmp_path / 'happy/a.png'} is empty (0 bytes); expected a picture file; copy it again"
    )


def test_captions_are_found_by_content_and_what_lacks_is_named_by_its_part(tmp_path):
    text = folder(tmp_path / "p", "happy/a.png", "sad/b.png")
    data = open_datasets([PHOTOS, text])
    rows = [
        {"hash": picture_hash(data.image(i)), "key": "x", "caption": f"caption {i}", "captioner": "coca w"}
        for i in range(len(data))
    ]
    path = tmp_path / "c.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert captions_for(data, path) == [f"caption {i}" for i in range(7)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:6]))
    assert fails(lambda: captions_for(data, path)) == (
        f"{path} has no caption for 1 of 7 pictures of '{PHOTOS} + {text}' (first: '1/sad/b.png'); expected a caption "
        f'for every picture; run: kcdp knowledge caption --data "{text}" --captioner coca --out {path}'
    )


def test_class_counts_are_those_of_all_parts():
    counts = open_datasets([PHOTOS, STICKERS]).class_counts()
    assert counts == dict(zip(LABELS, [2, 2, 2, 2, 1, 0], strict=True))
