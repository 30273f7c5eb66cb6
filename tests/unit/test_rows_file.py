"""Rows that outlive an interrupt: FILE.partial, torn lines, and what is refused."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from kcdp.errors import KcdpError
from kcdp.labels import LABELS
from kcdp.runtime.earlier_rows import read_earlier
from kcdp.runtime.rows_file import RowsFile, partial
from kcdp.runtime.tagger import Tag

MODEL = "0123456789abcdef" * 4
SCORES = dict(zip(LABELS, (0.5, 0.1, 0.1, 0.1, 0.1, 0.1), strict=True))
NAMES = ("a.png", 'comma, "quote".png', "line\r\nfeed\n.png", "日本 \udcff.png")
FORMS = pytest.mark.parametrize("form", ["jsonl", "csv"])


def good(path: str) -> Tag:
    return Tag(path, "surprise", 0.5, SCORES, frames=1, spread=0.0)


def failed(path: str) -> Tag:
    return Tag(path, None, None, error=f"{path} is empty")


def interrupted(path: Path, form: str, tags: list[Tag], **options: bool) -> None:
    with pytest.raises(KeyboardInterrupt), RowsFile(str(path), form, MODEL, **options) as rows:
        for tag in tags:
            rows.write(tag)
        raise KeyboardInterrupt


def whole(path: Path, form: str, tags: list[Tag]) -> bytes:
    with RowsFile(str(path), form, MODEL) as rows:
        for tag in tags:
            rows.write(tag)
    return path.read_bytes()


@FORMS
def test_a_run_that_goes_on_makes_the_same_file(
    tmp_path: Path, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    tags = [*map(good, NAMES), failed("f.png")]
    expected, path = whole(tmp_path / "whole", form, tags), tmp_path / "rows"
    path.write_text("old")
    interrupted(path, form, tags[:2])
    told = f"kcdp: rows in {partial(path)}: 2; next: the same command with --resume\n"
    assert path.read_text() == "old" and capfd.readouterr().err == told
    with RowsFile(str(path), form, MODEL, resume=True) as rows:
        assert (rows.earlier.tagged, rows.earlier.failed, sorted(rows.earlier.paths)) == (2, 0, sorted(NAMES[:2]))
        for tag in tags[2:]:
            rows.write(tag)
    assert path.read_bytes() == expected and not partial(path).exists()


@FORMS
def test_wherever_a_file_was_torn_it_is_mended(tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)  # seven hundred times
    tags = [good(NAMES[2]), failed(NAMES[1]), good(NAMES[3])]
    data = whole(tmp_path / "whole", form, tags)
    path, seen = tmp_path / "rows", set()
    for length in range(len(data) + 1):
        partial(path).write_bytes(data[:length])
        with RowsFile(str(path), form, MODEL, resume=True, keep=True) as rows:
            count = rows.earlier.tagged + rows.earlier.failed
            assert [t for tag in tags[:count] for t in rows.earlier.tags[tag.path]] == tags[:count]
            for tag in tags[count:]:
                rows.write(tag)
        assert path.read_bytes() == data, length
        seen.add(count)
    assert seen == {0, 1, 2, 3}


@FORMS
def test_a_file_that_is_whole_is_gone_on_with(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows"
    whole(path, form, [good("a.png")])
    before = path.read_bytes()
    interrupted(path, form, [failed("b.png")], resume=True)
    assert path.read_bytes() == before, "until all is there"
    with RowsFile(str(path), form, MODEL, resume=True) as rows:
        assert (rows.earlier.tagged, rows.earlier.failed) == (1, 1)
        taken = [rows.earlier.take(name)[0] for name in ("a.png", "a.png", "b.png", "c.png")]
        assert taken == [True, False, True, False]
    assert path.read_bytes().startswith(before) and path.stat().st_size > len(before)


@FORMS
def test_rows_of_another_model_are_refused(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows"
    before = whole(path, form, [good("a.png")])
    with pytest.raises(KcdpError) as caught:
        RowsFile(str(path), form, "f" * 64, resume=True)
    assert str(caught.value) == (
        f"{path} holds rows of the model 0123456789ab; expected rows of ffffffffffff, of --model; choose another "
        f"--out, or delete {path}, or give the model that wrote it"
    )
    assert path.read_bytes() == before and not partial(path).exists()


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("csv", "path,label\r\na.png,sad\r\n", "begins with 'path,label'; expected the header path,label,confidence,"),
        ("csv", "my notes", "begins with b'my notes'; expected rows of kcdp tag as csv; choose another --out"),
        ("jsonl", '{"name": 1}', "begins with b'{\"name\": '; expected rows of kcdp tag as jsonl"),
        ("jsonl", '{"name": 1}\n', "begins with b'{\"name\": '; expected rows of kcdp tag as jsonl"),
        ("jsonl", '{"path": "a.p', ""),
        ("csv", "", ""),
        ("csv", "path,la", ""),
        ("csv", "GOOD" + "x,y\r\n" + "ROW", "line 2 of .* is not a row of kcdp tag; expected a file that an earlier"),
        ("jsonl", "GOOD" + "\n" + "ROW", "line 2 of .* is not a row of kcdp tag"),
        ("jsonl", "GOOD" + '{"path": "a.png"}\n' + "ROW", "line 2 of .* is not a row of kcdp tag"),
        ("jsonl", "GOOD" + "[1]\n", ""),
        ("jsonl", "GOOD" + "[" * 100_000 + "\n", ""),
        ("jsonl", "GOOD" + "\0" * 64, ""),
    ],
)  # fmt: skip
def test_files_of_something_else(tmp_path: Path, form: str, content: str, message: str) -> None:
    lines = whole(tmp_path / "whole", form, [good("a.png"), good("b.png")]).decode().splitlines(keepends=True)
    path = tmp_path / "rows"
    text = content.replace("GOOD", "".join(lines[:-1])).replace("ROW", lines[-1])
    path.write_text(text, newline="")
    if message:
        with pytest.raises(KcdpError, match=message):
            RowsFile(str(path), form, MODEL, resume=True)
        assert path.read_bytes() == text.encode()
    else:
        with RowsFile(str(path), form, MODEL, resume=True) as rows:
            rows.write(good("c.png"))
        found = read_earlier(path, form, MODEL)
        assert sorted(found.paths) == (["a.png", "c.png"] if "GOOD" in content else ["c.png"])


@FORMS
def test_what_is_left_of_an_earlier_run_is_not_lost(tmp_path: Path, form: str) -> None:
    path = tmp_path / "rows"
    interrupted(path, form, [good("a.png")])
    with pytest.raises(KcdpError) as caught:
        RowsFile(str(path), form, MODEL)
    assert str(caught.value) == (
        f"{partial(path)} is left from a run that did not end; add --resume to go on with it, or delete {partial(path)}"
    )
    path.write_text("x")
    with pytest.raises(KcdpError, match=r"rows is there already; add --resume to go on with its rows, or choose"):
        RowsFile(str(path), form, MODEL, append=True)


def test_an_interrupt_before_the_first_row_leaves_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    interrupted(tmp_path / "rows", "csv", [])
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == ""


@FORMS
def test_appended_rows_are_in_the_file_at_once(tmp_path: Path, form: str) -> None:
    path = tmp_path / "new" / "rows"
    for number in range(3):
        with RowsFile(str(path), form, MODEL, append=True, resume=number > 0) as rows:
            rows.write(good(f"{number}.png"))
            assert len(read_earlier(path, form, MODEL).paths) == number + 1
        assert [file.name for file in path.parent.iterdir()] == ["rows"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "rows"
    with pytest.raises(KcdpError) as caught, RowsFile(str(path), "jsonl", MODEL) as rows:
        rows.write(good("a.png"))
        monkeypatch.setattr(rows._writer, "write", full)
        rows.write(good("b.png"))
    place = "free some space or choose another place"
    assert str(caught.value) == f"writing {partial(path)} failed (No space left on device); {place}"
    assert list(read_earlier(partial(path), "jsonl", MODEL).paths) == ["a.png"]


def test_a_link_is_followed(tmp_path: Path, symlink: Callable[[Path, Path], None]) -> None:
    (tmp_path / "real").mkdir()
    symlink(tmp_path / "link", tmp_path / "real" / "rows")
    with RowsFile(str(tmp_path / "link"), "jsonl", MODEL) as rows:
        rows.write(good("a.png"))
        assert (tmp_path / "real" / "rows.partial").exists()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "rows").is_file()


@pytest.fixture()
def symlink() -> Callable[[Path, Path], None]:
    def make(path: Path, target: Path) -> None:
        try:
            path.symlink_to(target)
        except OSError:
            pytest.skip("no symbolic links here")

    return make


@FORMS
@pytest.mark.parametrize("append", [False, True])
def test_one_run_writes_a_file_at_a_time(tmp_path: Path, form: str, append: bool) -> None:
    """A second one would write over the first one's rows."""
    path = tmp_path / "rows"
    with RowsFile(str(path), form, MODEL, append=append) as rows:
        rows.write(good("a.png"))
        for resume in (True, False):
            with pytest.raises(KcdpError, match="is being written by another run; wait until it has ended"):
                RowsFile(str(path), form, MODEL, append=append, resume=resume)
        rows.write(good("b.png"))
    assert list(read_earlier(path, form, MODEL, keep=True).tags) == ["a.png", "b.png"]
    with RowsFile(str(path), form, MODEL, append=append, resume=True) as rows:
        rows.write(good("c.png"))
    assert path.read_bytes() == whole(tmp_path / "whole", form, [good("a.png"), good("b.png"), good("c.png")])
