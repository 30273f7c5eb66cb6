"""Miniature copies of EmoSet, SER30K, FI, Emotion6, EmotionROI and Emo8: layouts, and every message."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kcdp.data.dataset import ImageDataset
from kcdp.data.registry import native_splits, open_dataset
from kcdp.errors import KcdpError
from kcdp.labels import LABELS

MIKELS = {
    "amusement": "happy", "anger": "anger", "awe": "surprise", "contentment": "happy", "disgust": "disgust",
    "excitement": "surprise", "fear": "fear", "sadness": "sad",
}  # fmt: skip
SPLITS = ("train", "val", "test")


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 4), (value, 0, 255 - value)).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def fails(call: Callable[[], Any]) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told(data: ImageDataset) -> list[tuple[str, str | None, str | None]]:
    """(key, label, split) of every sample."""
    return [(s.key, None if s.label is None else LABELS[s.label], s.split) for s in data.samples]


# EmoSet


@pytest.fixture
def emoset(tmp_path):
    """Every class once in every split; train has rows of four elements, the others of three."""
    root = tmp_path / "EmoSet-118K"
    write(root / "info.json", {"label2idx": {}})
    number = 0
    for split in SPLITS:
        rows = []
        for name in MIKELS:
            number += 1
            image, about = f"image/{name}/{name}_{number:05d}.jpg", f"annotation/{name}/{name}_{number:05d}.json"
            picture(root / image, number)
            write(root / about, {"emotion": name})
            rows.append([name, f"{name}_{number:05d}", image, about] if split == "train" else [name, image, about])
        write(root / f"{split}.json", rows)
    return root


def test_emoset(emoset):
    data = open_dataset(f"emoset:{emoset}")
    assert len(data) == 24 and native_splits(data) == SPLITS and data.name == f"emoset:{emoset}"
    assert told(data)[:2] == [
        ("image/amusement/amusement_00001.jpg", "happy", "train"), ("image/anger/anger_00002.jpg", "anger", "train"),
    ]  # fmt: skip
    for key, label, split in told(data):
        assert label == MIKELS[key.split("/")[1]] and split == SPLITS[(int(key[-9:-4]) - 1) // 8]
    assert data.image(9).size == (6, 4) and len(open_dataset(f"emoset:{emoset}", split="val")) == 8
    assert pickle.loads(pickle.dumps(data)).image(3).size == (6, 4)
    assert {s.group for s in data.samples} == {""} and data.path_of(0) == emoset / data.samples[0].key


def test_the_length_of_a_row_decides_not_its_content(emoset):
    # An id that looks like a path must not be taken for the picture.
    write(emoset / "val.json", [["awe", "image/fear/wrong.jpg", "image/awe/right.jpg", "annotation/awe/right.json"]])
    assert [s.key for s in open_dataset(f"emoset:{emoset}", split="val").samples] == ["image/awe/right.jpg"]


def test_lists_may_be_missing_but_not_all(emoset):
    (emoset / "val.json").unlink()
    assert native_splits(open_dataset(f"emoset:{emoset}")) == ("train", "test")
    for split in ("train", "test"):
        (emoset / f"{split}.json").unlink()
    assert fails(lambda: open_dataset(f"emoset:{emoset}")) == (
        f"{emoset} has none of train.json, val.json, test.json; expected at least one; check the path after emoset:"
    )


@pytest.mark.parametrize("kind", ["emoset", "ser30k", "fi", "emotion6"])
def test_no_such_folder(tmp_path, kind):
    where = tmp_path / "nope"
    assert fails(lambda: open_dataset(f"{kind}:{where}")) == (
        f"{where} does not exist; expected the folder of the dataset {kind}; check the path after {kind}:"
    )
    picture(tmp_path / "a.png")
    assert fails(lambda: open_dataset(f"{kind}:{tmp_path / 'a.png'}")) == (
        f"{tmp_path / 'a.png'} is not a folder; expected the folder of the dataset {kind}; check the path after {kind}:"
    )


ROW = "[label, image, annotation] or [label, id, image, annotation]; fetch the file again"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["awe", "a.jpg"], f'is ["awe", "a.jpg"]; expected {ROW}'),
        (["awe", 1, "a.jpg", "b.json", 5], f'is ["awe", 1, "a.jpg", "b.json", 5]; expected {ROW}'),
        ({"label": "awe"}, f'is {{"label": "awe"}}; expected {ROW}'),
        ("x" * 90, f'is "{"x" * 59}...; expected {ROW}'),
        ([0, "a.jpg", "b.json"], ": the label is 0; expected the name of a class"),
        (["joy", "a.jpg", "b.json"], ": emoset: class 'joy' is unknown; expected one of amusement, anger, awe, "
         "contentment, disgust, excitement, fear, sadness; rename the class or leave those pictures out"),
        (["awe", 7, "b.json"], ": the path is 7; expected a path below the dataset's folder"),
        (["awe", " ", "b.json"], ': the path is " "; expected a path below the dataset\'s folder'),
    ],
)  # fmt: skip
def test_emoset_rows(emoset, row, message):
    path = write(emoset / "test.json", [["awe", "image/awe/a.jpg", "x"], row])
    separator = "" if message.startswith(":") else " "
    assert fails(lambda: open_dataset(f"emoset:{emoset}")) == f"{path} row 2{separator}{message}"


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../other/a.jpg", "image/../../a.jpg", "..", "C:/a.jpg", "C:a.jpg", r"C:\a.jpg", r"\\host\a.jpg",
     r"image\..\..\a.jpg", "//host/share/a.jpg"],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_is_refused(emoset, path):
    listed = write(emoset / "test.json", [["awe", path, "x"]])
    assert fails(lambda: open_dataset(f"emoset:{emoset}")) == (
        f"{listed} row 1: the path {path!r} leaves the dataset's folder; expected a path below it; "
        "do not use this file, or mend the row"
    )


@pytest.mark.parametrize("path", [r"image\awe\a.jpg", "./image/awe/a.jpg", "image//awe/./a.jpg", "image/awe/a.jpg"])
def test_ways_to_write_a_path(emoset, path):
    write(emoset / "test.json", [["awe", path, "x"]])
    assert [s.key for s in open_dataset(f"emoset:{emoset}", split="test").samples] == ["image/awe/a.jpg"]
    write(emoset / "test.json", [["awe", "image/awe/..a.. b.jpg", "x"]])
    assert open_dataset(f"emoset:{emoset}", split="test").samples[0].key == "image/awe/..a.. b.jpg"


def test_lists_that_are_no_lists(emoset):
    path = write(emoset / "test.json", {"rows": []})
    assert fails(lambda: open_dataset(f"emoset:{emoset}")) == (
        f'{path} is {{"rows": []}}; expected a list of rows; fetch the file again'
    )
    write(path, "[1, ")
    message = fails(lambda: open_dataset(f"emoset:{emoset}"))
    assert message.startswith(f"{path} is not valid JSON (") and message.endswith("expected a JSON file")
    for split in SPLITS:
        write(emoset / f"{split}.json", [])
    assert fails(lambda: open_dataset(f"emoset:{emoset}")) == (
        f"{emoset} lists no pictures; expected one row a picture; fetch the dataset again"
    )


def test_a_missing_picture_is_an_error_when_it_is_read(emoset):
    (emoset / "image/awe/awe_00003.jpg").unlink()
    data = open_dataset(f"emoset:{emoset}")
    assert data.image(1).size == (6, 4)
    assert fails(lambda: data.image(2)) == (
        f"{emoset / 'image/awe/awe_00003.jpg'} does not exist; expected a picture file"
    )


def test_a_picture_that_is_listed_again_has_a_key_of_its_own(emoset):
    row = ["awe", "image/awe/awe_00003.jpg", "x"]
    write(emoset / "test.json", [row, ["fear", *row[1:]], row])
    data = open_dataset(f"emoset:{emoset}")
    assert told(data)[-3:] == [(f"image/awe/awe_00003.jpg#{n}", label, "test")
                               for n, label in ((2, "surprise"), (3, "fear"), (4, "surprise"))]  # fmt: skip
    assert data.image(len(data) - 1).getpixel((0, 0)) == data.image(2).getpixel((0, 0))
    assert len({s.key for s in data.samples}) == len(data)


# SER30K


@pytest.fixture
def ser30k(tmp_path):
    """anno 1..7 in every split."""
    root = tmp_path / "SER_Dataset"
    for number, split in enumerate(SPLITS):
        rows = []
        for anno in range(1, 8):
            row = {"topic": f"09-panda-{number}", "file_name": f"sticker_{anno}.png", "text": f"hi {anno}"}
            picture(root / "Images" / row["topic"] / row["file_name"], number * 10 + anno)
            rows.append({**row, "anno": anno})
        write(root / "Annotations" / f"{split}.json", {"info": {}, "annotations": rows})
    return root


def test_ser30k(ser30k):
    data = open_dataset(f"ser30k:{ser30k}")
    assert told(data)[:6] == [
        (f"Images/09-panda-0/sticker_{n}.png", label, "train")
        for n, label in enumerate(("surprise", "happy", "disgust", "fear", "sad", "anger"), 1)
    ]
    assert len(data) == 18 and data.dropped == 3 and native_splits(data) == SPLITS
    assert [s.text for s in data.samples[:2]] == ["hi 1", "hi 2"] and {s.group for s in data.samples} == {""}
    assert data.image(17).getpixel((0, 0))[0] == 26
    assert [s.text for s in open_dataset(f"ser30k:{ser30k}?split=val&labelled=no").samples[:2]] == ["hi 1", "hi 2"]


def test_ser30k_neutral(ser30k):
    data = open_dataset(f"ser30k:{ser30k}?neutral=only")
    assert told(data) == [(f"Images/09-panda-{n}/sticker_7.png", None, split) for n, split in enumerate(SPLITS)]
    assert data.dropped == 18 and data.image(1).getpixel((0, 0))[0] == 17
    for split in SPLITS:
        path = ser30k / "Annotations" / f"{split}.json"
        write(path, {"annotations": json.loads(path.read_text())["annotations"][:6]})
    assert fails(lambda: open_dataset(f"ser30k:{ser30k}?neutral=only")) == (
        f"{ser30k} holds no neutral pictures (18 others); leave neutral=only out"
    )


def test_ser30k_only_neutral_stickers(ser30k):
    for split in SPLITS:
        row = {"topic": "t", "file_name": "a.png", "text": "", "anno": 7}
        write(ser30k / "Annotations" / f"{split}.json", {"annotations": [row]})
    assert fails(lambda: open_dataset(f"ser30k:{ser30k}")) == (
        f"{ser30k} holds only dropped classes (3 pictures); expected one of the six emotions"
    )


def test_ser30k_without_words(ser30k):
    row = {"topic": "t", "file_name": "a.png", "anno": 1}
    write(ser30k / "Annotations" / "val.json", {"annotations": [row, {**row, "file_name": "b.png", "text": None}]})
    assert [s.text for s in open_dataset(f"ser30k:{ser30k}", split="val").samples] == ["", ""]


EXPECTED = "an object with topic, file_name, text and anno; fetch the file again"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["t", "a.png"], f' is ["t", "a.png"]; expected {EXPECTED}'),
        ({"topic": "t", "anno": 1}, f" has no 'file_name'; expected {EXPECTED}"),
        ({"topic": "t", "file_name": "a", "text": 3, "anno": 1}, ": text is 3; expected a text or null"),
        ({"topic": "t", "file_name": "a", "anno": "one"}, ': anno is "one"; expected a whole number from 1 to 7'),
        ({"topic": "t", "file_name": "a", "anno": True}, ": the class is true; expected a name or a whole number"),
        ({"topic": "t", "file_name": "a", "anno": 0}, ": ser30k: class 0 is unknown; expected one of 1, 2, 3, 4, 5, "
         "6, 7, anger, disgust, fear, happiness, neutral, sadness, surprise; rename the class or leave those pictures "
         "out"),
        ({"topic": "t", "file_name": "a", "anno": 8}, ": ser30k: class 8 is unknown; expected one of 1, 2, 3, 4, 5, "
         "6, 7, anger, disgust, fear, happiness, neutral, sadness, surprise; rename the class or leave those pictures "
         "out"),
        ({"topic": "..", "file_name": "a", "anno": 1}, ": topic: the path '..' leaves the dataset's folder; expected a "
         "path below it; do not use this file, or mend the row"),
        ({"topic": "t", "file_name": "/a", "anno": 1}, ": file_name: the path '/a' leaves the dataset's folder; "
         "expected a path below it; do not use this file, or mend the row"),
        ({"topic": None, "file_name": "a", "anno": 1}, ": topic: the path is null; expected a path below the "
         "dataset's folder"),
    ],
)  # fmt: skip
def test_ser30k_rows(ser30k, row, message):
    path = write(ser30k / "Annotations" / "val.json", {"annotations": [row]})
    assert fails(lambda: open_dataset(f"ser30k:{ser30k}")) == f"{path} row 1{message}"


def test_ser30k_layout(ser30k, tmp_path):
    path = ser30k / "Annotations" / "val.json"
    write(path, [])
    expected = 'expected {"annotations": [...]}; fetch the file again'
    assert fails(lambda: open_dataset(f"ser30k:{ser30k}")) == f"{path} has no 'annotations'; {expected}"
    write(path, {"annotations": 3})
    assert fails(lambda: open_dataset(f"ser30k:{ser30k}")) == (
        f"{path} is 3; expected a list as 'annotations'; fetch the file again"
    )
    assert fails(lambda: open_dataset(f"ser30k:{tmp_path}")) == (
        f"{tmp_path} has no folder Annotations; expected Annotations and Images; check the path after ser30k:"
    )
    empty = tmp_path / "empty"
    (empty / "Annotations").mkdir(parents=True)
    assert fails(lambda: open_dataset(f"ser30k:{empty}")) == (
        f"{empty / 'Annotations'} has none of train.json, val.json, test.json; expected at least one; "
        "check the path after ser30k:"
    )


# FI


def test_fi_lists(tmp_path):
    for split in SPLITS:
        write(tmp_path / f"{split}.json", [[f"{split}/{name}/{i}.jpg", i] for i, name in enumerate(MIKELS)])
    for i, name in enumerate(MIKELS):
        picture(tmp_path / f"val/{name}/{i}.jpg", i)
    data = open_dataset(f"fi:{tmp_path}")
    assert told(data) == [(f"{s}/{n}/{i}.jpg", MIKELS[n], s) for s in SPLITS for i, n in enumerate(MIKELS)]
    assert data.image(8).size == (6, 4)


def test_fi_lists_below_split_folders(tmp_path):
    write(tmp_path / "train.json", [["a.jpg", "0"], ["train/b.jpg", " 7 "], ["deep/c.jpg", 1]])
    write(tmp_path / "test.json", [["d.jpg", 3]])
    picture(tmp_path / "train/a.jpg")
    assert told(open_dataset(f"fi:{tmp_path}")) == [
        ("train/a.jpg", "happy", "train"), ("train/b.jpg", "sad", "train"), ("train/deep/c.jpg", "anger", "train"),
        ("d.jpg", "happy", "test"),
    ]  # fmt: skip


def test_fi_class_folders(tmp_path):
    for i, name in enumerate(MIKELS):
        picture(tmp_path / name / f"{i}.jpg", i)
    data = open_dataset(f"fi:{tmp_path}")
    assert told(data) == [(f"{name}/{i}.jpg", MIKELS[name], None) for i, name in enumerate(MIKELS)]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a.jpg"], ' is ["a.jpg"]; expected [path, id]; fetch the file again'),
        ("a.jpg", ' is "a.jpg"; expected [path, id]; fetch the file again'),
        ([3, "a.jpg"], ": the path is 3; expected a path below the dataset's folder"),
        (["a.jpg", 1.0], ": the class is 1.0; expected a name or a whole number"),
        (["a.jpg", True], ": the class is true; expected a name or a whole number"),
        (["a.jpg", 8], ": fi: class 8 is unknown; expected one of 0, 1, 2, 3, 4, 5, 6, 7, amusement, anger, awe, "
         "contentment, disgust, excitement, fear, sadness; rename the class or leave those pictures out"),
        (["a.jpg", -1], ": fi: class -1 is unknown (did you mean '1'?); expected one of 0, 1, 2, 3, 4, 5, 6, 7, "
         "amusement, anger, awe, contentment, disgust, excitement, fear, sadness; rename the class or leave those "
         "pictures out"),
        (["../a.jpg", 1], ": the path '../a.jpg' leaves the dataset's folder; expected a path below it; do not use "
         "this file, or mend the row"),
    ],
)  # fmt: skip
def test_fi_rows(tmp_path, row, message):
    path = write(tmp_path / "train.json", [["b.jpg", 0], row])
    assert fails(lambda: open_dataset(f"fi:{tmp_path}")) == f"{path} row 2{message}"


# Emotion6 and EmotionROI

SIX = {"anger": "anger", "disgust": "disgust", "fear": "fear", "joy": "happy", "sadness": "sad", "surprise": "surprise"}


@pytest.fixture
def emotion_roi(tmp_path):
    """Two pictures of each class, the first in training and the second in testing, and maps that are no pictures."""
    for i, name in enumerate(SIX):
        picture(tmp_path / f"images/{name}/1.jpg", i)
        picture(tmp_path / f"images/{name}/2.jpg", i + 10)
        picture(tmp_path / f"ground_truth/{name}/1.jpg")
    lists = tmp_path / "training_testing_split"
    write(lists / "training.txt", "".join(f"{name}/1.jpg\r\n" for name in SIX))
    write(lists / "testing.txt", "".join(f"images/{name}/2.jpg\n" for name in SIX) + "\n")
    return tmp_path


def test_emotion_roi(emotion_roi):
    data = open_dataset(f"emotion6:{emotion_roi}")
    assert told(data) == [(f"{name}/{n}.jpg", label, split)
                          for n, split in ((1, "train"), (2, "test")) for name, label in SIX.items()]  # fmt: skip
    assert [data.image(i).getpixel((0, 0))[0] for i in (5, 11)] == pytest.approx([5, 15], abs=3)


def test_emotion6_without_lists(emotion_roi, tmp_path_factory):
    for name in ("training.txt", "testing.txt"):
        (emotion_roi / "training_testing_split" / name).unlink()
    data = open_dataset(f"emotion6:{emotion_roi}")
    assert told(data) == [(f"{name}/{n}.jpg", label, None) for name, label in SIX.items() for n in (1, 2)]
    assert native_splits(data) == ()
    classic = tmp_path_factory.mktemp("classic")
    for name in SIX:
        picture(classic / name / "1.jpg")
    write(classic / "ground_truth.txt", "joy/1.jpg 0.1 0.2")
    data = open_dataset(f"emotion6:{classic}")
    assert told(data) == [(f"{name}/1.jpg", label, None) for name, label in SIX.items()]
    assert data.image(0).size == (6, 4)


def test_a_folder_that_is_no_class_of_emotion6(tmp_path):
    picture(tmp_path / "images/neutral/1.jpg")
    assert fails(lambda: open_dataset(f"emotion6:{tmp_path}")) == (
        f"{tmp_path}/images/neutral: emotion6: class 'neutral' is unknown; expected one of anger, disgust, fear, joy, "
        "sadness, surprise; rename the class or leave those pictures out"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1.jpg", " is '1.jpg'; expected <class>/<picture>; fetch the dataset again"),
        ("joyy/1.jpg", ": emotion6: class 'joyy' is unknown (did you mean 'joy'?); expected one of anger, disgust, "
         "fear, joy, sadness, surprise; rename the class or leave those pictures out"),
        ("../joy/1.jpg", ": the path '../joy/1.jpg' leaves the dataset's folder; expected a path below it; do not use "
         "this file, or mend the row"),
    ],
)  # fmt: skip
def test_emotion_roi_lines(emotion_roi, line, message):
    path = write(emotion_roi / "training_testing_split" / "testing.txt", f"joy/1.jpg\n\n{line}\n")
    assert fails(lambda: open_dataset(f"emotion6:{emotion_roi}")) == f"{path} line 3{message}"


def test_emotion_roi_needs_both_lists(emotion_roi):
    lists = emotion_roi / "training_testing_split"
    (lists / "testing.txt").rename(lists / "kept")
    assert fails(lambda: open_dataset(f"emotion6:{emotion_roi}")) == (
        f"{lists / 'training.txt'} is there and testing.txt beside it is not; expected both of them or neither; "
        "fetch the dataset again"
    )
    (lists / "kept").rename(lists / "testing.txt")
    (lists / "training.txt").write_bytes(b"joy/\xff.jpg")
    message = fails(lambda: open_dataset(f"emotion6:{emotion_roi}"))
    assert message.startswith(f"{lists / 'training.txt'} cannot be read (")
    assert message.endswith("); expected a text file; fetch the dataset again")


# Emo8


def test_emo8(tmp_path):
    for i, split in enumerate(SPLITS):
        for name in MIKELS:
            picture(tmp_path / split / name.title() / f"{i}.png", i)
    data = open_dataset(f"emo8:{tmp_path}")
    assert {(key, label, split) for key, label, split in told(data)} == {
        (f"{split}/{name.title()}/{i}.png", MIKELS[name], split) for i, split in enumerate(SPLITS) for name in MIKELS
    }
    assert data.image(0).size == (6, 4)


@pytest.mark.parametrize("kind", ["emo8", "fi", "emotion6"])
def test_only_folder_takes_pictures_without_a_class(tmp_path, kind):
    picture(tmp_path / "train/a.png")
    assert fails(lambda: open_dataset(f"{kind}:{tmp_path}")) == (
        f"{tmp_path} holds train/a.png; expected [train|val|test/]<class>/<picture>; "
        "use folder: for pictures without a class"
    )
    assert len(open_dataset(f"folder:{tmp_path}")) == 1


def test_the_path_after_emo8(tmp_path):
    assert fails(lambda: open_dataset(f"emo8:{tmp_path / 'nope'}")) == (
        f"{tmp_path / 'nope'} does not exist; expected a folder of pictures; check the path after emo8:"
    )
    picture(tmp_path / "joy/a.png")
    assert fails(lambda: open_dataset(f"emo8:{tmp_path}")).startswith(f"{tmp_path}/joy: emo8: class 'joy' is unknown")


def test_ser30k_numbers_as_text(ser30k):
    want = told(open_dataset(f"ser30k:{ser30k}"))
    for split in SPLITS:
        path = ser30k / "Annotations" / f"{split}.json"
        rows = [{**row, "anno": str(row["anno"])} for row in json.loads(path.read_text())["annotations"]]
        write(path, {"annotations": rows})
    assert told(open_dataset(f"ser30k:{ser30k}")) == want
