"""The runtimes of the gate: what they give, what they say they executed, and that none takes another's place."""

from __future__ import annotations

import errno
import os
import re
import sys
import types

import numpy as np
import onnx_ir as ir
import pytest
from gate_parts import SIZE, pictures, write_graph

from kcdp.errors import KcdpError
from kcdp.export import runners
from kcdp.export.runners import RUNTIMES, available, open_runner, usable
from kcdp.export.running.compiled import CompiledGraph
from kcdp.export.running.rounding import round_in_float32
from kcdp.export.running.runner import DoesNotRun, Executed, FunctionRunner, Port, executed
from kcdp.export.running.sessions import CUDA, CudaSession, Session

FEED = {"images": pictures(3)}


def run(name, path, precision="float32"):
    """Logits, what the runtime says of itself, and what is wrong with what it executed."""
    with open_runner(name, path, precision, 1) as runner:
        outputs = runner.run(FEED)
        return outputs["logits"], runner.describe(), runner.failures()


def test_names_and_what_is_missing(monkeypatch):
    assert set(RUNTIMES) == {
        "onnxruntime", "openvino", "openvino-bf16", "onnxruntime-cuda", "unfused", "rounding",
    }  # fmt: skip
    assert {"onnxruntime", "unfused", "rounding"} <= set(available()) <= set(RUNTIMES)
    with pytest.raises(KcdpError, match="runtime 'onnx-runtime' \\(did you mean 'onnxruntime'\\?\\); expected one of"):
        open_runner("onnx-runtime", "model.onnx")
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "openvino" not in available()
    with pytest.raises(KcdpError, match=r"the package 'openvino' is not installed; run: pip install"):
        open_runner("openvino", "model.onnx")


def test_what_is_usable_for_a_precision(monkeypatch):
    assert usable(("onnxruntime", "an engine", "rounding"), "float16") == ("onnxruntime", "rounding")
    assert usable(("onnxruntime", "rounding"), "bfloat16") == ("rounding",)
    monkeypatch.setattr(CompiledGraph, "absent", classmethod(lambda cls: None))
    monkeypatch.setattr(CompiledGraph, "has_bfloat16", classmethod(lambda cls: False))
    assert usable(("openvino",), "bfloat16") == () and usable(("openvino",), "int8") == ("openvino",)


def test_onnx_runtime_says_what_it_executed(tmp_path):
    with open_runner("onnxruntime", write_graph(tmp_path / "model.onnx"), threads=2) as runner:
        assert runner.inputs == (Port("images", "uint8", (None, SIZE, SIZE, 3)),) and runner.fixed_batch is None
        assert [port.describe() for port in runner.outputs][2] == "s8 float32 [?, 8, 16, 16]"
        assert runner.executed() is None and "products" not in runner.describe()
        first = runner.run(FEED)
        assert set(first) == {"logits", "v", "s8", "maps_s8"}
        facts = runner.describe()
        assert (facts["runtime"], facts["place"], facts["threads"]) == ("onnxruntime", "CPUExecutionProvider", 2)
        assert sum(facts["products"].values()) == 3 and {n.split()[1] for n in facts["products"]} == {"float32"}
        assert facts["nodes"]["CPUExecutionProvider"] >= 6
        np.testing.assert_array_equal(runner.run(FEED)["logits"], first["logits"])
        assert runner.describe() == facts, "the first run is the one that is told"


def test_a_fixed_batch_and_wrong_feeds(tmp_path):
    with open_runner("onnxruntime", write_graph(tmp_path / "model.onnx", batch=3)) as runner:
        assert runner.fixed_batch == 3
        for feed, found in (
            ({"images": pictures(2)}, "was fed images uint8 [2, 16, 16, 3]; expected images uint8 [3, 16, 16, 3]"),
            ({"images": pictures(3) / 255}, "was fed images float64 [3, 16, 16, 3]"),
            ({"pictures": pictures(3)}, "was fed pictures uint8"),
            ({}, "was fed nothing"),
        ):
            with pytest.raises(DoesNotRun) as raised:
                runner.run(feed)
            assert found in str(raised.value)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_graph(tmp_path, name):
    pytest.importorskip(name)
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(DoesNotRun, match=r"cannot open model\.onnx"):
        open_runner(name, tmp_path / "model.onnx")
    with pytest.raises(KcdpError, match="threads is 0; expected a whole number from 1"):
        open_runner(name, write_graph(tmp_path / "model.onnx"), threads=0)


