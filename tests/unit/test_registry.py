"""The dataset string: parsing, splits, options, and every message."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import sys
import types

import pytest
from PIL import Image

from kcdp.data import command
from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.registry import (
    KINDS,
    DatasetSpec,
    native_splits,
    open_dataset,
    parse_spec,
    split_of,
    split_sizes,
)
from kcdp.errors import KcdpError
from kcdp.labels import LABELS


class Faces(ImageDataset):
    """Stands in for the drawn faces: records how it was made, every third picture is unlabelled."""

    def __init__(self, domain, n=600, seed=0, size=128, name="", labelled=True, prior="balanced"):
        self.made_with = {"domain": domain, "n": n, "seed": seed, "size": size, "name": name}
        samples = [Sample(f"{domain}/{i:04d}", None if i % 3 == 0 else i % 6, group="a") for i in range(n)]
        super().__init__(name, samples)

    def image(self, index):
        return Image.new("L", (1, 1), index % 256)


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    module = types.ModuleType("kcdp.data.synthetic")
    module.SyntheticFaces = Faces
    monkeypatch.setitem(sys.modules, "kcdp.data.synthetic", module)


@pytest.fixture
def split_folder(tmp_path):
    for name in ("train/happy/a.png", "train/sad/b.png", "train/fear/c.png", "test/happy/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    return tmp_path


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def keys(dataset) -> list[str]:
    return [sample.key for sample in dataset.samples]


def test_parse_everything():
    spec = parse_spec("synthetic:photos?n=30&seed=2&size=64&limit=5&labelled=no&split=val&only=labelled")
    assert (spec.kind, spec.path) == ("synthetic", "photos")
    assert dict(spec.options) == {
        "n": 30, "seed": 2, "size": 64, "limit": 5, "labelled": False, "split": "val", "only": "labelled",
    }  # fmt: skip
    assert spec.own_options == {"n": 30, "seed": 2, "size": 64}
    assert parse_spec("emoji:d?styles=noto,fluent-3d").own_options == {"styles": ("noto", "fluent-3d")}


def test_parse_splits_at_the_first_colon_only():
    assert parse_spec(r"folder:C:\x\y?limit=1").path == r"C:\x\y"
    assert parse_spec("folder:a=b&c") == DatasetSpec("folder", "a=b&c", {})
    assert parse_spec("folder:x?") == DatasetSpec("folder", "x", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("photos", "dataset 'photos' has no kind; expected kind:PATH; write folder:photos for a folder of pictures"),
        ("foldr:x", "dataset 'foldr:x': kind 'foldr' is unknown (did you mean 'folder'?); "
                    "expected one of folder, fer2013, emoset, ser30k, fi, emotion6, emo8, csv, emoji, synthetic"),
        ("folder:", "dataset 'folder:' has no path; expected folder:FOLDER"),
        ("folder:?limit=1", "dataset 'folder:?limit=1' has no path; expected folder:FOLDER"),
        ("synthetic:photo", "dataset 'synthetic:photo': synthetic has no 'photo' (did you mean 'photos'?); "
                            "expected one of photos, stickers"),
        ("folder:x?lmit=3", "dataset 'folder:x?lmit=3': folder has no option 'lmit' (did you mean 'limit'?); "
                            "expected one of labelled, limit, neutral, only, split, weight"),
        ("folder:x?styles=noto", "dataset 'folder:x?styles=noto': folder has no option 'styles'; "
                                 "expected one of labelled, limit, neutral, only, split, weight"),
        ("folder:x?limit=3&limit=4", "dataset 'folder:x?limit=3&limit=4' has the option 'limit' twice; "
                                     "expected each option once"),
        ("folder:x?limit", "dataset 'folder:x?limit': option 'limit' has no value; expected a whole number from 1"),
        ("folder:x?limit=0", "dataset 'folder:x?limit=0': limit is '0'; expected a whole number from 1"),
        ("folder:x?limit=1e3", "dataset 'folder:x?limit=1e3': limit is '1e3'; expected a whole number from 1"),
        ("folder:x?split=tset", "dataset 'folder:x?split=tset': split is 'tset' (did you mean 'test'?); "
                                "expected one of train, val, test, all"),
        ("folder:x?labelled=true", "dataset 'folder:x?labelled=true': labelled is 'true'; expected yes or no"),
        ("folder:x?only=labeled", "dataset 'folder:x?only=labeled': only is 'labeled' (did you mean 'labelled'?); "
                                  "expected labelled"),
        ("synthetic:photos?size=4", "dataset 'synthetic:photos?size=4': size is '4'; "
                                    "expected a whole number from 32 to 512"),
        ("emoji:d?styles=a,,b", "dataset 'emoji:d?styles=a,,b': styles is 'a,,b'; "
                                "expected style names, comma-separated"),
    ],
)  # fmt: skip
def test_parse_errors(text, message):
    assert fails(lambda: parse_spec(text)) == message


def test_reader_gets_its_own_options_and_the_whole_name():
    text = "synthetic:stickers?n=12&seed=3&size=32&split=all"
    assert open_dataset(text).made_with == {"domain": "stickers", "n": 12, "seed": 3, "size": 32, "name": text}
    assert open_dataset("synthetic:photos").made_with["n"] == 600


def test_the_drawn_faces_take_what_the_string_offers(monkeypatch):
    monkeypatch.delitem(sys.modules, "kcdp.data.synthetic")
    data = open_dataset("synthetic:photos?n=7&seed=1&size=32&prior=natural")
    assert type(data).__name__ == "SyntheticFaces" and len(data) == 7 and data.image(0).size == (32, 32)
    assert data.name == "synthetic:photos?n=7&seed=1&size=32&prior=natural"


def test_split_by_hash_is_fixed_disjoint_and_in_proportion():
    parts = {name: keys(open_dataset("synthetic:photos?n=4000", split=name)) for name in ("train", "val", "test")}
    assert sorted(key for part in parts.values() for key in part) == keys(open_dataset("synthetic:photos?n=4000"))
    shares = {name: len(part) / 4000 for name, part in parts.items()}
    assert shares == pytest.approx({"train": 0.80, "val": 0.08, "test": 0.12}, abs=0.02)
    # The definition itself: SHA-256 of the key, its first 64 bits as a share of their range.
    share = int(hashlib.sha256(b"photos/0000").hexdigest()[:16], 16) / 2**64
    assert split_of(Sample("photos/0000", None)) == ("train" if share < 0.8 else "val" if share < 0.88 else "test")
    # A key keeps its side whatever else is in the set.
    assert set(keys(open_dataset("synthetic:photos?n=400", split="test"))) <= set(parts["test"])


def test_own_splits_win_over_the_hash(split_folder):
    data = open_dataset(f"folder:{split_folder}")
    assert native_splits(data) == ("train", "test") and split_sizes(data) == {"train": 3, "val": 0, "test": 1}
    assert keys(open_dataset(f"folder:{split_folder}", split="test")) == ["test/happy/d.png"]
    assert native_splits(open_dataset("synthetic:photos")) == ()


def test_precedence_string_argument_all(split_folder):
    text = f"folder:{split_folder}"
    assert len(open_dataset(f"{text}?split=test", split="train")) == 1
    assert len(open_dataset(f"{text}?split=all", split="train")) == 4
    assert len(open_dataset(text, split="train")) == 3
    assert len(open_dataset(text)) == 4
    assert "split is 'tain' (did you mean 'train'?); expected one of train, val, test, all" in fails(
        lambda: open_dataset(text, split="tain")
    )


def test_empty_result_says_what_there_is(split_folder):
    text = f"folder:{split_folder}"
    assert fails(lambda: open_dataset(text, split="val")) == (
        f"dataset {text!r} holds no pictures in split 'val'; its splits are train 3, val 0, test 1; "
        "choose another split or other options"
    )
    plain = split_folder / "plain"
    plain.mkdir()
    Image.new("L", (1, 1)).save(plain / "a.png")
    message = fails(lambda: open_dataset(f"folder:{plain}?only=labelled"))
    assert "holds no pictures with a label in split 'all'; its splits are " in message


def test_limit_is_stable_nested_and_spread():
    every = keys(open_dataset("synthetic:photos"))
    ten, twenty = (keys(open_dataset(f"synthetic:photos?limit={n}")) for n in (10, 20))
    assert len(ten) == 10 and set(ten) < set(twenty) and ten == sorted(ten) and ten != every[:10]
    assert ten == keys(open_dataset("synthetic:photos?limit=10"))
    assert keys(open_dataset("synthetic:photos?limit=10000")) == every
    # The definition itself, so that no version picks other pictures: the smallest hashes.
    assert ten == sorted(sorted(every, key=lambda key: hashlib.sha256(f"limit\0{key}".encode()).digest())[:10])


def test_limit_counts_after_the_split_and_the_labels():
    data = open_dataset("synthetic:photos?limit=7&only=labelled&split=test")
    assert len(data) == 7 and all(s.label is not None and split_of(s) == "test" for s in data.samples)


def test_labels_hidden():
    text = "synthetic:photos?labelled=no&n=30"
    data = open_dataset(text)
    assert data.name == text and data.labels.tolist() == [-1] * 30 and data.samples[1].group == "a"
    assert data.subset([5]).samples[0].label is None
    assert data.image(7).getpixel((0, 0)) == 7
    assert open_dataset("synthetic:photos?labelled=yes&n=30").labels.tolist() != [-1] * 30


def test_only_labelled_can_be_hidden_too():
    data = open_dataset("synthetic:photos?only=labelled&labelled=no&n=30")
    assert len(data) == 20 and set(data.labels) == {-1}
    assert data.image(0).getpixel((0, 0)) == 1


def test_neutral_pictures_alone(split_folder):
    (split_folder / "test/neutral").mkdir()
    Image.new("RGB", (2, 2)).save(split_folder / "test/neutral/n.png")
    data = open_dataset(f"folder:{split_folder}?neutral=only&split=test")
    assert keys(data) == ["test/neutral/n.png"] and data.labels.tolist() == [-1]
    text = f"folder:{split_folder}?neutral=yes"
    assert fails(lambda: open_dataset(text)) == f"dataset {text!r}: neutral is 'yes'; expected only"
    text = "synthetic:photos?neutral=only"
    assert "synthetic has no option 'neutral'" in fails(lambda: open_dataset(text))


def test_opened_datasets_can_be_pickled(split_folder):
    data = pickle.loads(pickle.dumps(open_dataset(f"folder:{split_folder}?limit=2&labelled=no")))
    assert len(data) == 2 and data.image(1).size == (2, 2)


def test_every_kind_explains_itself():
    assert list(KINDS) == [
        "folder", "fer2013", "emoset", "ser30k", "fi", "emotion6", "emo8", "csv", "emoji", "synthetic",
    ]  # fmt: skip
    for kind in KINDS.values():
        assert kind.help and "\n" not in kind.help and kind.path


def run_command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


def test_list_counts_by_class_split_and_group(split_folder, capsys):
    assert run_command("list", f"folder:{split_folder}") == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0][1:] == ["4", "pictures", "(the", "dataset's", "own", "splits)"]
    assert table[1] == ["train", "val", "test", "all"]
    rows = {row[0]: row[1:] for row in table[2:]}
    assert list(rows) == [*LABELS, "unlabelled", "total"]
    assert rows["happy"] == ["1", "0", "1", "2"] and rows["total"] == ["3", "0", "1", "4"]
    assert run_command("list", "synthetic:photos?n=9") == 0
    out = capsys.readouterr().out
    assert "(no splits of its own: divided by hash)" in out and "group a: 9 pictures, 6 labelled" in out


def test_list_says_what_was_dropped(split_folder, capsys):
    (split_folder / "train" / "neutral").mkdir()
    Image.new("L", (1, 1)).save(split_folder / "train" / "neutral" / "n.png")
    run_command("list", f"folder:{split_folder}")
    assert "1 pictures of a class outside the six left out" in capsys.readouterr().out
    run_command("list", f"folder:{split_folder}?neutral=only")
    assert "4 pictures of the six emotions left out" in capsys.readouterr().out


def test_list_check_names_damaged_pictures(split_folder, capsys):
    assert run_command("list", "--check", f"folder:{split_folder}") == 0
    assert "4 pictures decoded, 0 damaged" in capsys.readouterr().out
    (split_folder / "train/sad/b.png").write_bytes(b"nothing")
    assert run_command("list", "--check", f"folder:{split_folder}") == 1
    shown = capsys.readouterr()
    assert "3 pictures decoded, 1 damaged" in shown.out and "train/sad/b.png is not a picture" in shown.err


def test_list_help_names_every_kind_and_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command("list", "--help")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    for word in (*KINDS, "styles=", "limit=", "labelled=", "only=", "split=", "seed=", "weight=", "neutral="):
        assert word in shown
