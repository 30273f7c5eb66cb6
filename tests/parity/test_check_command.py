"""``python -m kcdp.export check``: the gate on a bundle that is there, with the run that it was made from."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from gate_parts import SIZE, StandIn, spec, weights, write_graph

from kcdp.bundle import Bundle, Manifest, write_bundle
from kcdp.cli import run_module
from kcdp.config import load_config
from kcdp.export import command_check
from kcdp.export.check_pictures import check_pictures, preparation
from kcdp.files import sha256_file
from kcdp.labels import LABELS
from kcdp.models.build import build_model
from kcdp.preprocess import PreprocessSpec
from kcdp.training.checkpoint import save_checkpoint

SOURCE = "synthetic:photos?n=60&size=32"
CHECK = ("--check-images", "synthetic:stickers?n=12&size=32", "--threads", "1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = load_config("tiny", data={"data": {"source": SOURCE}})
    save_checkpoint(folder / "best.safetensors", build_model(config), config, {"step": 0})
    return folder


@pytest.fixture(autouse=True)
def small_model(monkeypatch):
    """The trained model is the stand-in of the gate's own tests, so that its graph can be written by hand."""
    monkeypatch.setattr(command_check, "reference_model", lambda model, config, manifest: (StandIn(), None))


def make(path, run, *, source=None, values=None, precision="float32", **changes):
    manifest = Manifest(
        labels=LABELS, preprocess=PreprocessSpec(SIZE), graph=spec(), knowledge={"mode": "constant"},
        precision={"default": precision}, target="portable", opset=20,
        source={"sha256": sha256_file(run / "best.safetensors")} if source is None else source,
    )  # fmt: skip
    manifest = replace(manifest, **changes)
    return write_bundle(path, manifest, lambda folder: write_graph(folder / "model.onnx", ("logits",), values=values))


def check(*arguments):
    return run_module("kcdp.export.command_check", "python -m kcdp.export check", "", [*map(str, arguments)])


def test_a_faithful_bundle_passes(run, tmp_path, capsys):
    make(tmp_path / "a.kcdp", run)
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK, "--out", tmp_path / "page") == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("best.safetensors on 12 pictures of synthetic:stickers?n=12&size=32")
    assert printed[1] == "logits, probabilities and decisions; v, features and maps are compared at export only"
    assert printed[-2:] == ["parity gate passed", f"next: kcdp tag PICTURES --model {tmp_path / 'a.kcdp'}"]
    assert sum(line.startswith("  onnxruntime, batch ") for line in printed) == 2
    page = (tmp_path / "page" / "parity.md").read_text(encoding="utf-8")
    assert page.startswith("# Parity: passed") and "this graph has no other outputs" in page
    assert {path.name for path in (tmp_path / "page").iterdir()} == {"parity.md", "parity.png"}
    Bundle.open(tmp_path / "a.kcdp")  # untouched


def test_a_changed_graph_fails(run, tmp_path, capsys):
    values = weights()
    values["kernel"][0, 0, 1, 1] += 0.02
    make(tmp_path / "a.kcdp", run, values=values)
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK) == 1
    printed = capsys.readouterr().out
    assert re.search(r"FAILED onnxruntime: batch 1: logits of \d+ pictures differ by up to", printed)
    assert "parity gate FAILED\nnext: python -m kcdp.export " in printed
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK, "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["passed"] is False and facts["same_run"] is True and facts["data"].startswith("synthetic:stickers")


def test_the_precision_and_temperature_are_the_bundles(run, tmp_path, capsys):
    make(tmp_path / "a.kcdp", run, precision="int8-weights", calibration={"temperature": 2.5})
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["precision"], facts["temperature"]) == ("int8-weights", 2.5)


def test_another_run_is_refused_unless_wanted(run, tmp_path, capsys):
    make(tmp_path / "a.kcdp", run, source={"sha256": "0" * 64})
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK) == 2
    error = capsys.readouterr().err
    assert "best.safetensors has SHA-256 " in error and "…; expected SHA-256 000000000000… as in " in error
    assert error.endswith("give the run it was exported from, or add --any-run\n") and error.count("\n") == 1
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK, "--any-run") == 0
    assert "best.safetensors (another run than the bundle's) on 12 pictures" in capsys.readouterr().out
    make(tmp_path / "b.kcdp", run, source={})
    assert check(tmp_path / "b.kcdp", "--run", run, *CHECK) == 2
    assert "b.kcdp does not say which checkpoint it was made from; expected its SHA-256" in capsys.readouterr().err


def test_runtimes(run, tmp_path, capsys):
    pytest.importorskip("openvino")
    make(tmp_path / "a.kcdp", run, parity={"runtimes": [{"runtime": "openvino"}, {"runtime": "an engine"}]})
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK) == 0
    assert "openvino, batch 5" in capsys.readouterr().out
    assert check(tmp_path / "a.kcdp", "--run", run, *CHECK, "--runtime", "onnxruntime") == 0
    assert "openvino" not in capsys.readouterr().out
    make(tmp_path / "b.kcdp", run, parity={"runtimes": [{"runtime": "an engine"}]})
    assert check(tmp_path / "b.kcdp", "--run", run, *CHECK) == 2
    assert "none of an engine works here; expected one of onnxruntime, " in capsys.readouterr().err


def test_mistakes_are_one_line(run, tmp_path, capsys):
    make(tmp_path / "a.kcdp", run)
    for arguments, message in (
        ((tmp_path / "none", "--run", run), "none is not there; expected a bundle folder"),
        ((tmp_path / "a.kcdp", "--run", tmp_path / "none"), "none is not there; expected a run folder"),
        ((tmp_path / "a.kcdp", "--run", run, "--runtime", "openvno"), "runtime 'openvno' (did you mean 'openvino'?)"),
        ((tmp_path / "a.kcdp", "--run", run, "--check-images", "folder:gone"), "gone does not exist"),
        ((tmp_path / "a.kcdp", "--run", run, *CHECK, "--threads", "0"), "threads is 0; expected a whole number from 1"),
    ):
        assert check(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def test_check_pictures_are_the_runs_own_or_others():
    data = load_config("tiny", data={"data": {"source": "synthetic:photos?n=900&size=32"}}).data
    own = check_pictures(None, data)
    assert 0 < len(own) <= 200 and own.name.startswith("synthetic:photos")
    assert len(check_pictures("synthetic:stickers?n=7", data)) == 7


def test_a_plain_exports_pictures_are_scaled_outside():
    feed = {"images": np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3), "knowledge": np.zeros((1, 2, 3))}
    assert preparation({})(feed)["images"] is feed["images"]
    found = preparation({"scale": [1 / 127.5], "shift": [-1.0]})(feed)
    assert found["images"].shape == (1, 3, 2, 4) and found["images"].dtype == np.float32
    assert found["images"][0, 2, 1, 3] == pytest.approx(23 / 127.5 - 1) and found["knowledge"] is feed["knowledge"]
    channels = preparation({"scale": [1.0, 2.0, 3.0], "shift": [0.0, 0.0, 1.0]})(feed)["images"]
    assert channels[0, :, 0, 1].tolist() == [3.0, 8.0, 16.0]
