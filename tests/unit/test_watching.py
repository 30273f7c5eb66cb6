"""Folders that are watched: what is given out, when, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

import kcdp
from kcdp.bundle import Bundle
from kcdp.runtime.__main__ import main
from kcdp.runtime.items import Item
from kcdp.runtime.sources import find_pictures
from kcdp.runtime.watching import QUIET, Watcher, rounds, stop_on_signals

REPOSITORY = Path(kcdp.__file__).parents[1]


class Clock:
    """Seconds that pass only when they are told to; files are as old as it says."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def put(path: Path, content: bytes, age: float = 0.0, clock: Clock | None = None) -> None:
    path.write_bytes(content)
    moment = int(1e9 * ((clock.seconds if clock else time.time()) - age))
    os.utime(path, ns=(moment, moment))


@pytest.fixture()
def clock() -> Clock:
    return Clock()


@pytest.fixture()
def watch(tmp_path: Path, clock: Clock) -> Callable[..., Watcher]:
    def make(**options: object) -> Watcher:
        def find() -> Iterator[Item]:
            return (Item(name, name) for name in find_pictures(tmp_path, recursive=True))

        return Watcher(find, clock=clock, now=clock, **options)  # type: ignore[arg-type]

    return make


def names(items: list[Item]) -> list[str]:
    return [Path(item.name).name for item in items]


def test_first_what_is_there_then_what_arrives(tmp_path: Path, clock: Clock, watch: Callable[..., Watcher]) -> None:
    put(tmp_path / "b.png", b"1", age=60, clock=clock)
    put(tmp_path / "a.png", b"1", age=60, clock=clock)
    watcher = watch()
    assert names(watcher.look()) == ["a.png", "b.png"] and watcher.look() == []
    put(tmp_path / "c.png", b"1", clock=clock)
    assert watcher.look() == []
    clock.seconds += QUIET - 0.01
    assert watcher.look() == []
    clock.seconds += 0.01
    assert names(watcher.look()) == ["c.png"]
    clock.seconds += 100
    assert watcher.look() == []


def test_a_file_that_still_grows_is_not_given_out(tmp_path: Path, clock: Clock, watch: Callable[..., Watcher]) -> None:
    put(tmp_path / "a.png", b"1", clock=clock)
    watcher = watch()
    for length in range(2, 8):
        assert watcher.look() == []
        clock.seconds += QUIET * 0.8
        put(tmp_path / "a.png", b"1" * length, clock=clock)
    assert watcher.look() == []
    clock.seconds += QUIET
    assert names(watcher.look()) == ["a.png"]


def test_renames_replacements_and_returns(tmp_path: Path, clock: Clock, watch: Callable[..., Watcher]) -> None:
    put(tmp_path / "a.png", b"1", age=60, clock=clock)
    watcher = watch()

    def later() -> list[str]:
        watcher.look()
        clock.seconds += QUIET
        return names(watcher.look())

    assert names(watcher.look()) == ["a.png"]
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert later() == ["b.png"], "a new name is a new row"
    put(tmp_path / "new.tmp", b"2", age=60, clock=clock)  # as old and as long as the file that it replaces
    (tmp_path / "new.tmp").replace(tmp_path / "b.png")
    assert later() == ["b.png"]
    (tmp_path / "b.png").unlink()
    assert later() == []
    put(tmp_path / "b.png", b"2", age=60, clock=clock)
    assert later() == ["b.png"]


def test_own_files_and_known_names(tmp_path: Path, clock: Clock, watch: Callable[..., Watcher]) -> None:
    for name in ("a.png", "b.png", "sheet.png"):
        put(tmp_path / name, b"1", age=60, clock=clock)
    watcher = watch(own=[str(tmp_path / "sheet.png")], known=frozenset({str(tmp_path / "a.png")}))
    assert names(watcher.look()) == ["b.png"]
    put(tmp_path / "sheet.png", b"22", age=60, clock=clock)
    put(tmp_path / "a.png", b"22", age=60, clock=clock)
    watcher.look()
    clock.seconds += QUIET
    assert names(watcher.look()) == ["a.png"], "known, but changed"


def test_what_is_no_file_is_given_out_once_and_an_entry_is_as_old_as_its_archive(
    tmp_path: Path, clock: Clock
) -> None:
    put(tmp_path / "p.zip", b"1", age=60, clock=clock)
    items = [Item("gone.png", "gone.png"), Item(str(tmp_path / "p.zip/a/b.png"), lambda: b"")]
    watcher = Watcher(lambda: items, clock=clock, now=clock)
    assert watcher.look() == items and watcher.look() == []
    put(tmp_path / "p.zip", b"22", clock=clock)
    assert watcher.look() == []
    clock.seconds += QUIET
    assert watcher.look() == items[1:]


