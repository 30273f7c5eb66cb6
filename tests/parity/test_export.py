"""The export, its parity gate, and the gate's failing twins."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from kcdp.bundle import Bundle
from kcdp.cli import main
from kcdp.config import load_config
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.export import exporter
from kcdp.export.device.model import DeviceModel, ReferenceModel
from kcdp.export.parity import Gate, assemble, check_signature, compare, compare_levels
from kcdp.export.passes.registry import PassOptions, apply_passes
from kcdp.export.reference import Reference
from kcdp.export.runners import open_runner
from kcdp.export.running.runner import FunctionRunner
from kcdp.export.tracing import drop_dead_branches, keep_outputs, save_graph, trace
from kcdp.graph import tagging_graph
from kcdp.models.build import build_model
from kcdp.runtime import Tagger
from kcdp.training.checkpoint import load_model, save_checkpoint

SIZE = 32
SOURCE = "synthetic:photos?n=120&size=48"


def decisive(config, dataset, count=24):
    """An untrained model whose answers are centred and scaled on some pictures, so that decisions differ."""
    model = build_model(config).eval()
    some = range(min(count, len(dataset)))
    images = torch.from_numpy(config.preprocess.apply_batch([dataset.image(i) for i in some]))
    with torch.no_grad():
        model.norm.momentum = None  # one pass sets the statistics of v as training would
        model.norm.train()
        model(images)
        model.norm.eval()
        for _ in range(3):  # the gate weighs each expert's bias, so centring takes a few rounds
            output = model(images)
            chosen = (output.moe.gates * output.moe.chosen).sum(1).mean()
            model.moe.answer_bias -= output.logits.mean(0) / chosen
        scale = 1.0 / output.logits.std(0).mean()
        model.moe.answer_weight *= scale
        model.moe.answer_bias *= scale
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = load_config("tiny", data={"data": {"source": SOURCE}})
    model = decisive(config, open_dataset("synthetic:stickers?n=23&size=48"))
    save_checkpoint(folder / "best.safetensors", model, config, {"step": 0})
    return folder


@pytest.fixture(scope="module")
def exportable(run):
    return ReferenceModel(load_model(run)[0])


@pytest.fixture(scope="module")
def images(run):
    spec = load_config("tiny").preprocess
    dataset = open_dataset("synthetic:stickers?n=23&size=48")
    return spec.apply_batch([dataset.image(i) for i in range(len(dataset))])


@pytest.fixture(scope="module")
def graphs(exportable, tmp_path_factory):
    """instrumented.onnx and model.onnx of the same model."""
    folder = tmp_path_factory.mktemp("graphs")
    device = DeviceModel(exportable.model)
    apply_passes(device, PassOptions(SIZE))
    graph = trace(device, SIZE)
    drop_dead_branches(graph)
    save_graph(graph, folder / "instrumented.onnx")
    keep_outputs(graph, ("logits",), {"note": "test"})
    save_graph(graph, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def reference(exportable, images):
    return Reference(exportable, images)


def gate(reference, shipped, twin=None, spec=None):
    """The report of one runtime on files that are on disk, or on a runner."""
    how, levels = Gate(), {}
    if twin is not None:
        with open_runner("onnxruntime", twin) as runner:
            levels = compare_levels(reference, runner, how)
    runner = shipped if isinstance(shipped, FunctionRunner) else open_runner("onnxruntime", shipped)
    with runner:
        found = compare(reference, runner, how, levels)
    return assemble(reference, [found], how, [] if spec is None else check_signature(shipped, spec))


def test_gate_passes_on_a_faithful_graph(graphs, reference, images):
    report = gate(reference, graphs / "model.onnx", graphs / "instrumented.onnx", tagging_graph(SIZE))
    assert report.passed, report.failures
    assert report.pictures == len(images) == 23
    (runtime,) = report.runtimes
    assert [run.batch for run in runtime.runs] == [1, 5]
    for run in runtime.runs:
        assert run.numbers["decisions"]["agree"] == 1.0
        assert run.numbers["logits"]["max_abs"] < 1e-4
        assert set(run.numbers["levels"]) == {"v", "s4", "s8", "s16", "s32", "maps_s8", "maps_s16"}
    assert len(set(reference.logits.argmax(1))) > 1, "decisions of one class only would prove little"
    json.dumps(report.to_dict(), allow_nan=False)


def test_reference_is_the_model_itself(exportable, reference, images):
    with torch.no_grad():
        output = exportable.model(torch.from_numpy(images[:3]))
    np.testing.assert_allclose(reference.logits[:3], output.logits.numpy(), rtol=1e-4, atol=1e-4)
    both = np.concatenate([reference.levels["s8"], reference.levels["maps_s8"]], axis=1)
    np.testing.assert_allclose(both[:3], output.levels["s8"].numpy(), rtol=1e-4, atol=1e-5)


def perturbed(path, target, change):
    """A copy of a graph with one float weight changed: the largest convolution kernel."""
    model = onnx.load(str(path))
    kernels = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}
    tensor = max((t for t in model.graph.initializer if t.name in kernels), key=lambda t: len(t.raw_data))
    weights = numpy_helper.to_array(tensor).copy()
    change(weights)
    tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    onnx.save(model, str(target))
    return target


def one_weight(weights):
    weights[0, 0, 1, 1] += 1.0  # the middle: at the coarsest level the others meet nothing but padding


def not_a_number(weights):
    weights[0, 0, 1, 1] = np.nan


@pytest.mark.parametrize(
    ("change", "expected"), [(one_weight, "differ by up to"), (not_a_number, "logits that are not finite")]
)
def test_gate_fails_on_one_perturbed_weight(graphs, reference, tmp_path, change, expected):
    broken = perturbed(graphs / "instrumented.onnx", tmp_path / "broken.onnx", change)
    report = gate(reference, broken, broken)
    assert not report.passed
    assert any(expected in failure for failure in report.failures), report.failures
    level = "of 23 pictures are not finite" if change is not_a_number else "has cosine"
    assert any(re.search(rf"batch 5: s\d+ {level}", failure) for failure in report.failures), report.failures


def test_gate_fails_on_a_flipped_decision_and_on_a_wrong_shape(reference):
    good = dict(zip(map(bytes, reference.images), reference.logits, strict=True))

    def flipped(feed):
        batch = feed["images"]
        logits = np.stack([good[bytes(image)] for image in batch])
        first = np.array([bytes(image) == bytes(reference.images[0]) for image in batch])
        logits[first] = np.roll(logits[first], 1, axis=1)
        return {"logits": logits}

    report = gate(reference, FunctionRunner("a stand-in", flipped))
    assert any("decisions agree, needed 100.00%" in failure for failure in report.failures)
    narrow = FunctionRunner("a stand-in", lambda feed: {"logits": np.zeros((len(feed["images"]), 5), np.float32)})
    report = gate(reference, narrow)
    assert "a stand-in: batch 5: logits is float32 [5, 5]; expected float32 [5, 6]" in report.failures


def test_gate_fails_on_wrong_scaling_of_the_input(graphs, reference):
    right = open_runner("onnxruntime", graphs / "model.onnx")
    report = gate(reference, FunctionRunner("a stand-in", lambda feed: right.run({"images": 255 - feed["images"]})))
    assert not report.passed


def test_signature_differences_are_named(graphs):
    assert check_signature(graphs / "model.onnx", tagging_graph(SIZE)) == []
    (failure,) = check_signature(graphs / "model.onnx", tagging_graph(64))
    assert "inputs are" in failure and "64" in failure
    (failure,) = check_signature(graphs / "instrumented.onnx", tagging_graph(SIZE))
    assert failure.startswith("outputs are logits float32 [batch, 6], v float32 [batch, 64], s4 float32 [batch, ")
    assert failure.endswith("; expected logits float32 [batch, 6]")


def test_no_pictures_and_unknown_precision_are_refused(exportable):
    with pytest.raises(KcdpError, match="precision 'float23' \\(did you mean 'float32'"):
        Gate("float23")
    with pytest.raises(KcdpError, match="no pictures to check the graph on"):
        Reference(exportable, np.empty((0, SIZE, SIZE, 3), np.uint8))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """A bundle written by the command, and what the command printed."""
    out, printed = tmp_path_factory.mktemp("exported") / "model.kcdp", io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["export", str(run), "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_command_writes_a_bundle_that_says_what_it_is(exported):
    out, printed = exported
    assert printed.splitlines()[-1] == f"next: kcdp tag PICTURES --model {out}"
    manifest = Bundle.open(out).manifest
    assert manifest.parity["passed"] is True
    assert manifest.parity["data"] == SOURCE
    assert manifest.parity["pictures"] == 8
    assert manifest.configuration["data"]["source"] == [SOURCE]
    assert manifest.producers["torch"] == torch.__version__.split("+")[0]
    assert len(manifest.source["sha256"]) == 64
    inside = {p.key: p.value for p in onnx.load(str(out / "model.onnx")).metadata_props}
    assert json.loads(inside["kcdp.manifest"])["labels"] == list(manifest.labels)
    assert [p.name for p in out.parent.iterdir()] == ["model.kcdp"], "nothing is left behind"


def test_graph_holds_no_traces_of_the_exporters_source(exported):
    graph = Bundle.open(exported[0]).model_path
    bytes_ = graph.read_bytes()
    assert str(Path(exporter.__file__).parent).encode() not in bytes_ and b"stack_trace" not in bytes_
    assert [entry.key for entry in onnx.load(graph).metadata_props] == ["kcdp.manifest"]


def test_the_bundle_passes_the_gate_again(run, exported, capsys):
    """The whole command on a real bundle: reference, pictures of the run, the runtimes of the export."""
    assert main(["export", "check", str(exported[0]), "--run", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] and found["same_run"] and found["pictures"] == 8 and found["data"] == SOURCE
    first = Bundle.open(exported[0]).manifest.parity["runtimes"][0]["batch_sizes"]["1"]
    assert found["runtimes"][0]["batch_sizes"]["1"]["logits"] == first["logits"], "the same graph, the same numbers"


def test_tagger_answers_like_the_trained_model(run, exported):
    model, checkpoint = load_model(run)
    dataset = open_dataset("synthetic:stickers?n=12&size=80")
    pictures = [dataset.image(i) for i in range(len(dataset))]
    with torch.inference_mode():
        logits = model(torch.from_numpy(checkpoint.config.preprocess.apply_batch(pictures))).logits
    want = torch.softmax(logits, 1).numpy()
    with Tagger.load(exported[0], batch_size=5) as tagger:
        tags = tagger.tag(pictures)
    got = np.array([list(tag.scores.values()) for tag in tags])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert [tag.label for tag in tags] == [list(tag.scores)[i] for tag, i in zip(tags, want.argmax(1), strict=True)]


def test_command_fails_and_writes_nothing_when_the_gate_fails(run, tmp_path, monkeypatch, capsys):
    def perturbing(graph, path, **options):
        save_graph(graph, path, **options)
        perturbed(path, path, one_weight)

    monkeypatch.setattr(exporter, "save_graph", perturbing)
    out = tmp_path / "model.kcdp"
    assert main(["export", str(run), "--out", str(out)]) == 1
    captured = capsys.readouterr()
    assert "failed the parity gate" in captured.err and "Traceback" not in captured.err
    assert "FAILED" in captured.out
    assert list(tmp_path.iterdir()) == []
    kept = tmp_path / "failed"
    assert main(["export", str(run), "--out", str(out), "--keep-failed", str(kept)]) == 1
    assert f"look at {kept / 'parity.md'}" in capsys.readouterr().err
    assert {"model.onnx", "parity.md"} <= {file.name for file in kept.iterdir()} and list(tmp_path.iterdir()) == [kept]
    assert "FAILED" in (kept / "parity.md").read_text(encoding="utf-8").upper()
    with pytest.raises(KcdpError, match=r"manifest\.json"):
        Bundle.open(kept)


def test_command_errors_are_one_line(run, tmp_path, capsys):
    existing = tmp_path / "old.kcdp"
    existing.mkdir()
    (existing / "thesis.tex").write_text("precious")
    cases = {
        ("export", str(run), "--out", "x.kcdp", "--keep-failed", str(existing)): "exists already; expected a new name",
        ("export", str(tmp_path / "none"), "--out", "x.kcdp"): "is not there; expected a run folder",
        ("export", str(run), "--out", str(existing)): "exists already; expected a new name",
        ("export", str(run), "--out", str(existing), "--overwrite"): "other folders are never overwritten",
        ("export", str(run), "--out", str(tmp_path / "y"), "--check-images", "folder:gone"): "gone does not exist",
    }
    for argv, message in cases.items():
        assert main(list(argv)) == 2, argv
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert (existing / "thesis.tex").read_text() == "precious"


def test_the_released_codes_routing_and_scaling_are_exported(tmp_path):
    """Routing picture by picture is one function with the dense one; a graph can only hold that of any batch."""
    overrides = ["model.head.routing=loop", "model.input_normalization=imagenet-twice", "model.scale_latents=false"]
    config = load_config("tiny", overrides=overrides, data={"data": {"source": SOURCE}})
    stickers = open_dataset("synthetic:stickers?n=23&size=48")
    model = decisive(config, stickers)
    run = tmp_path / "run"
    run.mkdir()
    save_checkpoint(run / "best.safetensors", model, config, {"step": 0})
    out = tmp_path / "model.kcdp"
    assert main(["export", str(run), "--out", str(out), "--check-images", "synthetic:stickers?n=23&size=48"]) == 0
    manifest = Bundle.open(out).manifest
    assert manifest.parity["passed"] and manifest.parity["pictures"] == 23

    pictures = [stickers.image(i) for i in range(23)]
    with torch.inference_mode():
        logits = model(torch.from_numpy(config.preprocess.apply_batch(pictures))).logits
    want = torch.softmax(logits, 1).numpy()
    with Tagger.load(out, batch_size=5) as tagger:
        got = np.array([list(tag.scores.values()) for tag in tagger.tag(pictures)])
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert len(set(want.argmax(1))) > 1


def test_check_images_fall_back_with_a_hint(tmp_path, capsys):
    config = load_config("tiny", data={"data": {"source": "folder:gone"}})
    save_checkpoint(tmp_path / "best.safetensors", build_model(config), config, {"step": 0})
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "x.kcdp")]) == 2
    assert "name others with --check-images SPEC" in capsys.readouterr().err


@pytest.mark.data
def test_gate_on_200_real_photographs_with_the_edge_preset(tmp_path):
    """Preset edge, 200 FER-2013 faces, batch 1 and 5; weights untrained, answers scaled to be decisive."""
    archive = "../shared/data/fer2013.zip"
    if not Path(archive).exists():
        pytest.skip(f"{archive} is not there")
    config = load_config("edge", data={"data": {"source": f"fer2013:{archive}"}})
    faces = open_dataset(config.data.source[0], split="val")
    # Centred on as many faces as are compared: an untrained model blows up those that its statistics have not seen.
    model = decisive(config, faces, 200)
    save_checkpoint(tmp_path / "best.safetensors", model, config, {"step": 0})
    compared = faces.subset(range(0, len(faces), len(faces) // 200)[:200])
    parity = exporter.export_run(tmp_path, tmp_path / "edge.kcdp", compared, progress=False).manifest.parity
    assert parity["pictures"] == 200
    for batch in ("1", "5"):
        numbers = parity["runtimes"][0]["batch_sizes"][batch]
        assert numbers["decisions"]["agree"] == 1.0
        assert numbers["logits"]["max_abs"] <= 1e-4
