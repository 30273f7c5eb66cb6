"""Files and folders are whole or not there, and no failure leaves anything behind."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import kcdp.files
from kcdp.errors import KcdpError
from kcdp.files import (
    atomic_file,
    atomic_folder,
    check_writable,
    make_folder,
    new_folder,
    read_json,
    room_in,
    sha256_file,
    write_json,
)


class Boom(Exception):
    """What the writer under test runs into."""


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def put(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def put_folder(path: Path, text: str, **options) -> None:
    with atomic_folder(path, **options) as temporary:
        (temporary / "marker").write_text(text)


def names(folder: Path) -> list[str]:
    """Everything in a folder, hidden files included."""
    return sorted(os.listdir(folder))


@pytest.fixture
def umask():
    before = os.umask(0o027)
    yield 0o027
    os.umask(before)


# --- one file ---------------------------------------------------------------------------------------------------------


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with atomic_file(path) as temporary:
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and names(path.parent) == ["a.txt"]


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    put(path, "new")
    assert path.read_text() == "new" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_an_exception_before_the_first_file_leaves_nothing(tmp_path):
    with pytest.raises(Boom), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise Boom
    assert names(tmp_path) == []


def test_a_killed_process_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = (
        "import os, sys; from kcdp.files import atomic_file\n"
        "with atomic_file(sys.argv[1]) as temporary:\n"
        "    temporary.write_text('half'); os._exit(9)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True)
    assert done.returncode == 9 and path.read_text() == "old"


def test_an_operating_system_error_in_the_block_is_one_line(tmp_path):
    def write():
        with atomic_file(tmp_path / "a.txt"):
            raise OSError(28, "No space left on device")

    message = fails(write)
    assert message == (
        f"writing {tmp_path / 'a.txt'} failed (No space left on device); free some space or choose another place"
    )
    assert names(tmp_path) == []


def test_other_exceptions_keep_their_type(tmp_path):
    with pytest.raises(KcdpError, match=r"^mine$"), atomic_file(tmp_path / "a.txt"):
        raise KcdpError("mine")


def test_a_writer_that_writes_nothing_makes_an_empty_file_and_one_that_removes_it_fails(tmp_path):
    with atomic_file(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").read_bytes() == b""

    def remove():
        with atomic_file(tmp_path / "gone") as temporary:
            temporary.unlink()

    assert fails(remove).startswith(f"writing {tmp_path / 'gone'} failed (")
    assert names(tmp_path) == ["empty"]


def test_permissions_are_those_of_any_new_file(tmp_path, umask):
    put(tmp_path / "a.txt", "x")
    put_folder(tmp_path / "folder", "x")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("write", [put, put_folder])
def test_below_a_file(tmp_path, write):
    (tmp_path / "file").write_text("x")
    message = fails(lambda: write(tmp_path / "file" / "below" / "a", "y"))
    assert message == f"cannot make the folder {tmp_path / 'file' / 'below'}: Not a directory; choose another place"
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("write", [put, put_folder])
def test_a_name_that_is_too_long(tmp_path, write):
    longest = "\N{GRINNING FACE}" * 63 + "n" * 3  # 255 bytes: a name as long as names may be
    write(tmp_path / longest, "x")
    path = tmp_path / f"{longest}n"
    assert fails(lambda: write(path, "y")) == f"writing {path} failed (File name too long); choose a shorter name"
    assert names(tmp_path) == [longest]


@pytest.mark.parametrize("write", [put, put_folder])
def test_a_folder_that_cannot_be_written_to(tmp_path, monkeypatch, write):
    """The operating system's refusal is made up: root, under whom tests may run, is never refused."""

    def refuse(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kcdp.files.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(kcdp.files.tempfile, "mkdtemp", refuse)
    message = fails(lambda: write(tmp_path / "a", "y"))
    assert message.startswith(f"writing {tmp_path / 'a'} failed (Permission denied)")


def test_a_folder_or_a_device_in_the_way_of_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    assert fails(lambda: put(tmp_path / "folder", "x")) == (
        f"{tmp_path / 'folder'} is a folder; expected the name of a file"
    )
    assert fails(lambda: put(Path("/dev/null"), "x")) == "/dev/null is not a regular file; expected the name of a file"
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_a_symbolic_link_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    put(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert names(tmp_path) == ["link.txt", "real"] and names(tmp_path / "real") == ["a.txt"]


def test_a_symbolic_link_to_nothing_makes_its_target(tmp_path):
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "target.txt")
    put(link, "new")
    assert link.is_symlink() and (tmp_path / "target.txt").read_text() == "new"


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "folder"
    with atomic_folder(path) as temporary:
        (temporary / "a").write_text("x")
        assert not path.exists()
    assert names(path) == ["a"] and names(path.parent) == ["folder"]


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_an_exception_leaves_the_folder_as_it_was(tmp_path, error, exists):
    path = tmp_path / "folder"
    if exists:
        put_folder(path, "old")
    with pytest.raises(error), atomic_folder(path, overwrite=True, marker="marker") as temporary:
        (temporary / "marker").write_text("half")
        raise error
    assert names(tmp_path) == (["folder"] if exists else [])
    assert not exists or (path / "marker").read_text() == "old"


def test_an_existing_folder_is_replaced_only_when_asked_to(tmp_path):
    path = tmp_path / "folder"
    put_folder(path, "old")
    (path / "more").write_text("x")
    message = fails(lambda: put_folder(path, "new"))
    assert message == f"{path} exists already; expected a new name; choose another --out or add --overwrite"
    assert (path / "marker").read_text() == "old"
    put_folder(path, "new", overwrite=True, marker="marker")
    assert names(path) == ["marker"] and (path / "marker").read_text() == "new" and names(tmp_path) == ["folder"]


def test_a_folder_that_appeared_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(KcdpError, match="exists already"), atomic_folder(path, marker="a") as temporary:
        (temporary / "a").write_text("mine")
        path.mkdir()
        (path / "a").write_text("theirs")
    assert (path / "a").read_text() == "theirs" and [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_whether_a_place_can_be_written_is_known_before(tmp_path):
    check_writable(tmp_path / "new" / "deeper")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KcdpError, match=r"writing /proc/x failed \(.*\); choose another place$"):
        check_writable(Path("/proc/x"))
    check_writable(tmp_path / "new" / ("n" * 255))
    too_long = tmp_path / "new" / ("n" * 256)
    message = fails(lambda: check_writable(too_long))
    assert message == f"writing {too_long} failed (File name too long); choose a shorter name"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("marker", ["other", ("marker", "other"), ()])
def test_a_folder_that_something_else_made_is_never_replaced(tmp_path, marker):
    path = tmp_path / "folder"
    put_folder(path, "precious")
    message = fails(lambda: put_folder(path, "new", overwrite=True, marker=marker))
    found = "other" if marker else "known content"
    assert message == (
        f"{path} exists and holds no {found}; expected a folder that kcdp made; choose another --out; other folders "
        "are never overwritten"
    )
    assert (path / "marker").read_text() == "precious"


def test_a_link_in_a_circle_is_told_before_anything_is_written(tmp_path):
    (tmp_path / "circle").symlink_to("circle")
    message = fails(lambda: put_folder(tmp_path / "circle", "new"))
    assert message == (
        f"{tmp_path / 'circle'} is a link that leads in a circle; expected a new name; choose another --out"
    )
    assert names(tmp_path) == ["circle"]


def test_a_file_in_the_way_of_a_folder_is_never_replaced(tmp_path):
    path = tmp_path / "a"
    path.write_text("precious")
    for overwrite in (False, True):
        fails(lambda on=overwrite: put_folder(path, "new", overwrite=on, marker="marker"))
    assert path.read_text() == "precious" and names(tmp_path) == ["a"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    path = tmp_path / "folder"
    put_folder(path, "old")
    replace = Path.replace

    def refuse(self, target):
        if self.suffix == ".tmp":
            raise OSError(5, "Input/output error")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    assert "Input/output error" in fails(lambda: put_folder(path, "new", overwrite=True, marker="marker"))
    assert (path / "marker").read_text() == "old" and names(tmp_path) == ["folder"]


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    link = tmp_path / "link"
    put_folder(tmp_path / "real", "old")
    link.symlink_to(tmp_path / "real")
    put_folder(link, "new", overwrite=True, marker="marker")
    assert link.is_symlink() and (tmp_path / "real" / "marker").read_text() == "new"


# --- what was made on the way, and full disks -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("write", [atomic_file, atomic_folder])
def test_folders_that_were_made_for_a_failure_go_again(tmp_path, write, error):
    (tmp_path / "there").mkdir()
    with pytest.raises(error), write(tmp_path / "there" / "a" / "b" / "c"):
        assert (tmp_path / "there" / "a" / "b").is_dir()
        raise error
    assert names(tmp_path) == ["there"] and names(tmp_path / "there") == []


def test_folders_that_hold_something_else_by_then_stay(tmp_path):
    with pytest.raises(Boom), new_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "mine").write_text("precious")
        raise Boom
    assert names(tmp_path / "a") == ["mine"]
    with pytest.raises(Boom), new_folder(tmp_path / "a"):
        (tmp_path / "a" / "mine").unlink()
        raise Boom
    assert names(tmp_path) == ["a"], "it was there before"
    with pytest.raises(Boom), new_folder(tmp_path / "x" / ".." / "c"):
        assert names(tmp_path) == ["a", "c"]
        raise Boom
    assert names(tmp_path) == ["a"]
    with pytest.raises(KcdpError, match="cannot make the folder"), new_folder(tmp_path / "d" / ("n" * 300)):
        pytest.fail("made")
    assert names(tmp_path) == ["a"], "made by halves"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_in_one_line(tmp_path, number):
    def write(needed):
        with room_in(tmp_path, "set TMPDIR", needed):
            raise OSError(number, os.strerror(number))

    free = "" if number == errno.EFBIG else r", \d+ MB are free"
    start = rf"^writing to {tmp_path} failed \({os.strerror(number)}{free}\); "
    assert re.match(rf"{start}expected room for about 5 MB; set TMPDIR$", fails(lambda: write(5_000_000)))
    assert re.match(rf"{start}set TMPDIR$", fails(lambda: write(0)))


def test_what_is_no_full_disk_stays_what_it_is(tmp_path):
    for error in (PermissionError(13, "Permission denied"), OSError("something else"), ValueError("no number")):
        with pytest.raises(type(error)) as caught, room_in(tmp_path, "set TMPDIR"):
            raise error
        assert caught.value is error


def test_numpy_on_a_full_disk(tmp_path):
    """It gives no number of an error."""

    def write():
        with room_in(tmp_path, "set TMPDIR"), open("/dev/full", "wb", buffering=0) as full:
            np.zeros(1 << 20, np.uint8).tofile(full)

    assert fails(write).startswith(f"writing to {tmp_path} failed (No space left on device, ")


# --- JSON and hashes --------------------------------------------------------------------------------------------------


def test_json_round_trip_in_utf_8(tmp_path):
    path = tmp_path / "a.json"
    data = {"b": [1, 2.5, None, True], "a": "Überraschung 😮"}
    write_json(path, data)
    assert read_json(path) == data and list(read_json(path)) == ["b", "a"]
    assert path.read_bytes().endswith(b"\n") and "Überraschung 😮".encode() in path.read_bytes()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_has_no_nan_and_no_infinities(tmp_path, value):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(ValueError):
        write_json(path, {"x": [value]})
    assert read_json(path) == {"x": 1} and names(tmp_path) == ["a.json"]


def test_what_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"x": 1})
    with pytest.raises(TypeError):
        write_json(path, {"x": Path("y")})
    assert read_json(path) == {"x": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"{'a': 1}", b'{"a": 1}}', b"\xff\xfe", b"[" * 200_000])
def test_a_file_that_is_not_json(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    message = fails(lambda: read_json(path))
    assert message.startswith(f"{path} is not valid JSON (") and message.endswith("; expected a JSON file")


def test_a_json_file_that_is_missing_or_a_folder(tmp_path):
    assert fails(lambda: read_json(tmp_path / "no")) == f"{tmp_path / 'no'} does not exist; expected a JSON file"
    assert fails(lambda: read_json(tmp_path)) == f"{tmp_path} cannot be read (Is a directory); expected a JSON file"


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sha256(tmp_path, size):
    path = tmp_path / "a"
    data = bytes(range(256)) * (size // 256 + 1)
    path.write_bytes(data[:size])
    assert sha256_file(path) == hashlib.sha256(data[:size]).hexdigest()
    with path.open("rb") as handle:  # Python 3.10 has no hashlib.file_digest
        assert kcdp.files._sha(handle) == hashlib.sha256(data[:size]).hexdigest()


def test_make_folder(tmp_path):
    for _ in range(2):  # twice: one that is there is fine
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").write_text("")
    message = fails(lambda: make_folder(tmp_path / "file"))
    assert message == f"cannot make the folder {tmp_path / 'file'}: File exists; choose another place"
