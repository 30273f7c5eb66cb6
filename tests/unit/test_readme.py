"""The README's file tree, commands and Python are those of the project."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from kcdp.cli import COMMANDS
from kcdp.data.registry import parse_spec
from kcdp.export.targets import Batch, choose
from kcdp.runtime import Tagger

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.S | re.M)
    assert fenced
    return [text for name, text in fenced if name == language]


def tree() -> dict[str, str]:
    (block,) = blocks("")
    return {name.strip(): text for name, text in (re.split(r"\s{2,}", line, maxsplit=1) for line in block.splitlines())}


def test_every_line_of_the_file_tree_exists():
    names = [part.strip() for line in tree() for part in line.split(",")]
    assert len(names) > 10
    for name in names:
        assert (ROOT / name).exists(), f"{name} is in the README's file tree only"


def test_every_folder_is_in_the_file_tree():
    shown = {name.rstrip("/").split("/")[0] for line in tree() for name in line.split(", ")}
    shown |= {".ci"}
    hidden = re.compile(r"^(\.git|\.venv|.*cache.*|build|dist|.*egg-info|demo.*|runs)$")
    here = {path.name for path in ROOT.iterdir() if path.is_dir() and not hidden.match(path.name)}
    assert here <= shown, f"not in the README's file tree: {here - shown}"
    packages = {f"kcdp/{path.parent.name}/" for path in ROOT.glob("kcdp/*/__init__.py")}
    assert packages <= set(tree())


def test_commands_are_real(capsys):
    import importlib
    from argparse import ArgumentParser

    seen = 0
    for line in "\n".join(blocks("sh")).splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in ("pip",):
            continue
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), line
            continue
        if words[:3] == ["python", "-m", "kcdp.export"]:
            words = ["kcdp", "export", *words[3:]]
        assert words[0] == "kcdp" and words[1] in COMMANDS, line
        parser = ArgumentParser(exit_on_error=False)
        command, rest = importlib.import_module(COMMANDS[words[1]][0]), words[2:]
        subcommands = getattr(command, "SUBCOMMANDS", {})
        if rest[0] in subcommands:
            command, rest = importlib.import_module(subcommands[rest[0]][0]), rest[1:]
        command.add_arguments(parser)
        args = parser.parse_args(rest)
        if command.__name__ == "kcdp.export.command":
            Batch.parse(args.batch, choose(args.target, args.precision))
        for value in (getattr(args, name, None) or () for name in ("source", "data")):
            for spec in [value] if isinstance(value, str) else value:
                parse_spec(spec)
        seen += 1
    assert seen >= 5


def test_extras_exist():
    extras = re.findall(r"(?:kcdp|\.)\[([\w-]+)\]", README)
    declared = (ROOT / "pyproject.toml").read_text()
    assert extras and all(re.search(rf"^{extra} = ", declared, flags=re.M) for extra in extras)


def test_python_runs(tiny_bundle, tmp_path, monkeypatch, capsys):
    from PIL import Image

    (code,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo.kcdp").symlink_to(tiny_bundle.path)
    for name in ("hello.webp", "bye.png"):
        Image.new("RGB", (20, 20), "red").save(name)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    with Tagger.load("demo.kcdp") as tagger:
        wanted = [f"{t.path} {t.label} {t.confidence}" for t in tagger.tag(["hello.webp", "bye.png"])]
    assert printed == wanted


def test_pictures_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures and all((ROOT / picture).is_file() for picture in pictures)


def test_a_dataset_string_that_does_not_exist_is_seen():
    with pytest.raises(Exception, match="unknown"):
        parse_spec("photos:here")
