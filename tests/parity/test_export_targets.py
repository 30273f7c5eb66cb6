"""The export in every target and precision, with other sizes and batches, and without passes."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from kcdp.bundle import Bundle
from kcdp.cli import main
from kcdp.data.registry import open_dataset
from kcdp.errors import KcdpError
from kcdp.export import exporter
from kcdp.export.engine.package import RTX
from kcdp.export.passes.registry import NAMES
from kcdp.export.precision.census import PRODUCTS
from kcdp.export.runners import usable
from kcdp.export.targets import TARGETS
from kcdp.graph import SESSION_ENTRIES
from kcdp.runtime.backends.provider_session import OnnxRuntimeSession
from kcdp.training.checkpoint import load_model

PHOTOS = "synthetic:photos?n=150&size=48&seed=9"
CHECK = ("--check-images", PHOTOS, "--calibration", "synthetic:photos?n=96&size=48&seed=3")


def trained(folder, *settings):
    """A run, trained for a moment: to random weights all pictures look alike, and any rounding changes answers."""
    arguments = ["--preset", "tiny", "--source", "synthetic:photos?n=300&size=48"]
    for setting in settings:
        arguments += ["--set", setting]
    assert main(["train", *arguments, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """As the preset is."""
    return trained(tmp_path_factory.mktemp("trained") / "run", "training.epochs=12")


def exported(run, out, *arguments, status=0):
    assert main(["export", str(run), "--out", str(out), *CHECK, *arguments]) == status
    return Bundle.open(out) if status == 0 else None


def initializer_types(bundle):
    graph = onnx.load(str(bundle.model_path)).graph
    return Counter(onnx.TensorProto.DataType.Name(t.data_type) for t in graph.initializer if np.prod(t.dims) > 64)


def opened(bundle, folder, entries):
    """Kinds of nodes that ONNX Runtime makes of a graph, told some options."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "opened.onnx")
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(str(bundle.model_path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


@pytest.mark.parametrize(
    ("target", "precision"),
    [
        ("portable", "fp16"),
        pytest.param("portable", "w8", marks=pytest.mark.slow),
        ("cpu", "fp32"),
        ("cpu", "bf16"),
        ("cpu", "int8"),
        ("cuda", "fp16"),
        pytest.param("cuda", "fp32", marks=pytest.mark.slow),
        pytest.param("tensorrt", "int8", marks=pytest.mark.slow),
        pytest.param("tensorrt", "bf16", marks=pytest.mark.slow),
        pytest.param("web", "int8", marks=pytest.mark.slow),
    ],
)
def test_a_bundle_of_each_kind(request, tmp_path, capsys, target, precision):
    if (target, precision) == ("cpu", "bf16") and not usable(("openvino",), "bfloat16"):
        pytest.skip("this processor has no bfloat16, or openvino is not installed")
    run = request.getfixturevalue("steady" if precision in ("fp16", "bf16") else "run")
    bundle = exported(run, tmp_path / "m.kcdp", "--target", target, "--precision", precision)
    manifest = bundle.manifest
    assert manifest.target == target and manifest.opset == TARGETS[target].opset_for(precision)
    assert manifest.parity["passed"] and manifest.parity["pictures"] == 150
    assert [row["pass"] for row in manifest.export["passes"]][1:] == [name for name in NAMES if name != "dead-branches"]
    left_out = [row["pass"] for row in manifest.export["passes"][1:] if row["max_abs_difference"] is None]
    row = TARGETS[target]
    assert left_out == [name for name in ("winograd", "norms") if precision not in getattr(row, name)]
    applied = [row for row in manifest.export["passes"][1:] if row["pass"] not in left_out]
    assert all(row["max_abs_difference"] < 1e-4 and row["max_relative_difference"] < 1e-5 for row in applied)
    products = Counter()
    for kind in PRODUCTS:
        products.update(manifest.export["operators"].get(kind, {}))
    bf16 = "bfloat16" if target == "tensorrt" else "bfloat16-weights float32"
    expected = {"fp32": "float32", "fp16": "float16", "bf16": bf16, "int8": "int8",
                "w8": "int8-weights float32"}[precision]  # fmt: skip
    assert products[expected] > 10, products
    if precision in ("fp32", "fp16"):
        assert set(products) == {expected}
    weights = initializer_types(bundle)
    kind = {"fp32": "FLOAT", "fp16": "FLOAT16", "bf16": "BFLOAT16"}.get(precision, "INT8")
    assert weights[kind] > 10, weights
    assert {"parity.md", "parity.png"} <= set(manifest.files)
    if precision == "w8":
        assert not opened(bundle, tmp_path, SESSION_ENTRIES["int8-weights"])["DequantizeLinear"], "widened in every run"
        assert opened(bundle, tmp_path, {})["DequantizeLinear"] > 10, "ONNX Runtime needs not be told any more"
    if target == "tensorrt":  # the types of the bundle are those of the engine's products
        capsys.readouterr()
        arguments = ["--package", RTX, "--profile", "1:2:4", "--cache", str(tmp_path / "cache"), "--json"]
        assert main(["export", "engine", str(bundle.path), *arguments]) == 0
        engine = json.loads(capsys.readouterr().out)
        kinds = Counter()
        for name, count in engine["layers"].items():
            if name.split()[0] in ("CONVOLUTION", "MATRIX_MULTIPLY"):
                kinds[name.split()[1]] += count
        left = sum(dtype == "float32" for dtype in manifest.precision.values())
        assert set(kinds) <= {"FLOAT", "BF16" if precision == "bf16" else "INT8"}, kinds
        assert precision == "int8" or kinds["FLOAT"] <= left, kinds  # in int8, products without weights are float32 too
        assert sum(kinds.values()) - kinds["FLOAT"] > 50, kinds
    domains = {node.domain for node in onnx.load(str(bundle.model_path), load_external_data=False).graph.node}
    if target == "cuda":
        fused = manifest.export["fused"]
        assert all(fused[name] for name in ("GroupNorm", "MultiHeadAttention", "BiasGelu", "NhwcConv")), fused
        assert fused["NhwcConv"] == manifest.export["operators"]["NhwcConv"][expected]
        with pytest.raises(KcdpError, match=r"on CUDA GPUs alone.*--target cpu or portable"):
            OnnxRuntimeSession(bundle)
    assert ("com.microsoft" in domains) == (target == "cuda")


def test_a_plain_export_and_passes_left_out_one_by_one(run, tmp_path, capsys):
    plain = exported(run, tmp_path / "plain.kcdp", "--no-passes")
    exact = exported(run, tmp_path / "exact.kcdp")
    part = exported(run, tmp_path / "part.kcdp", "--skip-pass", "timestep", "--skip-pass", "pyramid")

    def nodes(bundle):
        return len(onnx.load(str(bundle.model_path)).graph.node)

    def numbers(bundle):
        return bundle.manifest.export["passes"][-1]["parameters"]

    assert nodes(plain) > nodes(exact) and numbers(plain) > numbers(exact) and numbers(part) > numbers(exact)
    assert [row["max_abs_difference"] for row in plain.manifest.export["passes"]] == [None] * 11
    left_out = [row["pass"] for row in part.manifest.export["passes"][1:] if row["max_abs_difference"] is None]
    assert left_out == ["timestep", "pyramid", "winograd", "norms"], "the last two are not for this target"
    assert plain.manifest.graph.inputs[0].describe() == "images float32 [batch, 3, 32, 32]"
    assert "pixels-scaled" in plain.manifest.needs and plain.manifest.scaling["scale"] == [pytest.approx(2 / 255)]
    dataset = open_dataset("synthetic:stickers?n=5&size=60")
    images = plain.manifest.preprocess.apply_batch([dataset.image(i) for i in range(5)])
    with OnnxRuntimeSession(plain) as a, OnnxRuntimeSession(exact) as b:
        np.testing.assert_allclose(a.run(images), b.run(images), atol=1e-4)


def test_another_size_and_a_fixed_batch(run, tmp_path, capsys):
    bundle = exported(run, tmp_path / "m.kcdp", "--size", "64", "--batch", "3")
    manifest = bundle.manifest
    assert manifest.preprocess.size == 64 and "batch-fixed" in manifest.needs
    assert manifest.graph.inputs[0].shape == (3, 64, 64, 3)
    model, _ = load_model(run)
    images = np.random.default_rng(0).integers(0, 256, (7, 64, 64, 3), dtype=np.uint8)
    with torch.inference_mode():
        want = model(torch.from_numpy(images)).logits.numpy()
    with OnnxRuntimeSession(bundle) as session:
        np.testing.assert_allclose(session.run(images), want, rtol=1e-4, atol=1e-4)
    assert main(["export", str(run), "--out", str(tmp_path / "x.kcdp"), *CHECK, "--size", "50"]) == 2
    assert "--size 50; expected a multiple of 32 for this model; try 32" in capsys.readouterr().err


def test_an_engine_s_batches_are_kept(steady, tmp_path):
    bundle = exported(steady, tmp_path / "m.kcdp", "--target", "tensorrt", "--precision", "fp16", "--batch", "1:2:8")
    assert bundle.manifest.export["profile"] == [1, 2, 8] and bundle.manifest.graph.inputs[0].shape[0] is None


def test_a_bundle_too_large_for_browsers_is_not_written(run, tmp_path, monkeypatch, capsys):
    small = dict(TARGETS)
    small["web"] = type(TARGETS["web"])(**{**vars(TARGETS["web"]), "max_bytes": 100_000})
    monkeypatch.setattr("kcdp.export.targets.TARGETS", small)
    exported(run, tmp_path / "m.kcdp", "--target", "web", status=2)
    assert "expected at most 0 MB for the target web; export in fp16, int8 or w8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_precision_that_is_not_there_is_seen(run, tmp_path, monkeypatch, capsys):
    """The twin: a conversion that converts nothing."""
    monkeypatch.setattr(
        exporter, "narrow", lambda *arguments: exporter.Narrowed({"default": "float16"}),
    )  # fmt: skip
    exported(run, tmp_path / "m.kcdp", "--precision", "fp16", status=2)
    error = capsys.readouterr().err
    assert "the graph is not in fp16: the product" in error and "computes in float32 and is no declared island" in error
    assert list(tmp_path.iterdir()) == []


def test_info_tells_what_a_bundle_is(run, tmp_path, capsys):
    out = tmp_path / "m.kcdp"
    exported(run, out)
    capsys.readouterr()
    assert main(["export", "info", str(out)]) == 0
    printed = capsys.readouterr().out
    for part in ("for portable (opset 20)", "images uint8 [batch, 32, 32, 3]", "precision   float32",
                 "pass        pyramid", "parity      passed on 150 pictures", "batch 5: logits within"):  # fmt: skip
        assert part in printed, part
    assert main(["export", "info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["target"] == "portable"
