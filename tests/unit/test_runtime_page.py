"""docs/runtime.md: its commands and its Python run, its rows are rows, and its options are those of the command."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path

import pytest
from PIL import Image

from kcdp.bundle import Bundle
from kcdp.cli import main
from kcdp.runtime.command import add_arguments
from kcdp.runtime.rows import COLUMNS, fields_of_cells, row, tag_of_row

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "runtime.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.S | re.M)


def commands() -> list[str]:
    lines = [line for block in blocks("sh") for line in block.splitlines() if "kcdp tag" in line]
    assert len(lines) > 7
    return lines


@pytest.fixture()
def folder(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, label_colours: dict[str, tuple[int, int, int]]
) -> Path:
    (tmp_path / "stickers").mkdir()
    for name, label in (("wave.png", "happy"), ("draft1.png", "sad")):
        Image.new("RGB", (20, 20), label_colours[label]).save(tmp_path / "stickers" / name)
    shutil.copy(tmp_path / "stickers" / "wave.png", tmp_path)
    shutil.copytree(tiny_bundle.path, tmp_path / "demo.kcdp")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", [line for line in commands() if not re.search(r"\||--watch|--min-confidence", line)])
def test_commands(folder: Path, line: str) -> None:
    words = shlex.split(line, comments=True)
    before = set(folder.rglob("*"))
    assert main(words[1:]) == 0
    made = {str(path.relative_to(folder)) for path in set(folder.rglob("*")) - before}
    promised = set(re.findall(r"\S+\.(?:jsonl|csv|html|xmp)\b|tags\.png|sorted/\S+\.png", line))
    assert promised <= made and not [name for name in made if name.endswith((".partial", ".tmp"))]


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
def test_pipes(folder: Path) -> None:
    (line,) = [line for line in commands() if "|" in line]
    line = line.replace("kcdp tag", f"{shlex.quote(sys.executable)} -m kcdp tag")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "2 tagged, 0 failed\n")
    assert sorted(line.split()[:2] for line in done.stdout.splitlines()[1:]) == [
        ["stickers/draft1.png", "sad"], ["stickers/wave.png", "happy"],
    ]  # fmt: skip


def test_python(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = blocks("python")
    assert len(sources) == 2
    for source in sources:
        exec(compile(source, "docs/runtime.md", "exec"), {})
    out = capsys.readouterr().out
    assert "stickers/wave.png happy 0." in out and "stickers/broken.png does not exist" in out
    (line,) = Path("own.jsonl").read_text().splitlines()
    assert main(["tag", "stickers/wave.png", "--model", "demo.kcdp", "--format", "jsonl"]) == 0
    assert capsys.readouterr().out == line + "\n"


def test_rows() -> None:
    (block,) = blocks("json")
    rows = [json.loads(line) for line in block.splitlines()]
    for fields in rows:
        assert row(tag_of_row(fields), fields["model"]) == fields
        assert list(fields) == list(row(tag_of_row(fields), "x"))
    assert [fields["error"] is None for fields in rows] == [True, False]
    table = PAGE.split("## Rows")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, flags=re.M)))
    assert named == list(rows[0]), "the table has each field, in the order of a row"
    assert set(fields_of_cells(["a", *[""] * (len(COLUMNS) - 1)])) == set(named)


def test_options_and_statuses() -> None:
    parser = ArgumentParser()
    add_arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    shown = set(re.findall(r"--[a-z][a-z-]*", PAGE))
    assert shown <= known and known - shown - {"-h", "--help"} <= {"--backend", "--include", "--threads"}
    assert parser.epilog is not None
    for status in re.findall(r"^\| (\d+) \|", PAGE, flags=re.M):
        assert re.search(rf"\b{status}\b", parser.epilog), status
