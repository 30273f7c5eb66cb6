"""Session libraries behind one interface: real ones agree, absent ones say how to get them, no fallback is silent."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from backend_fakes import ADA, FakeRuntime
from in_threads import in_threads

from kcdp.errors import KcdpError
from kcdp.graph import tagging_graph
from kcdp.runtime.backends import captured, provider_backend, provider_session
from kcdp.runtime.backends.captured import CapturedRuns
from kcdp.runtime.backends.choice import ORDER
from kcdp.runtime.backends.compiled_graph import CompiledSession, chosen_precision, native_bfloat16, unfit
from kcdp.runtime.backends.options import DEFAULTS, SessionOptions
from kcdp.runtime.backends.provider_session import OnnxRuntimeSession
from kcdp.runtime.backends.providers import PROVIDERS
from kcdp.runtime.backends.registry import BACKENDS, open_session

CUDA = "CUDAExecutionProvider"
REAL = ("onnxruntime", "openvino")


def noise(count, seed=0):
    """Pictures of one colour each, a little noisy: the tiny bundle averages over a picture."""
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 230, (count, 1, 1, 3), dtype=np.uint8)
    return colours + generator.integers(0, 26, (count, 32, 32, 3), dtype=np.uint8)


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def runtime(monkeypatch):
    """``runtime(CUDA, taken=[...])``: this onnxruntime, on a machine with a card."""

    def install(*offered, **more) -> FakeRuntime:
        fake = FakeRuntime(*offered, **more)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        for module in (provider_backend, provider_session):
            monkeypatch.setattr(module, "find_gpu", lambda index=0: ADA if index == 0 else None)
        return fake

    return install


def fixed(make_bundle, path, batch, **more):
    """The tiny bundle with a fixed batch."""
    import onnx

    bundle = make_bundle(path)
    model = onnx.load(str(bundle.model_path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    from kcdp.bundle import write_bundle

    manifest = replace(bundle.manifest, graph=tagging_graph(32, batch=batch), files={}, digest="", **more)
    data = model.SerializeToString()
    return write_bundle(path, manifest, lambda folder: (folder / "model.onnx").write_bytes(data), overwrite=True)


# --- real libraries ---------------------------------------------------------------------------------------------------


def test_the_table_of_backends():
    assert len(BACKENDS) == 13 and set(REAL) <= set(BACKENDS)
    assert {name for name, row in BACKENDS.items() if not row.verified.startswith("never")} == set(REAL)
    known = set(SessionOptions.__dataclass_fields__)
    for name, row in BACKENDS.items():
        assert row.name == name and row.what and row.options and row.options <= known, name


def test_the_page_about_backends_is_true():
    page = (Path(__file__).parents[2] / "docs" / "backends.md").read_text(encoding="utf-8")
    lines = [line.strip("|") for line in page.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    told = {row[0].strip("`"): row for row in cells if len(row) == 4 and row[0].startswith("`")}
    assert set(told) == set(BACKENDS)
    for name, backend in BACKENDS.items():
        assert set(told[name][2].split(", ")) == backend.options, name
        never = backend.verified.startswith("never run:")
        assert never == (told[name][3] == "never"), name
        extras = re.findall(r"kcdp\[([\w-]+)\]", told[name][1])
        assert not extras or f"kcdp[{extras[0]}]" in (PROVIDERS[name].fix if name in PROVIDERS else told[name][1])
    orders = {row[0].strip("`"): re.findall(r"`([\w-]+)`", row[1]) for row in cells if len(row) == 2}
    assert {target: orders[target] for target in ORDER} == {target: list(order) for target, order in ORDER.items()}


@pytest.mark.parametrize("threads", [1, None])
def test_backends_agree(tiny_bundle, threads):
    images = noise(5)
    logits = []
    for name in REAL:
        with open_session(tiny_bundle, name, options=SessionOptions(threads=threads)) as session:
            logits.append(session.run(images))
            facts = session.describe()
            assert json.loads(json.dumps(facts)) == facts
            assert facts["backend"] == name and facts["why"] == "asked for by name" and facts["threads"] == threads
            assert facts["version"] and facts["provider"] in ("CPUExecutionProvider", "CPU")
    assert logits[0].dtype == np.float32 and np.abs(logits[0]).max() > 1
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REAL)
def test_a_fixed_batch_is_filled_up(make_bundle, tmp_path, name):
    bundle, images = fixed(make_bundle, tmp_path / "two.kcdp", 2), noise(5)
    with open_session(make_bundle(tmp_path / "free.kcdp"), name) as free:
        want = free.run(images)
    with open_session(bundle, name) as session:
        for count in (1, 2, 4, 5):
            np.testing.assert_allclose(session.run(images[:count]), want[:count], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", REAL)
def test_arrays_that_are_not_contiguous_or_not_writable(tiny_bundle, name):
    images = noise(4)
    with open_session(tiny_bundle, name) as session:
        want = session.run(images)
        frozen = images.copy()
        frozen.setflags(write=False)
        assert (session.run(frozen) == want).all()
        assert (session.run(np.asfortranarray(images)) == want).all()
        first, second = session.run(images[:2]), session.run(images[2:])
        assert (first == want[:2]).all() and (second == want[2:]).all(), "what was given out is not written over"


def test_pictures_are_not_copied_on_their_way(tiny_bundle, make_bundle, tmp_path, monkeypatch):
    """Neither whole batches nor the full parts of a fixed one; only the last part, which is filled up."""
    run, fed = OnnxRuntimeSession._run, []
    monkeypatch.setattr(OnnxRuntimeSession, "_run", lambda self, feed: fed.append(feed["images"]) or run(self, feed))
    images = noise(5)
    with open_session(tiny_bundle, "onnxruntime") as session:
        session.run(images)
    with open_session(fixed(make_bundle, tmp_path / "two.kcdp", 2), "onnxruntime") as session:
        session.run(images)
    assert [len(part) for part in fed] == [5, 2, 2, 2]
    assert [np.shares_memory(part, images) for part in fed] == [True, True, True, False]


@pytest.mark.parametrize("name", REAL)
def test_eight_threads_run_one_session(tiny_bundle, name):
    batches = [noise(3, seed) for seed in range(8)]
    wrong: list[object] = []
    with open_session(tiny_bundle, name, options=SessionOptions(threads=1)) as session:
        want = [session.run(batch) for batch in batches]

        def work(index: int) -> None:
            for _ in range(40):
                if not np.array_equal(session.run(batches[index]), want[index]):
                    wrong.append(index)

        in_threads(work, range(8))
    assert not wrong


@pytest.mark.parametrize("name", REAL)
def test_closing_twice(tiny_bundle, name):
    session = open_session(tiny_bundle, name)
    session.run(noise(1))
    session.close()
    session.close()
    assert fails(lambda: session.run(noise(1))).endswith("tiny.kcdp is closed; open the bundle again")


@pytest.mark.parametrize("name", REAL)
def test_a_graph_that_is_not_the_manifest_s(make_bundle, tmp_path, name):
    for more, message in (
        ({"input_name": "pictures"}, "has the inputs ['pictures']; expected ['images'] as in the manifest"),
        ({"size": 48}, "has the input images uint8 [?, 48, 48, 3]; expected images uint8 [batch, 32, 32, 3] as in"),
    ):
        bundle = make_bundle(tmp_path / "other.kcdp", **more)
        assert message in fails(lambda bundle=bundle: open_session(bundle, name))


@pytest.mark.parametrize("name", REAL)
def test_a_damaged_graph_and_a_failing_run_are_one_line(make_bundle, tmp_path, name, capfd):
    library = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}[name]
    bundle = make_bundle(tmp_path / "dark.kcdp", fails_above=100)
    (tmp_path / "dark.kcdp" / "model.onnx").write_bytes(b"no graph at all")
    assert fails(lambda: open_session(bundle, name)).startswith(f"{library} ")
    bundle = make_bundle(tmp_path / "bright.kcdp", fails_above=100)
    with open_session(bundle, name) as session:
        assert session.run(noise(2) // 4).shape == (2, 6)
        if name == "onnxruntime":  # OpenVINO reads past the table's end, and tries other formats aloud
            message = fails(lambda: session.run(noise(2)))
            assert message.startswith(f"{library} failed on {bundle.model_path} with 2 pictures (")
            assert capfd.readouterr().err == ""


def test_compiled_graphs_are_kept_where_they_are_asked_to_be(tiny_bundle, tmp_path):
    options = SessionOptions(cache=str(tmp_path / "cache"), streams=1, threads=1)
    with open_session(tiny_bundle, "openvino", options=options) as session:
        want = session.run(noise(2))
    kept = list((tmp_path / "cache" / "compiled").iterdir())
    assert kept
    with open_session(tiny_bundle, "openvino", options=options) as session:
        assert (session.run(noise(2)) == want).all()
    assert list((tmp_path / "cache" / "compiled").iterdir()) == kept


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"threads": 0}, "threads is 0; expected a whole number from 1 to 1024, or None for all cores"),
        ({"threads": 1025}, "threads is 1025; expected a whole number from 1 to 1024, or None for all cores"),
        ({"threads": True}, "threads is True; expected a whole number from 1 to 1024, or None for all cores"),
        ({"precision": "fp16"}, "precision is 'fp16'; expected one of auto, f32, bf16, f16"),
        ({"device": -1}, "device is -1; expected a whole number from 0"),
        ({"cache": ""}, "cache is ''; expected a folder's name, or None"),
        ({"cuda_graph": 1}, "cuda_graph is 1; expected True or False"),
        (
            {"streams": 1.5, "engine": 3},
            "streams is 1.5; expected a whole number from 1 to 1024, or None | engine is 3; expected a file's name, or "
            "None",
        ),
    ],
)
def test_options_are_checked(given, message):
    assert fails(lambda: SessionOptions(**given)) == message


def test_options_that_a_backend_does_not_have(tiny_bundle):
    message = fails(lambda: open_session(tiny_bundle, "onnxruntime", options=SessionOptions(precision="f16")))
    assert message == (
        "precision='f16' for the backend onnxruntime; expected options that it takes: streams, threads; precision is "
        "taken by onnxruntime-qnn, openvino, openvino-gpu, openvino-npu"
    )
    options = SessionOptions(cuda_graph=True, device=1)
    assert fails(lambda: open_session(tiny_bundle, "openvino", options=options)) == (
        "device=1 and cuda_graph=True for the backend openvino; expected options that it takes: cache, precision, "
        "streams, threads; device is taken by onnxruntime-cuda, onnxruntime-tensorrt, onnxruntime-tensorrt-rtx, "
        "onnxruntime-directml, openvino-gpu, tensorrt, tensorrt-rtx; cuda_graph is taken by onnxruntime-cuda, "
        "onnxruntime-tensorrt-rtx, tensorrt-rtx"
    )
    assert SessionOptions(threads=2, cuda_graph=True).given() == ("threads", "cuda_graph") and DEFAULTS.given() == ()


def test_a_backend_that_there_is_not(tiny_bundle):
    message = fails(lambda: open_session(tiny_bundle, "openvinno"))
    assert message.startswith("backend 'openvinno' (did you mean 'openvino'?); expected one of auto, onnxruntime, ")


# --- providers that are not here --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("onnxruntime-cuda", 'on a machine with a CUDA GPU run: pip uninstall onnxruntime; pip install "kcdp[gpu]"'),
        ("onnxruntime-tensorrt-rtx", 'run: pip install "kcdp[rtx-provider]"'),
        ("onnxruntime-directml", 'on Windows run: pip uninstall onnxruntime; pip install "kcdp[directml]"'),
        ("onnxruntime-qnn", 'on an ARM64 machine of Qualcomm run: pip install "kcdp[qnn]"'),
        ("onnxruntime-coreml", 'on a Mac run: pip install "kcdp[runtime]"'),
        ("tensorrt", 'run: pip install "kcdp[tensorrt]"'),
    ],
)
def test_a_backend_that_is_not_installed_says_how_to_get_it(tiny_bundle, name, fix, monkeypatch):
    import onnxruntime

    if PROVIDERS.get(name) and PROVIDERS[name].provider in onnxruntime.get_available_providers():
        pytest.skip(f"this machine has {name}")
    for module in ("tensorrt", "onnxruntime_qnn", "onnxruntime_ep_nv_tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    message = fails(lambda: open_session(tiny_bundle, name))
    assert message.startswith(f"the backend {name} is not installed: ") and message.endswith(f"; {fix}")


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-cuda", "openvino", "openvino-npu", "tensorrt-rtx"])
def test_missing_and_broken_packages(tiny_bundle, name, monkeypatch):
    for module in ("onnxruntime", "openvino", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, module, None)
    status = BACKENDS[name].status(DEFAULTS)
    assert status.state == "not installed" and "is not installed" in status.reason and "pip install" in status.fix

    def broken(module):
        raise OSError("libfoo.so.1: cannot open shared object file\nmore")

    monkeypatch.setattr("importlib.import_module", broken)
    status = BACKENDS[name].status(DEFAULTS)
    assert status.state == "unusable"
    assert status.reason == "it cannot be loaded (libfoo.so.1: cannot open shared object file)"


def test_a_provider_without_a_card(tiny_bundle, runtime):
    runtime(CUDA)
    message = fails(lambda: open_session(tiny_bundle, "onnxruntime-cuda", options=SessionOptions(device=1)))
    assert message == (
        "the backend onnxruntime-cuda is unusable: no NVIDIA GPU 1 was found; install NVIDIA's driver"
    )


# --- no fallback is silent --------------------------------------------------------------------------------------------


def test_a_provider_that_is_active(tiny_bundle, runtime, capsys):
    fake = runtime(CUDA, assigned={"*": CUDA, "ReduceMax": "CPUExecutionProvider", "Gather": "CPUExecutionProvider"})
    with open_session(tiny_bundle, "onnxruntime-cuda", options=SessionOptions(threads=1)) as session:
        assert session.run(noise(2)).shape == (2, 6)
        facts = session.describe()
        assert session._session.fallback_disabled
    assert facts["backend"] == "onnxruntime-cuda" and facts["provider"] == CUDA
    assert facts["nodes"]["CPUExecutionProvider"] == 2 and facts["nodes"][CUDA] > 2
    (opened,) = fake.opened
    assert opened.providers == [(CUDA, {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "0"}),
                                "CPUExecutionProvider"]  # fmt: skip
    assert opened.fallback == 0, "ONNX Runtime's own fallback would print and go on"
    assert opened.options.entries["session.record_ep_graph_assignment_info"] == "1"
    assert opened.options.intra_op_num_threads == 1 and capsys.readouterr().out == ""


def test_twin_a_silent_fallback_is_refused(tiny_bundle, runtime):
    runtime(CUDA, taken=["CPUExecutionProvider"])
    message = fails(lambda: open_session(tiny_bundle, "onnxruntime-cuda"))
    asked = f"{tiny_bundle.path} was to run on {CUDA}"
    assert message == f"{asked}, ONNX Runtime took CPUExecutionProvider; {PROVIDERS['onnxruntime-cuda'].fix}"
    runtime(CUDA, assigned={"*": "CPUExecutionProvider"})
    message = fails(lambda: open_session(tiny_bundle, "onnxruntime-cuda"))
    assert message.startswith(f"{asked}, which took none of its nodes (") and message.endswith("choose another backend")
    runtime(CUDA, assigned={"*": CUDA, "Gemm": "CPUExecutionProvider"})
    message = fails(lambda: open_session(tiny_bundle, "onnxruntime-cuda"))
    assert message.startswith(f"{asked}, but 1 of its products and convolutions are elsewhere, one of them Gemm ")


def test_auto_does_not_go_on_to_the_next_one(tiny_bundle, runtime):
    runtime(CUDA, taken=["CPUExecutionProvider"])
    assert f"was to run on {CUDA}, ONNX Runtime took CPU" in fails(lambda: open_session(tiny_bundle))


def test_xnnpack_may_leave_products_to_the_processor(tiny_bundle, runtime):
    place = "XnnpackExecutionProvider"
    runtime(place, assigned={"*": "CPUExecutionProvider", "Gemm": "CPUExecutionProvider", "Cast": place})
    with open_session(tiny_bundle, "onnxruntime-xnnpack") as session:
        assert session.describe()["nodes"] == {place: 2, "CPUExecutionProvider": 6}
    runtime(place, assigned={"*": "CPUExecutionProvider"})
    assert "took none of its nodes" in fails(lambda: open_session(tiny_bundle, "onnxruntime-xnnpack"))


def test_an_older_version_that_counts_no_nodes(tiny_bundle, runtime):
    runtime(CUDA, assigned=None)
    with open_session(tiny_bundle, "onnxruntime-cuda") as session:
        assert "nodes" not in session.describe()


def test_what_a_library_says_when_it_fails_is_kept(tiny_bundle, runtime):
    runtime(CUDA, fails=RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no room on the card\nmore"))
    message = fails(lambda: open_session(tiny_bundle, "onnxruntime-cuda"))
    assert "cannot open" in message and "(no room on the card); expected a sound ONNX graph" in message


# --- what providers are told ------------------------------------------------------------------------------------------


def settings_of(fake):
    return fake.opened[-1].providers[0][1]


def test_settings_of_providers(make_bundle, tmp_path, runtime):
    half = make_bundle(tmp_path / "half.kcdp", precision={"default": "float16"}, export={"profile": [1, 2, 8]})
    fake = runtime(CUDA, assigned={"*": CUDA})
    with open_session(half, "onnxruntime-cuda"):
        assert settings_of(fake)["use_tf32"] == "1", "TF32 is finer than float16"
    name = "TensorrtExecutionProvider"
    fake = runtime(name, assigned={"*": name})
    with open_session(half, "onnxruntime-tensorrt", options=SessionOptions(cache=str(tmp_path))):
        told = settings_of(fake)
    assert told["trt_engine_cache_enable"] == "1" and told["trt_engine_cache_path"] == str(tmp_path / "compiled")
    assert (tmp_path / "compiled").is_dir()
    shapes = [told[f"trt_profile_{kind}_shapes"] for kind in ("min", "opt", "max")]
    assert shapes == ["images:1x32x32x3", "images:2x32x32x3", "images:8x32x32x3"]
    name = "DmlExecutionProvider"
    fake = runtime(name, assigned={"*": name})
    with open_session(half, "onnxruntime-directml", options=SessionOptions(device=2)) as session:
        assert settings_of(fake) == {"device_id": "2"} and fake.opened[-1].options.enable_mem_pattern is False
        assert session._lock is not None, "DirectML runs once at a time"
    name = "CoreMLExecutionProvider"
    fake = runtime(name, assigned={"*": name})
    with open_session(half, "onnxruntime-coreml", options=SessionOptions(cache=str(tmp_path))):
        assert settings_of(fake)["ModelFormat"] == "MLProgram"


@pytest.fixture
def plugin(monkeypatch, runtime):
    """``plugin("onnxruntime_qnn", "QNNExecutionProvider", "NPU")``: a provider that is a package of its own."""

    def install(module, provider, *kinds, **more):
        package = SimpleNamespace(get_ep_name=lambda: provider, get_library_path=lambda: "/lib.so", __version__="2.7")
        monkeypatch.setitem(sys.modules, module, package)
        devices = [SimpleNamespace(ep_name=provider, device=SimpleNamespace(type=f"Kind.{kind}")) for kind in kinds]
        return runtime(devices=devices, assigned={"*": provider}, **more)

    return install


def test_a_plugin_keeps_what_it_compiles(make_bundle, tmp_path, plugin):
    bundle = fixed(make_bundle, tmp_path / "two.kcdp", 2)
    fake = plugin("onnxruntime_qnn", "QNNExecutionProvider", "CPU", "NPU")
    options = SessionOptions(cache=str(tmp_path / "cache"))
    with open_session(bundle, "onnxruntime-qnn", options=options) as session:
        want = session.run(noise(3))
    first = fake.opened[-1]
    assert first.path == str(bundle.model_path) and first.options.entries["ep.context_embed_mode"] == "0"
    assert [device.device.type for device in first.options.devices] == ["Kind.NPU"]
    assert first.options.settings == {"backend_type": "htp", "enable_htp_fp16_precision": "0"}
    (kept,) = (tmp_path / "cache" / "compiled").iterdir()
    assert kept.name.startswith("two-onnxruntime-qnn-")
    with open_session(bundle, "onnxruntime-qnn", options=options) as session:
        assert (session.run(noise(3)) == want).all()
    assert fake.opened[-1].path == str(kept / "model.onnx") and len(fake.registered) == 1
    with open_session(bundle, "onnxruntime-qnn", options=replace(options, precision="f16")):
        assert fake.opened[-1].path == str(bundle.model_path), "compiled in another type"
    assert len(list((tmp_path / "cache" / "compiled").iterdir())) == 2
    (kept / "model.onnx").write_bytes(b"damaged")
    message = fails(lambda: open_session(bundle, "onnxruntime-qnn", options=options))
    assert message.endswith(f"remove {kept}: it is only a cache")


def test_twin_nothing_is_kept_of_a_fallback(make_bundle, tmp_path, plugin):
    bundle = fixed(make_bundle, tmp_path / "two.kcdp", 2)
    plugin("onnxruntime_qnn", "QNNExecutionProvider", "NPU", taken=["CPUExecutionProvider"])
    options = SessionOptions(cache=str(tmp_path / "cache"))
    assert "ONNX Runtime took CPU" in fails(lambda: open_session(bundle, "onnxruntime-qnn", options=options))
    assert list((tmp_path / "cache" / "compiled").iterdir()) == []


def test_what_a_neural_engine_does_not_take(tiny_bundle, make_bundle, tmp_path, plugin):
    plugin("onnxruntime_qnn", "QNNExecutionProvider", "NPU")
    message = fails(lambda: open_session(tiny_bundle, "onnxruntime-qnn"))
    assert message.endswith("takes any number of pictures at once; expected a fixed number for onnxruntime-qnn; export "
                            "it with --batch 1")  # fmt: skip
    bundle = fixed(make_bundle, tmp_path / "two.kcdp", 2)
    message = fails(lambda: open_session(bundle, "onnxruntime-qnn", options=SessionOptions(precision="bf16")))
    assert message == "precision is 'bf16'; expected auto, f32 or f16 for onnxruntime-qnn"
    plugin("onnxruntime_qnn", "QNNExecutionProvider", "CPU")
    message = fails(lambda: open_session(bundle, "onnxruntime-qnn"))
    assert message.startswith("the backend onnxruntime-qnn is unusable: onnxruntime_qnn finds no device")


def test_the_card_of_this_number(make_bundle, tiny_bundle, tmp_path, plugin):
    fake = plugin("onnxruntime_ep_nv_tensorrt_rtx", "NvTensorRTRTXExecutionProvider", "GPU", "GPU")
    options = SessionOptions(cache=str(tmp_path))
    with open_session(tiny_bundle, "onnxruntime-tensorrt-rtx", options=options):
        assert fake.opened[-1].options.devices == fake.devices[:1]
        assert fake.opened[-1].options.settings["nv_runtime_cache_path"] == str(tmp_path / "compiled")


# --- CUDA graphs: the binding, on the processor -----------------------------------------------------------------------


def test_each_batch_size_is_bound_once(tiny_bundle, monkeypatch):
    import onnxruntime

    real = onnxruntime.InferenceSession(str(tiny_bundle.model_path), providers=["CPUExecutionProvider"])
    bindings = []
    session = SimpleNamespace(
        io_binding=lambda: bindings.append(real.io_binding()) or bindings[-1],
        run_with_iobinding=lambda binding, options: real.run_with_iobinding(binding, options.real),
    )  # fmt: skip
    told = []

    def options():
        return SimpleNamespace(real=onnxruntime.RunOptions(), add_run_config_entry=lambda *entry: told.append(entry))

    library = SimpleNamespace(OrtValue=onnxruntime.OrtValue, RunOptions=options)
    runs = CapturedRuns(library, session, "logits", 6, ("cpu", 0), "gpu_graph_id")
    for seed, count in enumerate((3, 1, 3, 1, 3)):
        images = noise(count, seed)
        (want,) = real.run(["logits"], {"images": images})
        assert (runs.run({"images": images}) == want).all(), "the new pictures, not those of the first run"
    assert len(bindings) == 2 and told == [("gpu_graph_id", "1"), ("gpu_graph_id", "2")]
    monkeypatch.setattr(captured, "MOST_SIZES", 2)
    with pytest.raises(ValueError, match="more than 2 batch sizes"):
        runs.run({"images": noise(2)})


def test_results_of_a_bound_run_are_not_written_over(tiny_bundle):
    import onnxruntime

    real = onnxruntime.InferenceSession(str(tiny_bundle.model_path), providers=["CPUExecutionProvider"])
    runs = CapturedRuns(onnxruntime, real, "logits", 6, ("cpu", 0), "gpu_graph_id")
    first = runs.run({"images": noise(2)})
    before = first.copy()
    runs.run({"images": noise(2, 1)})
    assert (first == before).all()


# --- OpenVINO's arithmetic --------------------------------------------------------------------------------------------


def manifest_of(bundle, default, target="cpu", gated=()):
    runtimes = [{"runtime": name, "passed": passed} for name, passed in gated]
    return replace(bundle.manifest, precision={"default": default}, target=target, parity={"runtimes": runtimes})


@pytest.mark.parametrize(
    ("default", "target", "gated", "native", "taken"),
    [
        ("float32", "cpu", [("openvino-bf16", True)], True, "f32"),
        ("float32", "portable", [], True, "f32"),
        ("bfloat16", "cpu", [("openvino", True)], True, "bf16"),
        ("bfloat16", "tensorrt", [], True, "f32"),
        ("int8", "cpu", [("openvino", True)], True, "f32"),
        ("int8", "cpu", [("openvino", True), ("openvino-bf16", True)], True, "bf16"),
        ("int8", "cpu", [("openvino-bf16", False)], True, "f32"),
        ("int8", "cpu", [("openvino-bf16", True)], False, "f32"),
        ("int8-weights", "cpu", [("openvino-bf16", True)], True, "f32"),
    ],
)
def test_the_arithmetic_is_what_was_gated(tiny_bundle, default, target, gated, native, taken):
    manifest = manifest_of(tiny_bundle, default, target, gated)
    assert chosen_precision(manifest, DEFAULTS, native) == taken
    assert chosen_precision(manifest, SessionOptions(precision="f16"), native) == "f16"


def test_float32_is_told_and_taken(tiny_bundle):
    """OpenVINO's own default is bfloat16 where the processor has it."""
    import openvino

    native = native_bfloat16(openvino.Core())
    with CompiledSession(tiny_bundle) as session:
        assert session.describe()["type"] == "float32" and session.precision == "f32"
        exact = session.run(noise(4))
    if not native:
        pytest.skip("this processor has no bfloat16")
    assert openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name() == "bf16"
    with CompiledSession(tiny_bundle, SessionOptions(precision="bf16")) as session:
        assert session.describe()["type"] == "bfloat16"
        assert 1e-4 < np.abs(session.run(noise(4)) - exact).max() < 0.2


