"""Pictures in folders by emotion: nothing is overwritten, nothing leaves the folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kcdp.errors import KcdpError
from kcdp.runtime.items import Item
from kcdp.runtime.sorting import Sorter, safe_name
from kcdp.runtime.tagger import Tag


def tag(item: Item, label: str = "happy", error: str | None = None) -> Tag:
    return Tag(item.name, None if error else label, None if error else 0.5, {}, error)


def file(path: Path, content: bytes) -> Item:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return Item(str(path), str(path))


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("link", [False, True])
def test_folders_names_and_collisions(tmp_path: Path, link: bool) -> None:
    items = [file(tmp_path / name / "a.b.png", content) for name, content in (("x", b"1"), ("y", b"2"), ("z", b"1"))]
    sorter = Sorter(str(tmp_path / "sorted"), link=link)
    for item in (*items, items[0]):
        sorter.add(item, tag(item))
    sorter.add(items[1], tag(items[1], "unsure"))
    sorter.add(items[2], tag(items[2], error="broken"))
    expected = {"happy/a.b.png": b"1", "happy/a.b (2).png": b"2", "unsure/a.b.png": b"2", "failed/a.b.png": b"1"}
    assert tree(tmp_path / "sorted") == dict(sorted(expected.items()))
    assert sorter.told() == [f"sorted into {tmp_path / 'sorted'}: happy 4, unsure 1, failed 1"]
    assert os.path.samefile(items[0].name, tmp_path / "sorted/happy/a.b.png") is link
    assert not list(tmp_path.rglob(".kcdp-*"))


def test_again_changes_nothing_and_times_are_kept(tmp_path: Path) -> None:
    item = file(tmp_path / "a.png", b"1")
    os.utime(item.name, ns=(10**18, 10**18))
    for _ in range(2):
        Sorter(str(tmp_path / "sorted")).add(item, tag(item))
    assert tree(tmp_path / "sorted") == {"happy/a.png": b"1"}
    assert (tmp_path / "sorted/happy/a.png").stat().st_mtime_ns == 10**18
    own = Item(str(tmp_path / "sorted/happy/a.png"), str(tmp_path / "sorted/happy/a.png"))
    Sorter(str(tmp_path / "sorted")).add(own, tag(own))
    assert tree(tmp_path / "sorted") == {"happy/a.png": b"1"}


def test_what_is_missing_makes_no_folder(tmp_path: Path) -> None:
    sorter, item = Sorter(str(tmp_path / "sorted")), Item("gone.png", str(tmp_path / "gone.png"))
    sorter.add(item, tag(item, error="gone.png does not exist"))
    array = Item("<array 0>", np.zeros((2, 2, 3), np.uint8))
    sorter.add(array, tag(array))
    assert not (tmp_path / "sorted").exists()
    assert sorter.told()[1:] == ["pictures that are no files, not sorted: 1"]


def test_entries_are_copied_out_under_safe_names(tmp_path: Path) -> None:
    sorter = Sorter(str(tmp_path / "sorted"))
    names = ("p.zip/a/wave.png", "p.zip/b/wave.png", "p.zip/../../../etc/passwd", "p.zip/..", "p.zip/a\\..\\b.png")
    for number, name in enumerate(names):
        item = Item(name, lambda number=number: bytes([number]))  # type: ignore[misc]
        sorter.add(item, tag(item))
    assert tree(tmp_path) == {
        "sorted/happy/__": b"\3", "sorted/happy/b.png": b"\4", "sorted/happy/passwd": b"\2",
        "sorted/happy/wave (2).png": b"\1", "sorted/happy/wave.png": b"\0",
    }  # fmt: skip
    def broken() -> bytes:
        raise KcdpError("p.zip is damaged")

    item = Item("p.zip/c.png", broken)
    sorter.add(item, tag(item, error="p.zip is damaged"))
    with pytest.raises(KcdpError, match=r"p\.zip is damaged"):
        sorter.add(item, tag(item))
    item = Item("p.zip/wave.png", lambda: b"")
    with pytest.raises(KcdpError, match=r"p\.zip/wave\.png is no file that could be linked; leave out --link to copy"):
        Sorter(str(tmp_path / "sorted"), link=True).add(item, tag(item))


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("a.png", "a.png"), ("z/日本 😀.webp", "日本 😀.webp"), ("z/a:b?.png", "a_b_.png"), ("z/\x1b\n\udcff", "___"),
        ("z/.hidden", "_hidden"), ("z/con.png", "_con.png"), ("z/NUL", "_NUL"), ("", "picture"), ("///", "picture"),
        ("z/dots...", "dots_"), ("z/\u202egnp.png", "_gnp.png"),
    ],
)  # fmt: skip
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_long_names_are_cut_and_keep_their_ending() -> None:
    name = safe_name("z/" + "日" * 300 + ".png")
    assert name.endswith(".png") and len(name.encode()) < 255


def test_what_cannot_be_linked_is_an_error_not_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    item = file(tmp_path / "a.png", b"1")
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(KcdpError) as caught:
        Sorter(str(tmp_path / "sorted"), link=True).add(item, tag(item))
    place = tmp_path / "sorted" / "happy"
    reason = "(Invalid cross-device link); leave out --link to copy"
    assert str(caught.value) == f"{item.name} cannot be linked into {place} {reason}"
    assert tree(tmp_path / "sorted") == {}


def test_a_file_system_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    items = [file(tmp_path / name / "a.png", content) for name, content in (("x", b"1"), ("y", b"2"), ("z", b"2"))]
    sorter = Sorter(str(tmp_path / "sorted"))
    for item in items:
        sorter.add(item, tag(item))
    assert tree(tmp_path / "sorted") == {"happy/a (2).png": b"2", "happy/a.png": b"1"}


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    item = file(tmp_path / "a.png", b"1")
    file(tmp_path / "sorted" / "happy", b"")
    with pytest.raises(KcdpError, match=r"cannot make the folder .*happy: File exists; choose another place"):
        Sorter(str(tmp_path / "sorted")).add(item, tag(item))
