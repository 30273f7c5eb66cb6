"""``csv:FILE``: a table of one's own, and every message."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from PIL import Image

from kcdp.data.registry import native_splits, open_dataset
from kcdp.data.table import TableDataset
from kcdp.errors import KcdpError
from kcdp.labels import LABELS


def table(folder: Path, *lines: str, name: str = "pets.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (5, 4), (value, 0, 0)).save(path)
    return path


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told(data) -> list[tuple]:
    return [(s.key, None if s.label is None else LABELS[s.label], s.split, s.group) for s in data.samples]


def test_all_columns(tmp_path):
    outside = picture(tmp_path / "elsewhere" / "c.png", 3)
    picture(tmp_path / "data" / "pets" / "a, b.png", 1)
    path = table(
        tmp_path / "data", "path,label,split,group", '"pets/a, b.png",happy,train,cats', " b.png , JOY ,Test, dogs ",
        f"{outside},angry,validation,", "", "../elsewhere/d.png,,train,cats", "n.png,Neutral,train,cats",
    )  # fmt: skip
    data = open_dataset(f"csv:{path}")
    assert told(data) == [
        ("pets/a, b.png", "happy", "train", "cats"), ("b.png", "happy", "test", "dogs"),
        (str(outside), "anger", "val", ""), ("../elsewhere/d.png", None, "train", "cats"),
    ]  # fmt: skip
    assert data.dropped == 1 and data.name == f"csv:{path}"
    assert [data.image(i).getpixel((0, 0))[0] for i in (0, 2)] == [1, 3]
    assert pickle.loads(pickle.dumps(data)).image(0).size == (5, 4)
    picture(tmp_path / "elsewhere" / "d.png", 4)
    assert data.image(3).getpixel((0, 0))[0] == 4


def test_two_columns_in_any_order_and_case(tmp_path):
    data = TableDataset("x", table(tmp_path, " Label,PATH", "Sadness,a.png", ",b.png", encoding="utf-8-sig"))
    assert told(data) == [("a.png", "sad", None, ""), ("b.png", None, None, "")]
    assert native_splits(data) == ()


def test_windows_line_ends_and_slashes(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"path,label\r\npets\\a.png,fear\r\n")
    assert told(TableDataset("x", tmp_path / "t.csv")) == [("pets/a.png", "fear", None, "")]


def test_only_the_neutral_pictures(tmp_path):
    path = table(tmp_path, "path,label", "a.png,happy", "b.png,neutral", "c.png,", "d.png,NEUTRAL")
    data = open_dataset(f"csv:{path}?neutral=only")
    assert told(data) == [("b.png", None, None, ""), ("d.png", None, None, "")] and data.dropped == 2
    assert [s.key for s in open_dataset(f"csv:{path}").samples] == ["a.png", "c.png"]
    path = table(tmp_path, "path,label", "a.png,happy", "c.png,")
    assert fails(lambda: open_dataset(f"csv:{path}?neutral=only")) == (
        f"{path} holds no neutral pictures (2 others); leave neutral=only out"
    )


def test_a_split_column_that_is_empty_throughout(tmp_path):
    data = TableDataset("x", table(tmp_path, "path,label,split", "a.png,fear,", "b.png,fear,"))
    assert native_splits(data) == ()


def test_a_missing_picture_is_an_error_when_it_is_read(tmp_path):
    data = TableDataset("x", table(tmp_path, "path,label", "a.png,happy"))
    assert fails(lambda: data.image(0)) == f"{tmp_path / 'a.png'} does not exist; expected a picture file"


HEADER = "expected the columns path and label, and if need be split and group"
CLASSES = "expected one of amusement, anger, angry, "


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,label,spilt", "a,happy,test"], f": column 'spilt' is unknown (did you mean 'split'?); {HEADER}; "
                                               "rename it or take it out"),
        (["path,group", "a,b"], f" has the header 'path,group'; {HEADER}"),
        (["path,label,label", "a,b,c"], f" has the header 'path,label,label'; {HEADER}"),
        ([""], f" has the header ''; {HEADER}"),
        (["path,label"], " holds no pictures; expected one row a picture below the header"),
        (["path,label", "a.png,happy", "b,c.png,happy"], " line 3 has 3 fields; expected 2; put a path that holds a "
                                                         "comma in double quotes"),
        (["path,label", ",happy"], " line 2: the path is empty; expected the path of a picture"),
        (["path,label,split", "a.png,happy,tets"], " line 2: split is 'tets' (did you mean 'test'?); expected one of "
                                                   "train, val, test, or nothing"),
        (["path,label", "a.png,happy", "b.png,sad", "a.png,happy"], " line 4: 'a.png' stands in line 2 already; "
         "expected each picture once; delete one of the two lines"),
        (["path,label,split", "a.png,happy,test", "b.png,sad,"], " line 3 has no split while others have one; "
         "expected a split in all rows or in none"),
        (["path,label", "a.png,neutral"], " holds only dropped classes (1 pictures); expected one of the six emotions"),
        (["path,label", '"a.png,happy'], " line 2 is not csv (unexpected end of data); expected values separated by "
                                         "commas"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, lines, message):
    path = table(tmp_path, *lines)
    assert fails(lambda: TableDataset("x", path)) == f"{path}{message}"


def test_unknown_label_names_line_and_nearest(tmp_path):
    path = table(tmp_path, "path,label", "a.png,hapy")
    message = fails(lambda: TableDataset("x", path))
    assert message.startswith(f"{path} line 2: csv: class 'hapy' is unknown (did you mean 'happy'?); {CLASSES}")
    path = table(tmp_path, "path,label", "a.png,3")
    assert f"{path} line 2: csv: class '3' is unknown; {CLASSES}" in fails(lambda: TableDataset("x", path))


def test_what_is_no_table(tmp_path):
    assert fails(lambda: TableDataset("x", tmp_path / "no.csv")) == (
        f"{tmp_path / 'no.csv'} does not exist; expected a table of pictures; check the path after csv:"
    )
    assert fails(lambda: TableDataset("x", tmp_path)) == (
        f"{tmp_path} is not a file; expected a table of pictures; check the path after csv:"
    )
    path = table(tmp_path, "path,label", "ä.png,happy", encoding="latin-1")
    message = fails(lambda: TableDataset("x", path))
    assert message.startswith(f"{path} is not UTF-8 (")
    assert message.endswith("); expected a csv file in UTF-8; save it as UTF-8")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_columns_that_no_comma_separates(tmp_path, separator):
    path = table(tmp_path, separator.join(("path", "label")), separator.join(("a.png", "happy")))
    assert fails(lambda: TableDataset("x", path)) == (
        f"{path} has the header {f'path{separator}label'!r}; expected the columns path and label, and if need be split "
        "and group; separate the columns by commas"
    )
