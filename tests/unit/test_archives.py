"""Zip archives are read entry by entry; what is wrong with one is an error row, and nothing is written anywhere."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_threads import in_threads
from sticker_files import encoded, gradient, zipped

from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime import find_items
from kcdp.runtime.items import Item
from kcdp.runtime.media.frames import read_frames
from kcdp.runtime.media.limits import Limits

PNG, WEBP = encoded(gradient("RGBA"), "PNG"), encoded(gradient(), "WEBP")


@pytest.fixture()
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Item]]:
    """``found(data, **options)``: the items of an archive of that content, which lies alone in a folder."""
    folder = tmp_path / "alone"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def find(data: bytes, **options: Any) -> list[Item]:
        Path("pack.zip").write_bytes(data)
        items = list(find_items("pack.zip", **options))
        for item in items:
            outcome(item)
        assert [str(path) for path in Path().rglob("*")] == ["pack.zip"] and len(list(tmp_path.iterdir())) == 1
        return items

    return find


def outcome(item: Item) -> bytes | str:
    """The bytes of an item, or its error in one line that begins with its name."""
    try:
        if item.error is not None:
            raise item.error
        assert callable(item.source)
        return item.source()
    except KcdpError as error:
        assert str(error).startswith(f"{item.name} ") and "\n" not in str(error)
        return str(error).removeprefix(f"{item.name} ")


def test_entries_are_items_in_the_order_of_their_names(found: Callable[..., list[Item]]) -> None:
    data = zipped({"z.PNG": PNG, "dir/wave.png": PNG, "dir/a.webp": WEBP, "notes.txt": b"x", "dir/.hidden.png": PNG,
                   "__MACOSX/z.png": PNG, "b.tgs": b"\x1f\x8b"})  # fmt: skip
    items = found(data)
    assert [item.name for item in items] == [
        "pack.zip/b.tgs",
        "pack.zip/dir/a.webp",
        "pack.zip/dir/wave.png",
        "pack.zip/z.PNG",
    ]
    assert [outcome(item) for item in items] == [b"\x1f\x8b", WEBP, PNG, PNG]
    assert items[2].error is None and items[2].caption is None
    assert [outcome(item) for item in found(zipped({"a.png": PNG}, zipfile.ZIP_STORED))] == [PNG]
    assert found(zipped({})) == []


def test_what_is_read_is_what_a_file_would_give(found: Callable[..., list[Item]]) -> None:
    (item,) = found(zipped({"a.png": PNG}))
    spec = PreprocessSpec(16)
    assert np.array_equal(read_frames(item.source(), spec)[0], read_frames(PNG, spec)[0])  # type: ignore[operator]


def test_entries_are_read_by_several_threads(found: Callable[..., list[Item]]) -> None:
    rng = np.random.default_rng(0)
    files = {f"{n:03}.png": rng.bytes(20_000) for n in range(60)}
    items, wrong = found(zipped(files)), []

    def work(start: int) -> None:
        for place in range(len(items)):
            item = items[(place + start) % len(items)]
            if outcome(item) != files[item.name.removeprefix("pack.zip/")]:
                wrong.append(item.name)

    in_threads(work, [7 * n for n in range(8)])
    assert len(items) == 60 and not wrong


def test_reading_is_lazy_and_the_file_is_closed(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({f"{n}.png": PNG for n in range(9)}))
    handles = "/proc/self/fd"
    if not os.path.isdir(handles):
        pytest.skip("no /proc here")
    before = len(os.listdir(handles))
    items = list(find_items(tmp_path / "a.zip"))
    assert len(os.listdir(handles)) == before + 1 and [outcome(item) for item in items] == [PNG] * 9
    items.clear()
    assert len(os.listdir(handles)) == before


@pytest.mark.parametrize(
    "name", ["../up.png", "/etc/passwd", "a/../../b.png", "..\\up.png", "C:\\x.png", "\\\\host\\x.png"]
)
def test_names_that_lead_outside_are_error_rows(found: Callable[..., list[Item]], name: str) -> None:
    items = found(zipped({name: PNG, "ok.png": PNG}))
    assert sorted(map(outcome, items), key=str)[::-1] == [
        "leads outside of the archive; expected a relative path without ..; pack it again", PNG,
    ]  # fmt: skip
    assert {item.name for item in items} == {f"pack.zip/{name}", "pack.zip/ok.png"}


def test_encrypted_entries(found: Callable[..., list[Item]]) -> None:
    data = bytearray(zipped({"a.png": PNG, "b.png": PNG}))
    data[data.index(b"PK\1\2") + 8] |= 1
    data[6] |= 1
    assert [outcome(item) for item in found(bytes(data))] == [
        "is encrypted; expected an archive without a password; unpack it first", PNG,
    ]  # fmt: skip


def test_archives_inside_archives(found: Callable[..., list[Item]]) -> None:
    inner = zipped({"in/x.png": PNG})
    data = zipped({"a.png": PNG, "more/inner.zip": inner, "sly.png": inner})
    items = found(data)
    assert [outcome(item) for item in items] == [
        PNG, "is an archive inside an archive; expected pictures in it; unpack the outer one first", inner,
    ]  # fmt: skip
    with pytest.raises(KcdpError, match=r"sly\.png is a ZIP archive"):
        read_frames(inner, PreprocessSpec(8), name="sly.png")
    items = found(data, limits=Limits(archive_nesting=1), include=["*/x.png", "a*"])
    assert [item.name for item in items] == ["pack.zip/a.png", "pack.zip/more/inner.zip/in/x.png"]
    assert outcome(items[1]) == PNG
    twice = zipped({"b.zip": data})
    assert [item.name for item in found(twice, limits=Limits(archive_nesting=1))] == [
        "pack.zip/b.zip/a.png", "pack.zip/b.zip/more/inner.zip", "pack.zip/b.zip/sly.png",
    ]  # fmt: skip
    (item,) = found(zipped({"b.zip": b"PK\3\4 no archive"}), limits=Limits(archive_nesting=1))
    assert str(outcome(item)).startswith("is truncated or damaged (File is not a zip file)")


def test_bombs(found: Callable[..., list[Item]]) -> None:
    data = zipped({"a.png": PNG, "bomb.png": bytes(50 << 20)})
    assert [outcome(item) for item in found(data)] == [
        PNG, "unpacks to more than 200 times its size; expected a picture; leave it out",
    ]  # fmt: skip
    assert [outcome(item) for item in found(data, limits=Limits(archive_bytes=50 << 20))] == [
        f"unpacks to {(50 << 20) + len(PNG):,} bytes; expected at most 52,428,800; split it, or unpack it first"
    ]
    assert outcome(found(data, limits=Limits(file_bytes=1 << 20))[1]) == (
        "has 52,428,800 bytes; expected at most 1,048,576; make it smaller first"
    )
    many = zipped({f"{n}.png": b"" for n in range(11)})
    assert [outcome(item) for item in found(many, limits=Limits(archive_entries=10))] == [
        "has too many entries; expected at most 10; split it"
    ]
    assert len(found(many, limits=Limits(archive_entries=11))) == 11
    long = zipped({"x" * 60_000 + f"{n}.png": b"" for n in range(9)})
    assert [outcome(item) for item in found(long, limits=Limits(archive_entries=10))] == [
        "has too many entries; expected at most 10; split it"
    ]


def test_an_entry_that_is_larger_than_it_says(found: Callable[..., list[Item]]) -> None:
    """The sizes in both headers say 100 bytes; a hundred million would come out."""
    data = bytearray(zipped({"bomb.png": bytes(100_000_000)}))
    for start, offset in ((0, 22), (data.index(b"PK\1\2"), 24)):
        data[start + offset : start + offset + 4] = struct.pack("<I", 100)
    (item,) = found(bytes(data))
    assert str(outcome(item)).startswith("is truncated or damaged (Bad CRC-32")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_bounds_are_refused(found: Callable[..., list[Item]], method: int) -> None:
    (item,) = found(zipped({"a.png": PNG}, method))
    assert outcome(item) == f"is packed by method {method}; expected stored or deflated; pack it again"


def test_damaged_archives_are_one_error_row(found: Callable[..., list[Item]]) -> None:
    data = zipped({"a.png": PNG, "b.png": PNG})
    for cut in (10, len(data) // 2, len(data) - 5):
        (item,) = found(data[:cut])
        assert str(outcome(item)).startswith("is truncated or damaged (") and item.name == "pack.zip"
    wrong = bytearray(data)
    wrong[60] ^= 0xFF
    first, second = found(bytes(wrong))
    assert str(outcome(first)).startswith("is truncated or damaged (") and outcome(second) == PNG


def test_no_archive_under_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"hello")
    (tmp_path / "b.zip").mkdir()
    (tmp_path / "c.zip").write_bytes(PNG)
    items = list(find_items(tmp_path))
    assert [(item.name, item.source) for item in items] == [(str(tmp_path / n),) * 2 for n in ("a.zip", "c.zip")]


def test_an_archive_is_told_by_its_content_where_it_is_named(tmp_path: Path) -> None:
    for name in ("pack.wastickers", "pack.bin"):
        (tmp_path / name).write_bytes(zipped({"a.png": PNG}))
        assert [item.name for item in find_items(tmp_path / name)] == [f"{tmp_path / name}/a.png"]
    assert [item.name for item in find_items(tmp_path)] == [f"{tmp_path}/pack.wastickers/a.png"]


def test_an_archive_that_cannot_be_read_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"a.png": PNG}))
    monkeypatch.setattr("kcdp.runtime.media.archives.is_archive", lambda path: True)
    monkeypatch.setattr("kcdp.runtime.media.expansion.is_archive", lambda path: True)
    (item,) = find_items(tmp_path / "gone.zip")
    assert str(item.error) == f"{tmp_path / 'gone.zip'} does not exist; expected a picture file"
    (item,) = find_items(tmp_path / "a.zip")
    stream = io.BytesIO(item.source())  # type: ignore[operator]
    assert stream.getvalue() == PNG