def test_rounds_end_when_told() -> None:
    looks, naps = [], []
    found = [[], [Item("a", "a")], []]

    class Fake(Watcher):
        def look(self) -> list[Item]:
            looks.append(1)
            return found[len(looks) - 1]  # type: ignore[return-value]

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        time.sleep(0.3)

    assert list(rounds(Fake(list), lambda: len(looks) == 3, sleep)) == [[Item("a", "a")]]
    assert len(looks) == 3 and naps and max(naps) <= 0.25


def test_the_second_signal_interrupts(interrupts_are_heard: None) -> None:
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signals() as stopped:
        assert not stopped()
        signal.raise_signal(signal.SIGINT)
        assert stopped()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def lines_of(path: Path, count: int) -> list[str]:
    """The file's lines, as soon as there are so many."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        lines = path.read_text().splitlines() if path.exists() else []
        if len(lines) >= count:
            return lines
        time.sleep(0.05)
    raise AssertionError(f"{path} has {len(lines)} lines, {count} were awaited")


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_watching_is_taken_up_again(
    tmp_path: Path, tiny_bundle: Bundle, label_colours: dict[str, tuple[int, int, int]], form: str,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number, label in enumerate(("sad", "happy")):
        Image.new("RGB", (20, 20), label_colours[label]).save(tmp_path / "in" / f"{number}.png")

        end = time.monotonic() + 1.5  # long enough for rows that should not come

        @contextmanager
        def stop_then(end: float = end) -> Iterator[Callable[[], bool]]:
            yield lambda: time.monotonic() > end

        monkeypatch.setattr("kcdp.runtime.tag_run.stop_on_signals", stop_then)
        resume = ["--resume"] if number else []
        assert main(["in", "--model", str(tiny_bundle.path), "--watch", "--out", f"tags.{form}", *resume]) == 0
    assert [Path(line).name for line in names_in(tmp_path / f"tags.{form}", form)] == ["0.png", "1.png"]
    told = capfd.readouterr().err.splitlines()
    assert told[1::2] == [
        f"1 tagged, 0 failed; wrote tags.{form}", f"2 tagged, 0 failed (rows from before: 1); wrote tags.{form}"
    ]  # fmt: skip
    assert main(["in", "--model", str(tiny_bundle.path), "--watch", "--out", f"tags.{form}"]) == 2


def names_in(path: Path, form: str) -> list[str]:
    lines = path.read_text().splitlines()
    return [json.loads(line)["path"] for line in lines] if form == "jsonl" else [s.split(",")[0] for s in lines[1:]]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_the_command(
    tmp_path: Path, tiny_bundle: Bundle, label_colours: dict[str, tuple[int, int, int]], number: str
) -> None:
    def draw(path: Path, label: str) -> None:
        Image.new("RGB", (20, 20), label_colours[label]).save(path)

    inbox, out = tmp_path / "in", tmp_path / "in" / "tags.jsonl"
    inbox.mkdir()
    draw(inbox / "0.png", "sad")
    (inbox / "old.png").write_bytes(b"nothing")
    line = [sys.executable, "-m", "kcdp.runtime", str(inbox), "--watch", "--model", str(tiny_bundle.path), "--threads",
            "1", "--out", str(out), "--sheet", str(inbox / "sheet.png"), "--html", str(inbox / "page.html"),
            "--sort-into", str(tmp_path / "sorted"), "--sidecar", "json"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def heard() -> None:  # a shell may have told us to ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard
    ) as process:
        try:
            lines_of(out, 2)
            draw(inbox / "1.png", "anger")
            lines_of(out, 3)
            draw(tmp_path / "other.png", "fear")
            (tmp_path / "other.png").replace(inbox / "1.png")
            lines_of(out, 4)
            process.send_signal(getattr(signal, number))
            told, errors = process.communicate(timeout=20)
        finally:
            process.kill()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(Path(row["path"]).name, row["label"]) for row in rows] == [
        ("0.png", "sad"), ("old.png", None), ("1.png", "anger"), ("1.png", "fear"),
    ]  # fmt: skip
    assert (process.returncode, told) == (0, "")
    wrote = f"{out}, {inbox / 'sheet.png'} and {inbox / 'page.html'}"
    assert errors.splitlines() == [
        f"watching {inbox}; Ctrl-C ends", f"3 tagged, 1 failed; wrote {wrote}", "sidecars written: 3",
        f"sorted into {tmp_path / 'sorted'}: fear 1, sad 1, anger 1, failed 1",
    ]  # fmt: skip
    assert sorted(path.name for path in inbox.iterdir()) == [
        "0.png", "0.png.json", "1.png", "1.png.json", "old.png", "page.html", "sheet.png", "tags.jsonl",
    ]  # fmt: skip
