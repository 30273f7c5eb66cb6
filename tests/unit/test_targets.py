"""The table of targets: combinations that exist, those that do not, and batches."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from kcdp.bundle import TARGET_NAMES
from kcdp.cli import main
from kcdp.errors import KcdpError
from kcdp.export.command import PASS_NAMES
from kcdp.export.describing import check_size
from kcdp.export.exporter import ParityError
from kcdp.export.facts import without_folders
from kcdp.export.parity_report import ParityReport, Run, RuntimeReport
from kcdp.export.passes.registry import NAMES
from kcdp.export.runners import RUNTIMES
from kcdp.export.targets import PRECISIONS, TARGETS, Batch, choose
from kcdp.graph import TOLERANCES


def test_every_row_is_whole():
    assert tuple(TARGETS) == TARGET_NAMES
    for target in TARGETS.values():
        assert set(target.precisions) == set(target.verified) <= set(PRECISIONS)
        assert set(target.runtimes) <= set(RUNTIMES)
        assert set(target.winograd) <= set(target.precisions)
        assert all(target.opset_for(precision) >= target.opset for precision in target.precisions)
    assert set(PRECISIONS.values()) == set(TOLERANCES)
    assert TARGETS["portable"].opset <= 20 and TARGETS["web"].max_bytes == 128_000_000


@pytest.mark.parametrize(
    ("target", "precision", "message"),
    [
        ("cpu ", "fp32", "target 'cpu ' (did you mean 'cpu'?); expected one of portable, cpu, cuda, tensorrt, web"),
        ("cpu", "fp8", "precision 'fp8' (did you mean 'fp32'?); expected one of fp32, fp16, bf16, int8, w8"),
        ("web", "bf16", "target web in bf16; expected web in fp32, fp16, int8, w8; bf16 for cpu, tensorrt"),
        ("cuda", "int8", "target cuda in int8; expected cuda in fp32, fp16; int8 for portable, cpu, tensorrt, web"),
    ],
)
def test_wrong_combinations_name_the_valid_ones(target, precision, message):
    with pytest.raises(KcdpError) as caught:
        choose(target, precision)
    assert str(caught.value) == message


def test_bfloat16_needs_a_newer_operator_set_only_where_it_is_typed():
    assert TARGETS["tensorrt"].opset_for("bf16") == 22
    assert TARGETS["cpu"].opset_for("bf16") == TARGETS["cpu"].opset == 20


def test_batches():
    portable, engine = TARGETS["portable"], TARGETS["tensorrt"]
    assert Batch.parse(None, portable) == Batch()
    assert Batch.parse("8", portable) == Batch(fixed=8)
    assert Batch.parse("1:8:32", engine) == Batch(profile=(1, 8, 32))
    for text in ("0", "-1", "1.5", "", "8:1:32", "1:2", "1:2:3:4", "a", "1:b:3", "4097", "1:8:4097", "9" * 5000):
        with pytest.raises(KcdpError, match="expected a number from 1 to 4096, or three of them, MIN:OPT:MAX, such as"):
            Batch.parse(text, engine)
    with pytest.raises(KcdpError, match="MIN:OPT:MAX is for tensorrt"):
        Batch.parse("1:8:32", portable)


def test_the_command_lists_them(capsys):
    assert main(["export", "targets"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name:<10}" in printed for name in TARGETS) and "no GPU yet" in printed
    assert printed.splitlines()[-1].startswith("next: python -m kcdp.export RUN")
    assert main(["export", "targets", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(TARGETS)


def test_wrong_options_are_told_before_anything_is_loaded(capsys, tmp_path):
    cases = {
        ("--target", "phone"): "target 'phone'",
        ("--precision", "half"): "precision 'half'",
        ("--batch", "0"): "batch '0'",
        ("--skip-pass", "lora", "--skip-pass", "piramid"): "no pass is called 'piramid' (did you mean 'pyramid'?)",
    }
    for arguments, message in cases.items():
        assert main(["export", str(tmp_path), "--out", "x.kcdp", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_a_run_that_is_not_there_is_told_before_pytorch_is_loaded(tmp_path):
    program = f"import sys; from kcdp.cli import main; main(['export', {str(tmp_path / 'no')!r}, '--out', 'x.kcdp'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}; print('torch' in sys.modules)"], capture_output=True, text=True, check=True
    )
    assert "no is not there; expected a run folder with a checkpoint" in done.stderr and done.stdout == "False\n"


def test_the_help_names_all_exact_passes():
    assert PASS_NAMES == NAMES


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("fer2013:/data/faces/fer2013.zip?split=val", "fer2013:fer2013.zip?split=val"),
        ("fer2013:../shared/fer2013.zip", "fer2013:../shared/fer2013.zip"),
        ("csv:/a/b.csv?root=/c/d/pictures", "csv:b.csv?root=pictures"),
        ("/models/sd15", "sd15"), ("~/models/sd15/", ""),
        (r"C:\models\sd15", "sd15"), (r"folder:C:\faces", "folder:faces"),
        ("https://host/a/b", "https://host/a/b"), ("a smile / a frown / a tear", "a smile / a frown / a tear"),
    ],
)  # fmt: skip
def test_a_bundle_names_no_folders_of_who_made_it(text, kept):
    assert without_folders({"a": [text, (text, 1)], "b": text}) == {"a": [kept, [kept, 1]], "b": kept}


def test_a_size_is_asked_of_the_files_that_are_there(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x" * 90)
    (tmp_path / "other").write_bytes(b"x" * 90)
    small = replace(TARGETS["web"], max_bytes=100)
    check_size(tmp_path, small, ["model.onnx", "model.onnx.data"])
    with pytest.raises(KcdpError, match="expected at most 0 MB for the target web"):
        check_size(tmp_path, small)


@pytest.mark.parametrize(("pictures", "changed", "more"), [(150, 1, True), (150, 6, False), (400, 1, False)])
def test_more_pictures_are_advised_where_one_answer_decided(pictures, changed, more):
    run = Run(1, {"decisions": {"changed": changed}}, ("logits",))
    runtime = RuntimeReport({"runtime": "openvino"}, (run,), ("some of decisions",))
    error = str(ParityError(ParityReport("bfloat16", pictures, 0, 1.0, (runtime,), (), 0, {})))
    assert "does not bear bfloat16: export it in a finer precision" in error
    assert ("or compare on 200 pictures: of 150 one changed answer is too many" in error) == more
