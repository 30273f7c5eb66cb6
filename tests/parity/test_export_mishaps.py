"""What goes wrong around an export: batches that do not come out even, files that change meanwhile, wrong wishes."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import kcdp.export.running.sessions
from kcdp.bundle import Bundle
from kcdp.cli import main
from kcdp.errors import KcdpError
from kcdp.export import exporter, options
from kcdp.export.options import ExportOptions

PHOTOS = "synthetic:photos?n=60&size=48&seed=9"
CHECK = ("--check-images", PHOTOS)
CALIBRATION = ("--calibration", "synthetic:photos?n=50&size=48&seed=3")
FEW = ("--check-images", "synthetic:photos?n=6&size=48&seed=9", "--calibration", "synthetic:photos?n=8&size=48&seed=3")


@pytest.fixture(scope="module")
def run(steady):
    return steady


@pytest.fixture(scope="module")
def checked(run, tmp_path_factory):
    """The run, and a bundle of it."""
    out = tmp_path_factory.mktemp("exported") / "m.kcdp"
    assert main(["export", str(run), "--out", str(out), *FEW]) == 0
    return run, out


@pytest.mark.parametrize(("precision", "batch"), [pytest.param("int8", "1", marks=pytest.mark.slow), ("fp16", "5")])
def test_calibration_pictures_fill_a_fixed_batch(run, tmp_path, precision, batch):
    out = tmp_path / "m.kcdp"
    arguments = [str(run), "--out", str(out), *CHECK, *CALIBRATION, "--batch", batch, "--precision", precision]
    assert main(["export", *arguments]) == 0
    assert Bundle.open(out).manifest.graph.inputs[0].shape[0] == int(batch)


def test_a_checkpoint_that_is_replaced_while_it_is_read(run, tmp_path, monkeypatch, capsys):
    load = exporter.load_model

    def replaced(path):
        found = load(path)
        (path / "best.safetensors").write_bytes((path / "best.safetensors").read_bytes() + b" ")
        return found

    copy = tmp_path / "run"
    copy.mkdir()
    (copy / "best.safetensors").write_bytes((run / "best.safetensors").read_bytes())
    monkeypatch.setattr(exporter, "load_model", lambda path: replaced(copy))
    assert main(["export", str(copy), "--out", str(tmp_path / "m.kcdp"), *CHECK]) == 2
    assert "was replaced while it was read; is it still being trained?" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_wishes_that_make_no_sense_are_told_at_once(run, tmp_path, monkeypatch, capsys):
    arguments = ["export", str(run), "--out", str(tmp_path / "m.kcdp"), *CHECK]
    for precision in ("int8", "fp32"):
        assert main([*arguments, "--precision", precision, "--calibration", "nonsense:x"]) == 2
        said = capsys.readouterr()
        assert "nonsense" in said.err and "2/6" not in said.out, "before anything is computed"
    (tmp_path / "file").write_text("")
    assert main([*arguments, "--keep-failed", str(tmp_path / "file" / "x")]) == 2
    assert "1/6" not in capsys.readouterr().out
    monkeypatch.setattr(options, "usable", lambda names, precision: ())
    with pytest.raises(KcdpError, match=r"no runtime here computes in bfloat16.*kcdp\[openvino\]"):
        ExportOptions("cpu", "bf16").resolve()
    ExportOptions("tensorrt", "bf16").resolve()


@pytest.fixture
def temporary(tmp_path, tmp_path_factory, monkeypatch):
    """The folder for temporary files, to be looked into; without torch's own cache, which is no temporary file."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("torchinductor")))
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def everything(folder: Path) -> list[str]:
    """What lies in a folder and below, hidden files included."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def start(*arguments):
    """``python -m kcdp.export``, in a session of its own."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "kcdp.export", *map(str, arguments)], env=environment, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def left_of(session: int) -> list[str]:
    """Command lines of processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, psutil.Error):
            continue
    return found


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize(
    ("number", "step", "options"),
    [
        (signal.SIGTERM, "5/6", ()), pytest.param(signal.SIGINT, "3/6", (), marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "4/6", ("--precision", "int8"), marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_leaves_nothing_behind(run, tmp_path, temporary, number, step, options):
    out = tmp_path / "new" / "deeper" / "m.kcdp"
    with start(run, "--out", out, *(FEW if step == "3/6" else CHECK), *CALIBRATION, *options) as process:
        said = []
        for line in process.stdout:
            said.append(line)
            if line.startswith(step):
                break
        assert said[-1].startswith(step), said
        assert [path.name[:8] for path in out.parent.iterdir()] == [".m.kcdp."]
        time.sleep(0.3)  # not at the line's end: in the middle of the work
        assert process.poll() is None
        process.send_signal(number)
        rest, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (130, "kcdp: interrupted\n")
    assert "6/6" not in rest
    assert everything(temporary) == [] and not (tmp_path / "new").exists() and left_of(process.pid) == []


@pytest.mark.usefixtures("interrupts_are_heard")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_leaves_nothing_behind(checked, tmp_path, temporary, number, capsys):
    """Inside the gate, where a session has a folder of its own."""
    run_folder, bundle = checked
    opened = kcdp.export.running.sessions.Session._open

    def interrupted(session):
        found = opened(session)
        assert everything(temporary)
        os.kill(os.getpid(), number)
        time.sleep(5)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kcdp.export.running.sessions.Session, "_open", interrupted)
        out = tmp_path / "new" / "page"
        assert main(["export", "check", str(bundle), "--run", str(run_folder), *FEW[:2], "--out", str(out)]) == 130
    assert capsys.readouterr().err == "kcdp: interrupted\n"
    assert everything(temporary) == [] and not (tmp_path / "new").exists()


def test_folders_that_were_made_for_a_failed_export_go_again(run, tmp_path, monkeypatch, capsys):
    def refused(*arguments, **options):
        (scratch,) = (tmp_path / "a" / "b").iterdir()
        (scratch / "model.onnx").write_bytes(b"half a graph")
        raise KcdpError("the gate cannot be opened")

    monkeypatch.setattr(exporter, "_make", refused)
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "a" / "b" / "m.kcdp", tmp_path / "there" / ".." / "a" / "b" / "m.kcdp"):
        assert main(["export", str(run), "--out", str(out), *CHECK]) == 2
        assert capsys.readouterr().err == "kcdp: error: the gate cannot be opened\n"
        assert everything(tmp_path) == ["there"]


def test_a_full_disk(run, tmp_path, temporary, monkeypatch, capsys):
    """Beside the bundle, and where a copy of the graph is rewritten for the gate."""
    write, save = os.strerror(errno.ENOSPC), kcdp.export.running.sessions.ir.save

    def full(where):
        def saving(model, path, *arguments, **options):
            if Path(path).is_relative_to(where):
                raise OSError(errno.ENOSPC, write)
            return save(model, path, *arguments, **options)

        return saving

    arguments = ["export", str(run), *FEW, "--precision", "fp16"]
    for where, advice in (
        (tmp_path / "a", "choose another --out: graphs under way lie beside it"),
        (temporary, "set TMPDIR to a folder that has it"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("onnx_ir.save", full(where))
            assert main([*arguments, "--out", str(tmp_path / "a" / "m.kcdp")]) == 2
        assert re.fullmatch(
            rf"kcdp: error: writing to {where} failed \(No space left on device, \d+ MB are free\); expected room for "
            rf"about \d MB; free some space, or {advice}\n", capsys.readouterr().err,
        )  # fmt: skip
        assert everything(tmp_path) == ["temporary"]


def test_a_page_is_not_written_into_a_bundle(run, tmp_path, capsys):
    (tmp_path / "m.kcdp").mkdir()
    (tmp_path / "m.kcdp" / "manifest.json").write_text("{}")
    arguments = ["export", "check", str(tmp_path / "m.kcdp"), "--run", str(run), "--out", str(tmp_path / "m.kcdp")]
    assert main(arguments) == 2
    assert "is a bundle, which is sealed; expected another folder" in capsys.readouterr().err


def test_work_goes_on_when_its_reader_has_gone(tmp_path):
    code = f"from kcdp.cli import say\nfor _ in range(9999): say('x' * 99)\nopen({str(tmp_path / 'done')!r}, 'w')"
    first = subprocess.run(f'"{sys.executable}" -c "{code}" | head -1', shell=True, capture_output=True, text=True)
    assert first.stdout == "x" * 99 + "\n" and not first.stderr and (tmp_path / "done").exists()
