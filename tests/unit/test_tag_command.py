"""``kcdp tag`` as a user calls it: rows, exit statuses, files written whole, and mistakes in one line."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

import kcdp
from kcdp.bundle import Bundle
from kcdp.labels import LABELS
from kcdp.runtime.__main__ import main
from kcdp.runtime.items import Item
from kcdp.runtime.tag_run import Outputs
from kcdp.runtime.tagger import Tag

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

    monkeypatch.setattr(Outputs, "add", interrupt)
    for name in ("rows.csv", "rows.txt"):
        Path(name).write_text("old")
        status, out, err = tag("s", "--out", name, "--sheet", "sheet.png", "--html", "page.html")
        assert (status, out, err) == (130, "", "kcdp: interrupted\n") and Path(name).read_text() == "old"
    assert sorted(os.listdir()) == ["rows.csv", "rows.txt", "s"]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_interrupted_run_is_taken_up(
    folder: Path, tag: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    Path("s/2.png").write_bytes(b"no picture")
    pages = ("--html", "page.html", "--sidecar", "json", "--sort-into", "sorted")
    assert tag("s", "--out", f"whole.{form}", *pages, "--batch-size", "2")[0] == 1
    page = Path("page.html").read_bytes()
    for path in (*Path("s").glob("*.json"), Path("page.html")):
        path.unlink()
    real, out = Outputs.add, f"rows.{form}"

    def add(self: Outputs, item: Item, found: Tag) -> None:
        if found.path == "s/4.png":
            raise KeyboardInterrupt
        real(self, item, found)

    with monkeypatch.context() as patched:
        patched.setattr(Outputs, "add", add)
        status, _, err = tag("s", "--out", out, *pages, "--batch-size", "2")
    assert status == 130 and not Path(out).exists() and not Path("page.html").exists()
    partial = Path(f"{out}.partial")
    told = f"kcdp: rows in {partial}: 4; next: the same command with --resume"
    assert err == f"{told}\nkcdp: interrupted\n"
    status, _, err = tag("s", "--out", out)
    assert (status, err.split(";")[0]) == (2, f"kcdp: error: {partial} is left from a run that did not end")
    partial.write_bytes(partial.read_bytes()[:-3])  # as a power cut leaves it
    status, out_text, err = tag("s", "--out", out, "--resume", *pages)
    assert (status, out_text) == (1, "")
    assert err.splitlines()[0] == f"5 tagged, 1 failed (rows from before: 3); wrote {out} and page.html"
    assert Path(out).read_bytes() == Path(f"whole.{form}").read_bytes() and not partial.exists()
    assert Path("page.html").read_bytes() == page, "pictures of the first run are on the page too"
    assert len(list(Path("s").glob("*.json"))) == 5 and len(list(Path("sorted").rglob("*.png"))) == 6
    status, _, err = tag("s", "--recursive", "--out", out, "--resume")
    assert (status, err) == (1, f"6 tagged, 1 failed (rows from before: 6); wrote {out}\n")


def test_rows_of_another_model_are_not_gone_on_with(
    folder: Path, tag: Callable[..., tuple[int, str, str]], make_bundle: Callable[..., Bundle],
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert tag("s", "--out", "rows.csv")[0] == 0
    before = Path("rows.csv").read_bytes()
    other = make_bundle(folder / "other.kcdp", scale=2.0)
    capfd.readouterr()
    assert main(["s", "--out", "rows.csv", "--resume", "--model", str(other.path)]) == 2
    assert capfd.readouterr().err.startswith("kcdp: error: rows.csv holds rows of the model ")
    assert Path("rows.csv").read_bytes() == before and not Path("rows.csv.partial").exists()


def test_names_from_standard_input(folder: Path, tiny_bundle: Bundle) -> None:
    options = ("--model", str(tiny_bundle.path), "--format", "csv")
    done = command("s/5.png", "-", *options, input="s/1.png\n\ns/sub\ngone.png\n")
    assert (done.returncode, done.stderr) == (1, "3 tagged, 1 failed\n")
    assert [line.split(",")[:2] for line in done.stdout.splitlines()[1:]] == [
        ["s/5.png", "anger"], ["s/1.png", "happy"], ["s/sub/6.png", "sad"], ["gone.png", ""],
    ]  # fmt: skip
    done = command("-", *options, "--html", "s/0.png", input="s/0.png\n")
    assert (done.returncode, done.stderr) == (2, "kcdp: error: --html is s/0.png; expected a name that ends in .html\n")
    shutil.copy("s/0.png", "s/0.html")
    done = command("s/1.png", "-", *options, "--html", "s/0.html", input="s/2.png\ns/0.html\n")
    message = "kcdp: error: --html s/0.html is one of the pictures to tag; expected another name\n"
    assert (done.returncode, done.stderr) == (2, message)
    assert Path("s/0.html").read_bytes() == Path("s/0.png").read_bytes()
    done = command("-", *options, input="")
    assert done.returncode == 2 and done.stderr.startswith("kcdp: error: no pictures among the names on standard inp")


def test_only_such_names(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    def paths(*options: str) -> list[str]:
        lines = tag("s", "--recursive", "--format", "csv", *options)[1].splitlines()[1:]
        return [line.split(",")[0] for line in lines]

    assert paths("--include", "[12].png", "--include", "6*") == ["s/1.png", "s/2.png", "s/sub/6.png"]
    assert paths("--include", "[12].png", "--exclude", "2.png") == ["s/1.png"]
    status, _, err = tag("s", "--include", "x*")
    assert status == 2 and err.startswith("kcdp: error: no pictures in s; ")


def test_unsure(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    Image.new("RGB", (20, 20), (128, 128, 128)).save("s/grey.png")
    Path("s/bad.png").write_bytes(b"no picture")
    more = ("--sidecar", "xmp", "--sort-into", "sorted", "--sheet", "sheet.png", "--html", "page.html")
    status, out, err = tag("s", "--min-confidence", "0.5", "--format", "jsonl", *more)
    rows = {row["path"]: row for row in map(json.loads, out.splitlines())}
    assert status == 1 and rows["s/grey.png"]["label"] == "unsure" and rows["s/0.png"]["label"] == "surprise"
    assert 0 < rows["s/grey.png"]["confidence"] < 0.5 and sum(rows["s/grey.png"]["scores"].values()) > 0.99
    assert sorted(os.listdir("sorted")) == sorted([*LABELS, "unsure", "failed"])
    assert os.listdir("sorted/unsure") == ["grey.png"] and os.listdir("sorted/failed") == ["bad.png"]
    assert "<rdf:li>" in Path("s/0.png.xmp").read_text() and "<rdf:li>" not in Path("s/grey.png.xmp").read_text()
    assert 'data-label="unsure"' in Path("page.html").read_text()
    assert err.splitlines()[1:] == [
        "sidecars written: 7",
        "sorted into sorted: surprise 1, happy 1, disgust 1, fear 1, sad 1, anger 1, unsure 1, failed 1",
    ]
    assert "unsure" in tag("s/grey.png", "--min-confidence", "0.5")[1].splitlines()[1]


def test_where_the_time_went(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    status, _, err = tag("s", "--out", "rows.csv", "--stats")
    said, ran, pictures, shares = err.splitlines()
    assert ran.startswith(("onnxruntime ", "openvino ")) and "float32, runs side by side: " in ran
    assert (status, said) == (0, "6 tagged, 0 failed; wrote rows.csv")
    assert pictures.startswith("6 pictures (6 frames, 0 failed) in ") and "16 frames at once" in pictures
    assert all(name in shares for name in ("decode", "preprocess", "inference"))


def test_files_beside_that_cannot_be_written_are_warnings_and_status_1(
    folder: Path, tag: Callable[..., tuple[int, str, str]]
) -> None:
    Path("s/1.png.json").write_text("mine")
    Path("sorted").mkdir()
    Path("sorted/fear").write_text("in the way")
    status, out, err = tag("s", "--sidecar", "json", "--sort-into", "sorted", "--format", "csv")
    assert status == 1 and len(out.splitlines()) == 7
    assert err.splitlines() == [
        "kcdp: warning: s/1.png.json is there already and not of kcdp; move it away or add --overwrite",
        "kcdp: warning: cannot make the folder sorted/fear: File exists; choose another place",
        "6 tagged, 0 failed", "sidecars written: 5",
        "sorted into sorted: surprise 1, happy 1, disgust 1, sad 1, anger 1",
        "files that could not be written, see above: 2",
    ]  # fmt: skip
    assert Path("s/1.png.json").read_text() == "mine"
    assert tag("s", "--sidecar", "json", "--overwrite")[0] == 0
    assert json.loads(Path("s/1.png.json").read_text())["label"] == "happy"


def test_links(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    assert tag("s", "--sort-into", "sorted", "--link")[0] == 0
    assert os.path.samefile("s/1.png", "sorted/happy/1.png")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["s/empty"], "no pictures in s/empty; expected files that end in .apng, .avif, .avifs, .bmp, .gif,"
                      " .heic, .heif, .hif, .jfif, .jpe, .jpeg, .jpg, .png, .stickerpack, .tgs, .wastickers, .webm,"
                      " .webp, .zip; add --recursive to look into sub-folders"),
        (["s", "--sheet", "sheet.jpg"], "--sheet is sheet.jpg; expected a name that ends in .png"),
        (["s", "--sheet", "x.png", "--out", "./x.png"], "--out and --sheet are both ./x.png; expected two names"),
        (["s", "--out", "s"], "--out s is not a file; expected the name of a file to write"),
        (["s", "--out", os.devnull], f"--out {os.devnull} is not a file; expected the name of a file to write"),
        (["s", "--sheet", "s/0.png"], "--sheet s/0.png is one of the pictures to tag; expected another name"),
        (["s", "--html", "page.txt"], "--html is page.txt; expected a name that ends in .html"),
        (["s", "--html", "x.html", "--out", "./x.html"], "--out and --html are both ./x.html; expected two names"),
        (["s", "--link"], "--link was given without --sort-into DIR; expected both or none of --link and --sort-into"),
        (["s", "--overwrite"], "--overwrite was given without --sidecar json or xmp; expected both or none of "
                               "--overwrite and --sidecar"),
        (["s", "--resume"], "--resume was given without --out FILE.jsonl or FILE.csv; expected both or none of "
                            "--resume and --out"),
        (["s", "--resume", "--out", "t.txt"], "--resume was given without --out FILE.jsonl or FILE.csv; expected both "
                                              "or none of --resume and --out"),
        (["s", "--min-confidence", "1.5"], "--min-confidence is 1.5; expected a number from 0 to 1"),
        (["s", "--min-confidence", "nan"], "--min-confidence is nan; expected a number from 0 to 1"),
        (["s", "--sort-into", "s/0.png"], "--sort-into s/0.png is not a folder; expected a folder, or a new name"),
        (["s", "--recursive", "--sort-into", "s/sorted"], "--sort-into s/sorted lies where s is searched; expected a "
                                                          "folder outside the pictures"),
        (["-", "--watch"], "--watch was given with names from standard input; expected files and folders to watch"),
        (["s", "--watch", "--stats"], "--watch and --stats were both given; expected one of them; --stats is of a run "
                                      "that ends by itself"),
        (["s", "--watch", "--out", "t.txt"], "--watch writes t.txt as a table; expected --out FILE.jsonl or FILE.csv"),
        (["s", "--watch", "--out", "s/0.png", "--format", "csv"], "s/0.png is there already; add --resume to go on "
                                                                  "with its rows, or choose another --out"),
        (["s", "--watch", "--out", "s/0.png", "--format", "csv", "--resume"],
         "--out s/0.png is one of the pictures to tag; expected another name"),
        (["s", "--out", "s/0.png/t.csv"], "writing s/0.png/t.csv failed (Not a directory); choose another place"),
        (["s", "--html", ""], "an empty --html; expected a name; set the variable that it came from"),
        (["s", ""], "an empty PATH; expected names of pictures or folders; set the variable that it came from"),
        (["s", "--batch-size", "0"], "--batch-size is 0; expected a whole number from 1"),
        (["s", "--threads", "0"], "--threads is 0; expected a whole number from 1"),
        (["s", "--threads", "100000"], "--threads is 100000; expected at most 1024; leave it out for all cores"),
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


def test_a_dash_is_standard_output(folder: Path, tag: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = tag("s", "--out", "-", "--format", "csv")
    assert (status, err) == (0, "6 tagged, 0 failed\n") and out.startswith("path,label")
    assert not Path("-").exists()


def test_names_that_begin_with_a_dash(
    folder: Path, tag: Callable[..., tuple[int, str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("s/0.png").rename("-happy.png")
    assert tag("s", "-happy.png") == (
        2, "", "kcdp: error: -happy.png would be taken for an option; expected ./-happy.png for the file of that name\n"
    )  # fmt: skip
    status, out, _ = tag("./-happy.png", "--format", "csv")
    assert status == 0 and "./-happy.png,surprise" in out
    assert main(["--model", "nowhere/m.kcdp", "--", "-happy.png"]) == 2
    assert "nowhere/m.kcdp" in capfd.readouterr().err, "behind -- it is a name"


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor as a shell does")
def test_standard_input_without_names(folder: Path, tiny_bundle: Bundle) -> None:
    line = ("-", "--model", str(tiny_bundle.path), "--out", "t.csv")
    for options, said in (
        ({"stdin": subprocess.DEVNULL}, "no pictures among the names on standard input; expected names of pictures"),
        ({"preexec_fn": partial(os.close, 0)}, "names from standard input, which is closed; expected a pipe or a file"),
    ):
        done = command(*line, **options)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith(f"kcdp: error: {said}")
    assert not Path("t.csv").exists()


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
