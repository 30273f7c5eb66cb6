"""What goes wrong around an export: batches that do not come out even, files that change meanwhile, wrong wishes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kcdp.bundle import Bundle
from kcdp.cli import main
from kcdp.errors import KcdpError
from kcdp.export import exporter, options
from kcdp.export.options import ExportOptions

PHOTOS = "synthetic:photos?n=60&size=48&seed=9"
CHECK = ("--check-images", PHOTOS)
CALIBRATION = ("--calibration", "synthetic:photos?n=50&size=48&seed=3")


@pytest.fixture(scope="module")
def run(steady):
    return steady


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
