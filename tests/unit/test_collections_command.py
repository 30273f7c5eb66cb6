"""``kcdp tag --engine ray`` as a user calls it. What Ray does is tested elsewhere: here a plain run stands for it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

import kcdp
from kcdp.bundle import Bundle
from kcdp.runtime.__main__ import main
from kcdp.runtime.collections import tagging
from kcdp.runtime.collections.items import Files
from kcdp.runtime.collections.options import CollectionOptions
from kcdp.runtime.tagger import Tag, Tagger


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_colours: dict[str, tuple[int, int, int]]) -> Path:
    """The current folder, with ``s/0.png`` ... ``s/5.png``, of which 2.png is broken, and an empty folder ``t``."""
    for name in ("s", "t"):
        (tmp_path / name).mkdir()
    for number, colour in enumerate(label_colours.values()):
        Image.new("RGB", (20, 20), colour).save(tmp_path / "s" / f"{number}.png")
    (tmp_path / "s" / "2.png").write_bytes(b"broken")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture()
def asked(monkeypatch: pytest.MonkeyPatch) -> list[CollectionOptions]:
    """The options of every run that workers would have made; this process makes it."""
    seen = []

    def stream(collection: Files, model: Path, options: CollectionOptions, *, start: int = 0) -> Iterator[Tag]:
        seen.append(options)
        with Tagger.load(model, threads=options.threads, batch_size=options.batch_size) as tagger:
            yield from tagger.stream(collection._items[start:])

    monkeypatch.setattr(tagging, "stream_collection", stream)
    return seen


@pytest.mark.parametrize("form", ["table", "csv", "jsonl"])
def test_rows_and_status_are_those_of_the_plain_command(
    folder: Path, tiny_bundle: Bundle, asked: list[CollectionOptions], capfd: pytest.CaptureFixture[str], form: str
) -> None:
    line = ["s", "gone.png", "--model", str(tiny_bundle.path), "--batch-size", "2", "--threads", "1"]
    for more in (["--format", form], ["--out", f"rows.{form}"]):
        answers = []
        for engine in ([], ["--engine", "ray", "--workers", "3", "--backend", "onnxruntime"]):
            status = main([*line, *more, *engine])
            answers.append((status, *capfd.readouterr(), Path(more[1]).read_text() if "--out" in more else ""))
        assert answers[0] == answers[1] and answers[0][0] == 1 and "5 tagged, 2 failed" in answers[0][2]
    assert asked == [CollectionOptions(workers=3, batch_size=2, threads=1, backend="onnxruntime")] * 2


def test_parts(
    folder: Path, tiny_bundle: Bundle, asked: list[CollectionOptions], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    line = ["s", "--model", str(tiny_bundle.path), "--engine", "ray", "--out", "t/", "--part-rows", "2",
            "--batch-size", "2"]  # fmt: skip
    assert main(line) == 1 and capfd.readouterr() == ("", "5 tagged, 1 failed; wrote t/\n")
    assert sorted(os.listdir("t")) == ["_collection.json", *(f"part-{n:06}.parquet" for n in range(3))]
    Path("t/part-000002.parquet").unlink()
    assert main(line) == 1
    assert capfd.readouterr() == ("", "5 tagged, 1 failed, 4 of them in an earlier run; wrote t/\n")
    assert main([*line, "--backend", "openvino"]) == 2
    assert "t holds rows of another run (backend differ)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["s", "--workers", "2"], "--workers without --engine; expected --engine ray beside it"),
        (["s", "--engine", "ray", "--sheet", "a.png"], "--sheet with --engine ray; expected rows alone; leave out"),
        (["s", "--engine", "ray", "--sort-into", "d"], "--sort-into with --engine ray; expected rows alone; leave out"),
        (["s", "--engine", "ray", "--workers", "0"], "--workers is 0; expected a whole number from 1"),
        (["s", "--engine", "ray", "--threads", "0"], "--threads is 0; expected a whole number from 1"),
        (["s", "--engine", "ray", "--batch-size", "0"], "--batch-size is 0; expected a whole number from 1"),
        (["s", "--engine", "ray", "--part-rows", "0"], "--part-rows is 0; expected a whole number from 1"),
        (["s", "--engine", "ray", "--min-confidence", "2"], "--min-confidence is 2; expected a number from 0 to 1"),
        (["s", "--engine", "ray", "--gpus", "-1"], "gpus is -1.0; expected a number from 0"),
        (["s", "--engine", "ray", "--out", "t.parquet"], "--out t.parquet; expected a folder for Parquet files; write "
         "--out t/"),
        (["s", "--engine", "ray", "--out", "s/5.png"], "--out s/5.png is one of the files to tag; expected another"),
        (["s", "--engine", "ray", "--out", "t/", "--format", "csv"], "the format csv and the folder t/; expected a "
         "file, or no format: a folder gets Parquet files"),
        (["s", "--engine", "ray", "--out", "s/"], "s holds files already, and no _collection.json; expected an empty"),
        (["t", "--engine", "ray"], "no pictures in t; expected files that end in .apng,"),
    ],
)  # fmt: skip
def test_mistakes(
    folder: Path, tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main([*arguments, "--model", str(tiny_bundle.path)]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"kcdp: error: {said}") and err.count("\n") == 1
    assert sorted(os.listdir()) == ["s", "t"] and os.listdir("t") == []


@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
def test_no_cluster_at_the_address(folder: Path, tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    assert main(["s", "--model", str(tiny_bundle.path), "--engine", "ray", "--ray-address", address]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(f"kcdp: error: no cluster answers at {address} (")
    assert "; expected the address of a running one; start it with: ray start --head, and" in err
    assert err.endswith(" where it asks for a token, set RAY_AUTH_MODE=token\n")


def test_without_ray(folder: Path, tiny_bundle: Bundle) -> None:
    """In a process of its own: nothing of it is loaded, and one line says what to install."""
    program = "import sys; sys.modules['ray'] = None; from kcdp.cli import main; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", program, "tag", "s", "--model", str(tiny_bundle.path), "--engine", "ray"]
    done = subprocess.run(
        [*line, "--out", "rows.csv"], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(kcdp.__file__).parents[1])},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "" and not Path("rows.csv").exists()
    assert done.stderr == (
        "kcdp: error: the package 'ray' is not installed; run: pip install \"kcdp[ray]\"\n"
    )