def test_a_type_that_is_not_taken_is_refused(tiny_bundle, monkeypatch):
    """What OpenVINO does with float16 on a processor that has none."""
    taken = SimpleNamespace(get_type_name=lambda: "f32")
    compiled = SimpleNamespace(get_property=lambda name: taken)
    monkeypatch.setattr(CompiledSession, "_open", lambda self, core: compiled)
    message = fails(lambda: CompiledSession(tiny_bundle, SessionOptions(precision="f16")))
    assert message.startswith(f"OpenVINO computes {tiny_bundle.path} in float32 on this CPU; expected float16; choose")


def test_bfloat16_where_there_is_none(tiny_bundle):
    bundle = replace(tiny_bundle, manifest=manifest_of(tiny_bundle, "bfloat16"))
    message = str(unfit(bundle, DEFAULTS, "CPU", False))
    assert "is to be computed in bfloat16, which this processor has no instructions for" in message
    assert unfit(bundle, DEFAULTS, "CPU", True) is None
    assert unfit(bundle, SessionOptions(precision="f32"), "CPU", False) is None, "finer is fine, when it is asked for"


def test_a_device_of_intel_that_is_not_here(tiny_bundle):
    import openvino

    if "NPU" in openvino.Core().available_devices:
        pytest.skip("this machine has a neural engine of Intel")
    message = fails(lambda: open_session(tiny_bundle, "openvino-npu"))
    assert message.startswith("the backend openvino-npu is unusable: OpenVINO finds no NPU here, only ")


def test_operators_of_cuda_run_on_cuda_alone(make_bundle, tmp_path, runtime):
    bundle = make_bundle(tmp_path / "fused.kcdp", needs=("onnx", "knowledge-constant", "operators-cuda"))
    for name in REAL:
        assert "on CUDA GPUs alone" in fails(lambda name=name: open_session(bundle, name))
    with pytest.raises(KcdpError, match="on CUDA GPUs alone"):
        OnnxRuntimeSession(bundle)
    runtime(CUDA, assigned={"*": CUDA})
    with open_session(bundle) as session:
        assert session.describe()["backend"] == "onnxruntime-cuda"
