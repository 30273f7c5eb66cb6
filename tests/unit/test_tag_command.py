"""``kcdp tag`` as a user calls it: rows, exit statuses, files written whole, and mistakes in one line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import kcdp
from kcdp.bundle import Bundle
from kcdp.labels import LABELS
from kcdp.runtime.__main__ import main

REPOSITORY = Path(kcdp.__file__).parents[1]


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, label_colours: dict[str, tuple[int, int, int]]) -> Path:
    """The current folder, holding ``s/0.png`` ... ``s/5.png``, one for each label, and ``s/sub/6.png``."""
    (tmp_path / "s" / "sub").mkdir(parents=True)
    for number, label in enumerate(LABELS):
        Image.new("RGB", (20, 20), label_colours[label]).save(tmp_path / "s" / f"{number}.png")
    Image.new("RGB", (20, 20), label_colours["sad"]).save(tmp_path / "s" / "sub" / "6.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture()
def tag(tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``tag(*arguments)``: exit status, standard output, standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        status = main([*arguments, "--model", str(tiny_bundle.path), "--threads", "1"])
        return status, *capfd.readouterr()

    return call


def command(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": ""}
    line = [sys.executable, "-m", "kcdp.runtime", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, encoding="utf-8", **options)  # type: ignore[call-overload, no-any-return]


def test_a_folder_gives_a_table(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = tag("s")
    lines = out.splitlines()
    assert status == 0 and err == "6 tagged, 0 failed\n"
    assert lines[0] == "path     emotion   confidence"
    assert [line.split()[:2] for line in lines[1:]] == [[f"s/{n}.png", label] for n, label in enumerate(LABELS)]


def test_a_backend_by_name(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    rows = [tag("s", "--backend", name)[1] for name in ("onnxruntime", "openvino")]
    assert rows[0] == rows[1] and rows[0]
    status, out, err = tag("s", "--backend", "openvinno")
    assert status == 2 and out == "" and "backend 'openvinno' (did you mean 'openvino'?); expected one of auto" in err


def test_jsonl_in_order_with_sub_folders(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = tag("s", "--recursive", "--format", "jsonl", "--batch-size", "2")
    rows = [json.loads(line) for line in out.splitlines()]
    assert (status, err) == (0, "7 tagged, 0 failed\n")
    assert [row["label"] for row in rows] == [*LABELS, "sad"] and rows[6]["path"] == "s/sub/6.png"
    assert all(row["confidence"] == row["scores"][row["label"]] == max(row["scores"].values()) for row in rows)


def test_failures_are_rows_and_status_1(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    Path("s/2.png").write_bytes(b"no picture")
    status, out, err = tag("s", "gone.png", "--format", "csv")
    rows = list(csv.DictReader(out.splitlines()))
    assert (status, err) == (1, "5 tagged, 2 failed\n") and len(rows) == 7
    assert rows[2]["label"] == ""
    assert rows[2]["error"].startswith("s/2.png is not a picture (it begins with b'no pictu')")
    assert rows[6]["error"] == "gone.png does not exist; expected a picture file"
    assert [row["label"] for row in rows[:6]] == ["surprise", "happy", "", "fear", "sad", "anger"]


@pytest.mark.parametrize(("name", "begin"), [("t.csv", "path,label"), ("t.jsonl", '{"path"'), ("t.txt", "path  ")])
def test_out_is_written_in_the_format_of_its_name(
    folder: Path, tag: Callable[..., tuple[int, str, str]], name: str, begin: str
) -> None:
    Path(f"new/{name}").parent.mkdir()
    Path(f"new/{name}").write_text("old")
    status, out, err = tag("s", "--out", f"new/{name}", "--sheet", "new/sheet.png")
    assert (status, out, err) == (0, "", f"6 tagged, 0 failed; wrote new/{name} and new/sheet.png\n")
    assert Path(f"new/{name}").read_text().startswith(begin)
    assert sorted(os.listdir("new")) == sorted([name, "sheet.png"]), "no temporary file is left"
    with Image.open("new/sheet.png") as sheet:
        assert sheet.format == "PNG"


def test_format_goes_before_the_name(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    assert tag("s", "--out", "rows.csv", "--format", "jsonl")[0] == 0
    assert json.loads(Path("rows.csv").read_text().splitlines()[0])["label"] == "surprise"


def test_an_interrupted_run_leaves_the_old_file(
    folder: Path, tag: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rows.csv").write_text("old")

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("kcdp.runtime.tagger.read_frames", interrupt)
    status, out, _ = tag("s", "--out", "rows.csv")
    assert (status, out) == (130, "") and Path("rows.csv").read_text() == "old"
    assert sorted(os.listdir()) == ["rows.csv", "s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s/empty"], "no pictures in s/empty; expected files that end in .apng, .bmp, .gif, .jfif, .jpe, .jpeg, .jpg,"
                      " .png, .webp; add --recursive to look into sub-folders"),
        (["s", "--sheet", "sheet.jpg"], "--sheet is sheet.jpg; expected a name that ends in .png"),
        (["s", "--sheet", "x.png", "--out", "./x.png"], "--out and --sheet are both ./x.png; expected two names"),
        (["s", "--out", "s"], "--out s is not a file; expected the name of a file to write"),
        (["s", "--out", os.devnull], f"--out {os.devnull} is not a file; expected the name of a file to write"),
        (["s", "--sheet", "s/0.png"], "--sheet s/0.png is one of the pictures to tag; expected another name"),
        (["s", "--batch-size", "0"], "batch_size is 0; expected a whole number from 1"),
        (["s", "--threads", "0"], "threads is 0; expected a whole number from 1, or None for all cores"),
        (["s", "--model", "s"], "s is a folder without manifest.json; expected a bundle folder; make one with: "
                                "python -m kcdp.export RUN --out NAME.kcdp"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_status_2(
    folder: Path, tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (folder / "s" / "empty").mkdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["--model", str(tiny_bundle.path), *arguments]) == 2
    assert capfd.readouterr() == ("", f"kcdp: error: {message}\n")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before, "nothing was written"


def test_a_changed_bundle_is_refused(folder: Path, tiny_bundle: Bundle, capfd: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(tiny_bundle.path, "changed.kcdp")
    data = bytearray(Path("changed.kcdp/model.onnx").read_bytes())
    data[-1] ^= 255
    Path("changed.kcdp/model.onnx").write_bytes(data)
    assert main(["s", "--model", "changed.kcdp", "--out", "rows.csv"]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("kcdp: error: changed.kcdp/model.onnx was changed or damaged: it has SHA-256") and out == ""
    assert not Path("rows.csv").exists()


def test_the_real_command(folder: Path, tiny_bundle: Bundle) -> None:
    name = "s/日本 😀,\n.png"
    Path("s/0.png").rename(name)
    done = command(name, "s/1.png", "--model", str(tiny_bundle.path), "--format", "csv")
    assert (done.returncode, done.stderr) == (0, "2 tagged, 0 failed\n")
    rows = list(csv.DictReader(done.stdout.splitlines(keepends=True)))
    assert [(row["path"], row["label"]) for row in rows] == [(name, "surprise"), ("s/1.png", "happy")]
    helped = command("--help")
    assert helped.returncode == 0 and "--recursive" in helped.stdout and "kcdp.runtime" in helped.stdout
    missing = command("s")
    assert missing.returncode == 2 and "--model" in missing.stderr


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX file names")
def test_names_that_are_not_utf_8(folder: Path, tiny_bundle: Bundle) -> None:
    name = os.fsdecode(b"s/\xff.png")
    Path("s/4.png").rename(name)
    for form in ("table", "jsonl", "csv"):
        options = ("--model", str(tiny_bundle.path), "--format", form)
        done = command(name, "s/\udcfe.png", *options, errors="surrogateescape")
        assert (done.returncode, done.stderr) == (1, "1 tagged, 1 failed\n") and "sad" in done.stdout
        if form == "jsonl":
            assert json.loads(done.stdout.splitlines()[0])["path"] == name
        if form == "csv":
            assert done.stdout.splitlines()[1].startswith(f"{name},sad,")


@pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
@pytest.mark.parametrize("form", ["table", "jsonl", "csv"])
def test_a_reader_that_goes_away_is_no_error(folder: Path, tiny_bundle: Bundle, form: str) -> None:
    line = [sys.executable, "-m", "kcdp.runtime", *["s"] * 400, "--model", str(tiny_bundle.path), "--format", form]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0