def no_room(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["onnx_ir.save", "tempfile.mkdtemp"])
def test_a_full_folder_for_temporary_files_is_no_fault_of_the_graph(tmp_path, monkeypatch, place):
    """A copy of the graph is rewritten there."""
    path = write_graph(tmp_path / "model.onnx", dtype="float16")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(place, no_room)
    with pytest.raises(KcdpError) as caught:
        open_runner("rounding", path, "float16")
    room = "expected room for about 1 MB; " if place == "onnx_ir.save" else ""
    assert not isinstance(caught.value, DoesNotRun)
    assert re.fullmatch(
        rf"writing to {temporary} failed \(No space left on device, \d+ MB are free\); {room}free some space, or set "
        "TMPDIR to a folder that has it", str(caught.value),
    )  # fmt: skip
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(("name", "room", "message"), [
    ("rounding", 64, r"writing to .* failed \(.*\); expected room for about 1 MB; free some space, or set TMPDIR"),
    ("onnxruntime", 64, "what ONNX Runtime wrote to .* of its run is cut off; expected room for it; free some"),
])  # fmt: skip
def test_a_limit_that_the_system_really_has(tmp_path, monkeypatch, name, room, message):
    resource = pytest.importorskip("resource", reason="limits of a process are a matter of Unix")
    path = write_graph(tmp_path / "model.onnx", dtype="float16")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(KcdpError, match=message) as caught, open_runner(name, path, "float16") as runner:
            runner.run(FEED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not isinstance(caught.value, DoesNotRun)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


class TestOpenVino:
    @pytest.fixture(autouse=True)
    def installed(self):
        self.core = pytest.importorskip("openvino").Core()

    def has_bfloat16(self):
        if "BF16" not in self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has no bfloat16")

    def test_float32_is_float32_though_its_default_is_not(self, tmp_path):
        path = write_graph(tmp_path / "model.onnx")
        logits, facts, failures = run("openvino", path)
        assert failures == [] and facts["type"] == "float32" and facts["threads"] == 1
        assert {name.split()[1] for name in facts["products"]} == {"float32"}
        np.testing.assert_allclose(logits, run("onnxruntime", path)[0], atol=1e-4)

    def test_bfloat16_of_a_float32_graph_is_asked_for_and_found(self, tmp_path):
        self.has_bfloat16()
        path = write_graph(tmp_path / "model.onnx")
        logits, facts, failures = run("openvino", path, "bfloat16")
        assert failures == [] and facts["type"] == "bfloat16"
        assert any(name.endswith(" bfloat16") for name in facts["products"])
        assert 1e-3 < np.abs(logits - run("openvino", path)[0]).max() < 0.5

    def test_a_typed_bfloat16_graph_keeps_its_types_under_float32(self, tmp_path):
        self.has_bfloat16()
        _, facts, failures = run("openvino", write_graph(tmp_path / "model.onnx", dtype="bfloat16"), "bfloat16")
        assert failures == [] and facts["type"] == "float32", "its float32 islands stay what they are"
        assert any(name.endswith(" bfloat16") for name in facts["products"])

    def test_outputs_have_the_names_of_the_file(self, tmp_path):
        with open_runner("openvino", write_graph(tmp_path / "model.onnx")) as runner:
            assert [port.name for port in runner.outputs] == ["logits", "v", "s8", "maps_s8"]
            first = runner.run(FEED)
            copy = {name: array.copy() for name, array in first.items()}
            runner.run({"images": 255 - FEED["images"]})
            np.testing.assert_array_equal(first["logits"], copy["logits"], "not the library's own memory")

    def test_another_type_than_asked_for_is_an_error(self, tmp_path, monkeypatch):
        """What OpenVINO 2026.4 does when it is asked for float16 on a processor without it."""
        if "FP16" in self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has float16")
        monkeypatch.setattr(CompiledGraph, "_asked", lambda self, typed: "f16")
        with pytest.raises(KcdpError, match=r"OpenVINO took (bfloat16|float32) instead of float16; expected"):
            open_runner("openvino", write_graph(tmp_path / "model.onnx"))

    def test_integers_are_found_and_missed(self, tmp_path):
        _, facts, failures = run("openvino", write_graph(tmp_path / "int8.onnx", quantised=True), "int8")
        assert failures == [] and any(name.split()[1] in ("int8", "uint8") for name in facts["products"])
        _, _, failures = run("openvino", write_graph(tmp_path / "model.onnx"), "int8")
        assert failures[0].startswith("no product runs in integers (")


    def test_the_rest_of_an_integer_graph_in_bfloat16(self, tmp_path):
        self.has_bfloat16()
        path = write_graph(tmp_path / "int8.onnx", quantised=True)
        logits, facts, failures = run("openvino-bf16", path, "int8")
        assert failures == [] and facts["type"] == "bfloat16"
        assert any(name.split()[1] in ("int8", "uint8") for name in facts["products"])
        assert 0 < np.abs(logits - run("openvino", path, "int8")[0]).max() < 0.5
        _, _, failures = run("openvino-bf16", write_graph(tmp_path / "model.onnx"), "float32")
        assert "run in half precision, expected none" in failures[0]


class TestRounding:
    def test_every_half_is_rounded(self, tmp_path):
        path = write_graph(tmp_path / "model.onnx", dtype="float16")
        exact = run("onnxruntime", write_graph(tmp_path / "exact.onnx"))[0]
        rounded, facts, failures = run("rounding", path, "float16")
        widened = run("onnxruntime", path, "float16")[0]
        assert failures == [] and facts["rounded"] >= 8
        assert np.abs(rounded - exact).max() > np.abs(widened - exact).max() > 0
        assert np.abs(rounded - exact).max() < 0.1

    def test_numbers_are_those_of_half_precision(self, tmp_path):
        """Against numpy: each layer's result in float16."""
        path = write_graph(tmp_path / "model.onnx", ("s8",), dtype="float16")
        with open_runner("rounding", path, "float16") as runner:
            found = runner.run(FEED)["s8"]
        np.testing.assert_array_equal(found, found.astype(np.float16).astype(np.float32))

    def test_overflow_is_seen(self, tmp_path):
        path = write_graph(tmp_path / "model.onnx", dtype="float16", gain=60000.0)
        assert np.isfinite(run("onnxruntime", path, "float16")[0]).all(), "a processor widens it"
        assert not np.isfinite(run("rounding", path, "float16")[0]).any()

    def test_bfloat16_that_onnx_runtime_cannot_run_itself(self, tmp_path):
        path = write_graph(tmp_path / "model.onnx", dtype="bfloat16")
        with pytest.raises(DoesNotRun):
            run("onnxruntime", path, "bfloat16")
        logits, _, failures = run("rounding", path, "bfloat16")
        exact = run("onnxruntime", write_graph(tmp_path / "exact.onnx"))[0]
        assert failures == [] and 1e-3 < np.abs(logits - exact).max() < 1

    def test_a_float32_graph_has_nothing_to_round(self, tmp_path):
        _, _, failures = run("rounding", write_graph(tmp_path / "model.onnx"), "float16")
        assert failures == ["nothing is rounded: the graph holds no half precision"]

    def test_graphs_that_cannot_be_rounded(self, tmp_path):
        model = ir.load(write_graph(tmp_path / "model.onnx", dtype="float16"))
        next(node for node in model.graph if node.op_type == "Conv").outputs[0].dtype = None
        with pytest.raises(DoesNotRun, match="the type of conv is not stored"):
            round_in_float32(model)
        model = ir.load(write_graph(tmp_path / "model.onnx", dtype="float16"))
        model.graph.outputs[0].dtype = ir.DataType.FLOAT16
        with pytest.raises(DoesNotRun, match="logits is FLOAT16"):
            round_in_float32(model)


class FakeRuntime(types.ModuleType):
    """An ONNX Runtime that says it has CUDA, and sessions that take another provider or place products elsewhere."""

    __version__ = "9.9"

    def __init__(self, taken, events=()):
        super().__init__("onnxruntime")
        real = __import__("onnxruntime")
        self.SessionOptions = real.SessionOptions

        def session(path, options, providers):
            found = real.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            found.get_providers = lambda: list(taken)
            if events:
                trace = found.end_profiling
                found.end_profiling = lambda: self.rewritten(trace(), events)
            return found

        self.InferenceSession = session

    @staticmethod
    def get_available_providers():
        return [CUDA, "CPUExecutionProvider"]

    @staticmethod
    def rewritten(path, events):
        """A trace in which some kinds of nodes ran on the GPU."""
        from pathlib import Path

        text = Path(path).read_text()
        if "all" in events:
            text = text.replace("CPUExecutionProvider", CUDA)
        Path(path).write_text(text)
        return path


class TestProviders:
    def test_cuda_that_is_not_there(self, tmp_path):
        if CudaSession.absent() is None:
            pytest.skip("this machine has the CUDA provider")
        assert "onnxruntime-cuda" not in available()
        with pytest.raises(KcdpError, match=r"the runtime 'onnxruntime-cuda': this ONNX Runtime .* expected CUDAExec"):
            open_runner("onnxruntime-cuda", write_graph(tmp_path / "model.onnx"))

    def test_a_silent_fallback_to_the_processor_is_an_error(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(["CPUExecutionProvider"]))
        with pytest.raises(DoesNotRun, match="ONNX Runtime took CPUExecutionProvider; expected CUDAExecutionProvider"):
            open_runner("onnxruntime-cuda", write_graph(tmp_path / "model.onnx"))

    def test_products_that_stay_on_the_processor_are_a_failure(self, tmp_path, monkeypatch):
        path = write_graph(tmp_path / "model.onnx")
        monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime([CUDA, "CPUExecutionProvider"]))
        _, facts, failures = run("onnxruntime-cuda", path)
        assert facts["place"] == CUDA and set(facts["nodes"]) == {"CPUExecutionProvider"}
        assert failures == ["3 products run elsewhere than asked for, one of them Conv on CPUExecutionProvider"]
        monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime([CUDA, "CPUExecutionProvider"], ("all",)))
        assert run("onnxruntime-cuda", path)[2] == []

    def test_another_provider_in_place_of_the_processor(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Session, "provider", "AzureExecutionProvider")
        monkeypatch.setitem(sys.modules, "onnxruntime", FakeRuntime(["CPUExecutionProvider"]))
        with pytest.raises(KcdpError, match="expected AzureExecutionProvider"):
            open_runner("onnxruntime", write_graph(tmp_path / "model.onnx"))

    @pytest.mark.gpu
    def test_on_a_gpu(self, tmp_path):
        if CudaSession.absent() is not None:
            pytest.skip("no CUDA provider here")
        path = write_graph(tmp_path / "model.onnx", dtype="float16")
        logits, facts, failures = run("onnxruntime-cuda", path, "float16")
        assert failures == [] and facts["nodes"][CUDA] > 0
        np.testing.assert_allclose(logits, run("rounding", path, "float16")[0], atol=0.05)


