"""Paths, folders, patterns and names on standard input become items, in a settled order."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from sticker_files import encoded, gradient, zipped

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.runtime import Tagger, find_items, find_pictures
from kcdp.runtime.walk import names_on

PNG = encoded(gradient("RGBA"), "PNG")


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("s/b.PNG", "s/a.webp", "s/c.tgs", "s/d.webm", "s/e.heic", "s/f.avif", "s/notes.txt", "s/.hidden.png",
                 "s/sub/g.gif", "s/sub/deep/h.bmp", "s/.u/i.png"):  # fmt: skip
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("s/pack.zip").write_bytes(zipped({"x.png": PNG, "in/y.webp": PNG, "z.txt": b""}))


def names(paths: Any, **options: Any) -> list[str]:
    return [item.name for item in find_items(paths, **options)]


FLAT = [
    "s/a.webp",
    "s/b.PNG",
    "s/c.tgs",
    "s/d.webm",
    "s/e.heic",
    "s/f.avif",
    "s/pack.zip/in/y.webp",
    "s/pack.zip/x.png",
]


def test_folders_files_and_archives() -> None:
    assert names("s") == names(Path("s")) == names(["s"]) == FLAT
    assert names("s", recursive=True) == [*FLAT, "s/sub/deep/h.bmp", "s/sub/g.gif"]
    assert names(["s/notes.txt", "./missing.png", "s/.hidden.png", "s/.u", "s/sub", "s/sub"]) == [
        "s/notes.txt", "./missing.png", "s/.hidden.png", "s/.u/i.png", "s/sub/g.gif", "s/sub/g.gif",
    ]  # fmt: skip
    assert names([]) == []
    items = list(find_items("s"))
    assert items[0].source == "s/a.webp" and items[-1].source() == PNG and all(item.error is None for item in items)  # type: ignore[operator]


def test_links_are_kept_and_folders_behind_them_left_out() -> None:
    Path("s/sub/broken.jpg").symlink_to("nowhere")
    Path("s/sub/loop").symlink_to("../../s")
    assert names("s/sub", recursive=True) == ["s/sub/broken.jpg", "s/sub/deep/h.bmp", "s/sub/g.gif"]
    assert names("s/sub/loop/sub") == ["s/sub/loop/sub/broken.jpg", "s/sub/loop/sub/g.gif"]


def test_patterns_that_no_shell_has_expanded() -> None:
    assert names("s/*.[tw]*") == ["s/a.webp", "s/c.tgs", "s/d.webm", "s/notes.txt"]
    assert names("s/su?") == ["s/sub/g.gif"]
    assert names("s/**/*.gif") == ["s/sub/g.gif"]
    assert names("s/sub/**") == ["s/sub/deep/h.bmp", "s/sub/g.gif"]
    (item,) = find_items("s/*.tiff")
    assert str(item.error) == "s/*.tiff matches nothing; expected a pattern that matches files or folders"
    Path("s/odd[1].png").touch()
    assert names("s/odd[1].png") == ["s/odd[1].png"], "a file of that name is no pattern"


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"include": ["*.webp"]}, ["s/a.webp", "s/pack.zip/in/y.webp"]),
        ({"include": "*.webp"}, ["s/a.webp", "s/pack.zip/in/y.webp"]),
        ({"exclude": ["*.web?", "[c-f]*"]}, ["s/b.PNG", "s/pack.zip/x.png"]),
        ({"include": ["*.webp", "*.png"], "exclude": ["pack.zip/*"]}, ["s/a.webp"]),
        ({"include": ["sub/*"], "recursive": True}, ["s/sub/deep/h.bmp", "s/sub/g.gif"]),
        ({"exclude": ["*/in/*", "sub/deep/*", "?.*"], "recursive": True}, []),
        ({"include": ["s/*"]}, []),
    ],
)
def test_include_and_exclude(options: dict[str, Any], kept: list[str]) -> None:
    found = names("s", **options)
    assert found == kept


def test_include_and_exclude_hold_for_what_is_named() -> None:
    assert names(["s/a.webp", "s/c.tgs", "s/pack.zip"], exclude=["*.webp"]) == ["s/c.tgs", "s/pack.zip/x.png"]
    for wrong in ([3], [""], 7):
        with pytest.raises((KcdpError, TypeError)):
            find_items("s", include=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"s/a.webp\ns/sub\n", ["s/a.webp", "s/sub/g.gif"]),
        (b"s/a.webp\r\n\r\ns/c.tgs", ["s/a.webp", "s/c.tgs"]),
        (b"s/a.webp\0odd\nname.png\0", ["s/a.webp", "odd\nname.png"]),
        (b"s/pack.zip\0", ["s/pack.zip/in/y.webp", "s/pack.zip/x.png"]),
        (b"-\n*.png\n", ["-", "*.png"]),
        (b"", []),
    ],
)
def test_names_on_standard_input(data: bytes, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert names(["-"]) == expected
    assert names("-") == [], "it is read once"


def test_names_are_taken_as_they_come() -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb", buffering=0) as other:
        found = names_on(stream)
        other.write(b"first.png\nseco")
        assert next(found) == "first.png"
        other.write(b"nd.png\n")
        assert next(found) == "second.png"
    with pytest.raises(KcdpError, match="a name on standard input is too long; expected names, one a line or sep"):
        list(names_on(io.BytesIO(b"x" * 200_000)))


def test_many_paths_are_taken_one_by_one() -> None:
    taken: list[int] = []

    def paths() -> Iterable[str]:
        for number in range(1000):
            taken.append(number)
            yield f"{number}.png"

    items = find_items(paths())
    assert not taken and next(items).name == "0.png" and taken == [0]


def test_a_folder_that_cannot_be_read_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refuse)
    assert names("s") == list(find_pictures("s")) == ["s"]


def test_a_very_deep_folder(tmp_path: Path) -> None:
    handles = [os.open(tmp_path, os.O_RDONLY)]
    for _ in range(400):
        os.mkdir("d", dir_fd=handles[-1])
        handles.append(os.open("d", os.O_RDONLY, dir_fd=handles[-1]))
    os.close(os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=handles[-1]))
    for handle in handles:
        os.close(handle)
    assert names("d", recursive=True) == ["d/" * 400 + "x.png"]


def test_the_tagger_reads_what_was_found(tiny_bundle: Bundle) -> None:
    Path("s/a.webp").write_bytes(PNG)
    with Tagger.load(tiny_bundle.path, threads=1) as tagger:
        tags = tagger.tag(find_items("s", include=["*.webp", "*.png", "*.tgs"]))
    assert [tag.path for tag in tags] == ["s/a.webp", "s/c.tgs", "s/pack.zip/in/y.webp", "s/pack.zip/x.png"]
    assert [tag.error for tag in tags] == [
        None, "s/c.tgs is empty (0 bytes); expected a picture file; copy it again", None, None,
    ]  # fmt: skip
    assert len({str(tag.scores) for tag in tags if not tag.error}) == 1 and [tag.frames for tag in tags] == [1, 0, 1, 1]
