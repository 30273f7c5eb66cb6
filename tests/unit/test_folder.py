"""``folder:PATH``: layouts, what is refused and with which words, damaged pictures."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from kcdp.data.folder import FolderDataset, classify, find_pictures
from kcdp.errors import KcdpError
from kcdp.labels import LABELS


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), colour).save(path)
    return path


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_class_folders_in_any_case_and_depth(tmp_path):
    for name in ("Joy/b.PNG", "Joy/deep/er/a.jpeg", "anger/c.webp", "angry/d.gif", "sadness/e.bmp", "fear/f.jpg"):
        picture(tmp_path / name)
    (tmp_path / "fear" / "notes.txt").write_text("not a picture")
    data = FolderDataset("folder:x", tmp_path)
    assert [(s.key, LABELS[s.label]) for s in data.samples] == [
        ("Joy/b.PNG", "happy"), ("Joy/deep/er/a.jpeg", "happy"), ("anger/c.webp", "anger"),
        ("angry/d.gif", "anger"), ("fear/f.jpg", "fear"), ("sadness/e.bmp", "sad"),
    ]  # fmt: skip
    assert {s.split for s in data.samples} == {None} and data.dropped == 0 and data.name == "folder:x"
    assert [data.image(i).size for i in range(len(data))] == [(5, 4)] * 6


def test_split_folders_and_their_spellings(tmp_path):
    for name in ("train/happy/a.png", "Validation/sad/b.png", "test/fear/c.png"):
        picture(tmp_path / name)
    data = FolderDataset("x", tmp_path)
    assert {s.key: s.split for s in data.samples} == {
        "train/happy/a.png": "train", "Validation/sad/b.png": "val", "test/fear/c.png": "test",
    }  # fmt: skip


def test_neutral_is_dropped_and_counted(tmp_path):
    for name in ("happy/a.png", "neutral/b.png", "Neutral/c.png"):
        picture(tmp_path / name)
    data = FolderDataset("x", tmp_path)
    assert [s.key for s in data.samples] == ["happy/a.png"] and data.dropped == 2


def test_only_the_neutral_pictures(tmp_path):
    for name in ("train/happy/a.png", "train/neutral/b.png", "test/Neutral/deep/c.png", "val/loose.png"):
        picture(tmp_path / name)
    data = FolderDataset("x", tmp_path, neutral=True)
    assert [(s.key, s.label, s.split) for s in data.samples] == [
        ("test/Neutral/deep/c.png", None, "test"), ("train/neutral/b.png", None, "train"),
    ]  # fmt: skip
    assert data.dropped == 2 and data.image(1).size == (5, 4)


def test_no_neutral_pictures(tmp_path):
    for name in ("happy/a.png", "sad/b.png"):
        picture(tmp_path / name)
    assert fails(lambda: FolderDataset("x", tmp_path, neutral=True)) == (
        f"{tmp_path} holds no neutral pictures (2 others); leave neutral=only out"
    )


def test_pictures_alone_are_unlabelled(tmp_path):
    for name in ("b.png", "a.png"):
        picture(tmp_path / name)
    data = FolderDataset("x", tmp_path)
    assert [(s.key, s.label) for s in data.samples] == [("a.png", None), ("b.png", None)]
    assert data.labels.tolist() == [-1, -1]


def test_unlabelled_pictures_in_split_folders(tmp_path):
    picture(tmp_path / "train/a.png")
    picture(tmp_path / "test/happy/a.png")
    data = FolderDataset("x", tmp_path)
    assert [(s.key, s.label, s.split) for s in data.samples] == [
        ("test/happy/a.png", LABELS.index("happy"), "test"), ("train/a.png", None, "train"),
    ]  # fmt: skip


def test_hidden_files_and_folders_are_ignored(tmp_path):
    for name in ("happy/a.png", "happy/.b.png", ".thumbs/c.png", "happy/.cache/d.png", "__MACOSX/happy/e.png"):
        picture(tmp_path / name)
    assert find_pictures(tmp_path) == ["happy/a.png"]


def test_order_does_not_depend_on_the_file_system():
    keys = sorted(["happy/b.png", "happy/a.png", "anger/z.png"])
    assert [s.key for s in classify(keys, dataset="folder", where="x")[0]] == keys


def test_pickled_copy_reads_the_same_pictures(tmp_path):
    picture(tmp_path / "happy/a.png", "blue")
    copy = pickle.loads(pickle.dumps(FolderDataset("x", tmp_path)))
    assert copy.image(0).convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_missing_folder(tmp_path):
    message = fails(lambda: FolderDataset("x", tmp_path / "nope"))
    assert message == f"{tmp_path / 'nope'} does not exist; expected a folder of pictures; check the path after folder:"


def test_a_file_is_not_a_folder(tmp_path):
    path = picture(tmp_path / "a.png")
    message = fails(lambda: FolderDataset("x", path))
    assert message == f"{path} is not a folder; expected a folder of pictures; check the path after folder:"


def test_empty_folder(tmp_path):
    message = fails(lambda: FolderDataset("x", tmp_path))
    endings = ".apng, .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .png, .webp"
    assert message == f"{tmp_path} holds no pictures; expected files ending in {endings}"


@pytest.mark.parametrize("above", ["", "train/"])
def test_unknown_class_names_folder_valid_and_nearest(tmp_path, above):
    picture(tmp_path / f"{above}hapy/a.png")
    message = fails(lambda: FolderDataset("x", tmp_path))
    assert message.startswith(f"{tmp_path}/{above}hapy: folder: class 'hapy' is unknown (did you mean 'happy'?)")
    assert "expected one of amusement, anger, angry, " in message
    assert message.endswith("rename the class or leave those pictures out")


def test_loose_pictures_beside_class_folders(tmp_path):
    picture(tmp_path / "happy/a.png")
    picture(tmp_path / "stray.png")
    message = fails(lambda: FolderDataset("x", tmp_path))
    assert message == (
        f"{tmp_path} holds class folders and loose pictures beside them (stray.png); expected either folders or "
        "pictures; move the loose pictures into a class folder, or out"
    )


def test_something_else_beside_split_folders(tmp_path):
    picture(tmp_path / "train/happy/a.png")
    picture(tmp_path / "tests/happy/a.png")
    message = fails(lambda: FolderDataset("x", tmp_path))
    assert message == (
        f"{tmp_path} holds 'tests' beside its split folders (did you mean 'test'?); expected only train, val, test; "
        "rename it or move it out"
    )


def test_only_dropped_classes(tmp_path):
    picture(tmp_path / "neutral/a.png")
    message = fails(lambda: FolderDataset("x", tmp_path))
    assert message == f"{tmp_path} holds only dropped classes (1 pictures); expected one of the six emotions"


def test_missing_picture(tmp_path):
    path = picture(tmp_path / "happy/a.png")
    data = FolderDataset("x", tmp_path)
    path.unlink()
    message = fails(lambda: data.image(0))
    assert message == f"{path} does not exist; expected a picture file"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp"])
def test_truncated_picture_fails_on_reading(tmp_path, suffix):
    path = tmp_path / "happy" / f"a.{suffix}"
    path.parent.mkdir()
    Image.effect_noise((64, 64), 90).convert("RGB").save(path)
    whole = path.read_bytes()
    data = FolderDataset("x", tmp_path)
    assert data.image(0).size == (64, 64)
    path.write_bytes(whole[: len(whole) // 2])
    message = fails(lambda: data.image(0))
    assert message.startswith(f"{path} is truncated or damaged (")
    assert message.endswith("expected a whole picture; copy it again")