def test_what_was_executed_against_what_was_promised():
    rows = [("Conv", "float32", "A"), ("Conv", "bfloat16", "A"), ("Add", "float32", "B"), ("Conv", "bfloat16", "B")]
    found = executed(rows, "A", {"Conv"})
    assert found.products == {"Conv bfloat16": 2, "Conv float32": 1} and found.nodes == {"A": 2, "B": 2}
    assert found.failures("bfloat16") == ["1 products run elsewhere than asked for, one of them Conv on B"]
    here = Executed(found.products)
    assert here.failures("float32") == [
        "2 products run in half precision, expected none (Conv bfloat16: 2, Conv float32: 1)"
    ]
    assert here.failures("bfloat16") == here.failures("float16") == here.failures("int8-weights") == []
    assert here.failures("int8") == ["no product runs in integers (Conv bfloat16: 2, Conv float32: 1)"]
    assert Executed({}).failures("bfloat16") == ["no product runs in bfloat16 (no products at all)"]


def test_a_function_stands_in_for_an_engine():
    runner = FunctionRunner("engine", lambda feed: {"logits": feed["images"].mean(axis=(1, 2))}, batch=4)
    assert runner.fixed_batch == 4 and runner.describe() == {"runtime": "engine"} and runner.failures() == []
    assert runner.run({"images": np.ones((4, 2, 2, 3))})["logits"].shape == (4, 3)
    assert runners.check_runtime("onnxruntime") is Session
