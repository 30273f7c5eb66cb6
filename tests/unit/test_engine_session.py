"""Engines run by a package and a card that stand in: which is taken, the data's way, errors, what is given back.

That every name exists is checked in test_engine_names.py (the packages) and here (the driver, by its header).
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from backend_fakes import ADA, FakeDriver, FakeTensorRT, write_fake_engine
from in_threads import in_threads

from kcdp.engine_file import Place, sidecar, system_name
from kcdp.errors import KcdpError
from kcdp.gpu import Gpu
from kcdp.runtime.backends import engines
from kcdp.runtime.backends.device_memory import FUNCTIONS, Card
from kcdp.runtime.backends.engine_choice import EngineBundle, bundle_of_engine, find_engine_file
from kcdp.runtime.backends.engines import EngineSession
from kcdp.runtime.backends.options import DEFAULTS, SessionOptions
from kcdp.runtime.backends.registry import choose, open_model, open_session
from kcdp.runtime.session import NonFiniteLogits
from kcdp.runtime.tagger import Tagger

HERE = Place("1.7.1.116", ADA, system_name())


def noise(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def mean_logits(images):
    """float32 [N, 6]: something that tells pictures apart."""
    means = images.astype(np.float32).mean(axis=(1, 2))
    return np.concatenate([means, -means], axis=1)


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def bundle(make_bundle, tmp_path):
    return make_bundle(tmp_path / "rtx.kcdp", target="tensorrt", precision={"default": "float16"})


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """``machine(refuses="", ...)``: tensorrt_rtx, a driver and a card; engines lie in ``tmp_path / "cache"``."""

    def install(gpu=ADA, driver=None, **more):
        trt, driver = FakeTensorRT(mean_logits, 32, **more), driver or FakeDriver()
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", trt)
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        monkeypatch.setattr(engines, "find_gpu", lambda index=0: gpu if index == 0 else None)
        monkeypatch.setattr(engines, "Card", lambda index: Card(index, driver))
        monkeypatch.setenv("KCDP_CACHE", str(tmp_path / "cache"))
        return trt, driver

    return install


@pytest.fixture
def engine(bundle, tmp_path):
    return write_fake_engine(tmp_path / "cache" / "engines" / "rtx-1.engine", bundle)


# --- running ----------------------------------------------------------------------------------------------------------


def test_logits_come_back(bundle, engine, machine):
    trt, driver = machine()
    with open_session(bundle) as session:
        facts = session.describe()
        assert facts["backend"] == "tensorrt-rtx" and facts["engine"] == str(engine) and facts["built_for"] == "any"
        assert facts["why"].startswith("of tensorrt, tensorrt-rtx, ") and "(tensorrt: not installed)" in facts["why"]
        for count in (1, 2, 4, 3):
            assert (session.run(noise(count, count)) == mean_logits(noise(count, count))).all()
        assert trt.batches == [1, 2, 4, 3] and driver.calls["cuStreamSynchronize"] == 4
        assert driver.calls["cuMemAlloc_v2"] == 6, "memory grows with the largest batch and is kept"
    assert driver.held == {} and driver.streams == 0 and driver.contexts == 0 and driver.depth == 0


def test_more_and_fewer_pictures_than_the_engine_takes(bundle, tmp_path, machine):
    write_fake_engine(tmp_path / "cache" / "engines" / "a.engine", bundle, profile=(2, 2, 4))
    trt, _ = machine()
    with open_session(bundle) as session:
        for count in (1, 4, 9):
            images = noise(count, count)
            assert (session.run(images) == mean_logits(images)).all()
    assert trt.batches == [2, 4, 4, 4, 2]


def test_an_engine_of_a_fixed_batch(make_bundle, tmp_path, machine):
    from kcdp.graph import tagging_graph

    bundle = make_bundle(tmp_path / "rtx.kcdp", target="tensorrt")
    bundle = replace(bundle, manifest=replace(bundle.manifest, graph=tagging_graph(32, batch=2)))
    write_fake_engine(tmp_path / "cache" / "engines" / "a.engine", bundle, profile=None)
    trt, _ = machine(shape=(2, 32, 32, 3))
    with open_session(bundle, "tensorrt-rtx") as session:
        assert (session.run(noise(5)) == mean_logits(noise(5))).all() and trt.batches == [2, 2, 2]


def test_eight_threads(bundle, engine, machine):
    machine()
    wrong: list[object] = []
    with open_session(bundle) as session:

        def work(index):
            for round_ in range(20):
                images = noise(1 + index % 4, 100 * index + round_)
                if not np.array_equal(session.run(images), mean_logits(images)):
                    wrong.append(index)

        in_threads(work, range(8))
    assert not wrong


def test_closing_twice(bundle, engine, machine):
    _, driver = machine()
    session = open_session(bundle)
    session.close()
    session.close()
    assert driver.contexts == 0
    assert "is closed" in fails(lambda: session.run(noise(1)))


def test_logits_are_checked_like_any_others(bundle, engine, machine):
    trt, _ = machine()
    trt.function = lambda images: np.full((len(images), 6), np.nan, np.float32)
    with open_session(bundle) as session, pytest.raises(NonFiniteLogits):
        session.run(noise(2))


def test_a_cuda_graph_is_asked_for(bundle, engine, machine):
    trt, _ = machine()
    with open_session(bundle, "tensorrt-rtx", options=SessionOptions(cuda_graph=True)):
        assert trt.strategies == ["whole"]


def test_a_tagger_of_an_engine_that_stands_alone(bundle, engine, machine, label_colours):
    machine()
    alone = open_model(engine)
    assert isinstance(alone, EngineBundle) and alone.manifest.preprocess == bundle.manifest.preprocess
    assert alone.model_path == engine
    with Tagger.load(engine) as tagger:
        (tag,) = tagger.tag([np.zeros((8, 8, 3), np.uint8)])
        assert tag.error is None and tagger.describe()["backend"] == "tensorrt-rtx"
    assert choose(alone).rejected["onnxruntime"].startswith("taken only by name")


# --- which engine -----------------------------------------------------------------------------------------------------


def test_the_engine_of_this_very_card_goes_first(bundle, engine, tmp_path):
    folder = engine.parent
    write_fake_engine(folder / "b.engine", bundle, gpu=ADA.name, capabilities=("SM89",))
    write_fake_engine(folder / "c.engine", bundle, version="1.6")
    write_fake_engine(folder / "d.engine", bundle, gpu="NVIDIA H100", capabilities=("SM90",))
    write_fake_engine(folder / "e.engine", bundle, package="tensorrt")
    (folder / "f.engine").write_bytes(b"no description")
    sidecar(write_fake_engine(folder / "g.engine", bundle)).write_text("{}")
    options = SessionOptions(cache=str(tmp_path / "cache"))
    assert find_engine_file(bundle, "tensorrt-rtx", options, HERE)[0] == folder / "b.engine"
    (folder / "b.engine").unlink()
    assert find_engine_file(bundle, "tensorrt-rtx", options, HERE)[0] == engine
    named = replace(options, engine=str(folder / "d.engine"))
    assert find_engine_file(bundle, "tensorrt-rtx", named, HERE)[0] == folder / "d.engine", "refused when it is opened"


def test_no_engine_and_none_that_fits(bundle, machine, tmp_path):
    machine()
    folder = tmp_path / "cache" / "engines"
    message = fails(lambda: open_session(bundle, "tensorrt-rtx"))
    build = f"build one: python -m kcdp.export engine {bundle.path}"
    assert message == f"{folder} holds no tensorrt-rtx engine of {bundle.path}; {build}"
    write_fake_engine(folder / "a.engine", bundle, version="1.6")
    write_fake_engine(folder / "b.engine", bundle, gpu="NVIDIA H100", capabilities=("SM90",))
    message = fails(lambda: open_session(bundle, "tensorrt-rtx"))
    assert "only some that do not fit: it was built with tensorrt-rtx 1.6, installed is 1.7.1.116 | it was" in message
    assert "it was built on NVIDIA H100 (SM90), this is NVIDIA GeForce RTX 4090 (SM89)" in message
    choice = choose(bundle)
    assert choice.backend == "onnxruntime" and f"tensorrt-rtx: {folder} holds no" in choice.why


def test_an_engine_built_elsewhere_is_refused(bundle, engine, machine, make_bundle, tmp_path):
    machine(version="1.8")
    named = SessionOptions(engine=str(engine))
    message = fails(lambda: open_session(bundle, "tensorrt-rtx", options=named))
    assert message == (f"{engine} does not fit here: it was built with tensorrt-rtx 1.7.1.116, installed is 1.8; build "
                       "it where it is to run: python -m kcdp.export engine BUNDLE")  # fmt: skip
    _, driver = machine(gpu=Gpu("Tesla T4", (7, 5)))
    message = fails(lambda: open_session(bundle, "tensorrt-rtx", options=named))
    assert "it was built for Ampere and later (SM80), this is SM75" in message
    assert not driver.calls, "nothing is loaded before the description agrees"
    machine()
    other = make_bundle(tmp_path / "other.kcdp", scale=5.0, target="tensorrt")
    assert "it was built from another graph" in fails(lambda: open_session(other, "tensorrt-rtx", options=named))
    engine.write_bytes(b"vtrt" + b"x" * (engine.stat().st_size - 4))
    assert "was changed or damaged" in fails(lambda: open_session(bundle, "tensorrt-rtx"))
    message = fails(lambda: open_session(bundle, "tensorrt-rtx", options=SessionOptions(engine="nowhere.engine")))
    assert message.startswith("nowhere.engine is not there, or has no nowhere.engine.json beside it; expected an eng")


def test_no_card(bundle, engine, machine):
    machine(gpu=None)
    message = fails(lambda: open_session(bundle, "tensorrt-rtx"))
    assert message == "the backend tensorrt-rtx is unusable: no NVIDIA GPU 0 was found; install NVIDIA's driver"
    assert fails(lambda: bundle_of_engine(engine.parent / "none.engine")).endswith("kcdp.export engine BUNDLE")


def test_an_engine_of_the_other_package(bundle, engine, tmp_path):
    options = SessionOptions(engine=str(engine))
    message = fails(lambda: find_engine_file(bundle, "tensorrt", options, HERE))
    assert message.startswith(f"{engine} is an engine of tensorrt-rtx; expected one of tensorrt; choose the backend ")


# --- failures ---------------------------------------------------------------------------------------------------------


def test_what_the_package_says_is_told(bundle, engine, machine):
    _, driver = machine(refuses="IRuntime::deserializeCudaEngine: Error Code 1:\n the magic tag does not match")
    message = fails(lambda: open_session(bundle))
    assert message.startswith(f"{engine} cannot be loaded by tensorrt_rtx 1.7.1.116 (IRuntime::deserializeCudaEng")
    assert driver.contexts == 0 and driver.streams == 0, "what was taken is given back"
    machine(fails=True)
    with open_session(bundle) as session:
        message = fails(lambda: session.run(noise(2)))
    assert message.startswith(f"tensorrt-rtx failed on {engine} with 2 pictures (no reason was given); build the ")


def test_an_engine_with_another_signature(bundle, engine, machine):
    _, driver = machine(shape=(-1, 48, 48, 3))
    message = fails(lambda: open_session(bundle))
    assert "has the input images uint8 [?, 48, 48, 3]; expected images uint8 [batch, 32, 32, 3]" in message
    assert driver.contexts == 0


@pytest.mark.parametrize("call", ["cuInit", "cuDevicePrimaryCtxRetain", "cuStreamCreate", "cuMemAlloc_v2",
                                  "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize"])  # fmt: skip
def test_a_driver_that_fails(bundle, engine, machine, call):
    _, driver = machine(driver=FakeDriver(fails=call))

    def run():
        with open_session(bundle) as session:
            session.run(noise(2))

    assert fails(run) == f"the CUDA driver's {call} failed with error 700; see the driver's log"
    assert driver.held == {} and driver.depth == 0 and driver.contexts == 0


def test_no_driver(monkeypatch):
    monkeypatch.setattr("kcdp.runtime.backends.device_memory.load_driver", lambda: None)
    assert fails(Card) == "no NVIDIA driver was found here; install NVIDIA's driver"


# --- names ------------------------------------------------------------------------------------------------------------


def header() -> str:
    spec = find_spec("nvidia")
    for folder in () if spec is None else spec.submodule_search_locations or ():
        for path in Path(folder).rglob("include/cuda.h"):
            return path.read_text(encoding="utf-8", errors="replace")
    pytest.skip("no header of the CUDA driver is here")


def test_the_driver_has_every_function():
    text = header()
    source = Path(sys.modules[Card.__module__].__file__).read_text(encoding="utf-8")
    called = set(re.findall(r'_call\("(\w+)"', source))
    assert called == set(FUNCTIONS) and len(FUNCTIONS) > 10
    for name, types in FUNCTIONS.items():
        plain = name.removesuffix("_v2")
        declared = re.search(rf"CUresult CUDAAPI {plain}(?:_v2)?\(([^)]*)\)", text)
        assert declared, name
        assert len(declared[1].split(",")) == len(types), name
        renamed = re.search(rf"#define {plain}\s+(?:__CUDA_API_PTS?Z?\()?(\w+)", text)
        assert (renamed[1] if renamed else plain) == name, "what the header renames, the library exports renamed"


def test_options_left_alone():
    assert EngineSession.__init__.__defaults__[0] is DEFAULTS


@pytest.mark.tensorrt
def test_the_real_package_refuses_what_is_no_engine(tmp_path, capfd):
    """Its runtime and the logger are real; there is no card to load an engine on."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    path, errors = tmp_path / "x.engine", []
    path.write_bytes(b"vtrt" + bytes(1000))
    message = fails(lambda: engines.load_engine(trt, path, False, errors))
    assert message.startswith(f"{path} cannot be loaded by tensorrt_rtx {trt.__version__} (")
    assert errors and errors[-1] in message
