"""Every attribute of TensorRT that the builder uses exists: in the sibling that is installed, and by name inside the
binding wheels of the package ``tensorrt`` itself, which cannot run here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from native_names import native_fields, used_names

import kcdp.export.engine
import kcdp.runtime.backends.engines
from kcdp.export.engine.network import QUANTISED, TRANSPARENT
from kcdp.export.engine.true_types import PRODUCTS, PROMISED

pytestmark = pytest.mark.tensorrt

FOLDER = Path(kcdp.export.engine.__file__).parent
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.py"))}
FIELDS = native_fields(SOURCES.values())
#: What only tensorrt-rtx is asked for.
RTX_ONLY = {"capabilities"}
NAMES = {module: used_names(source, FIELDS) for module, source in SOURCES.items()}

#: What runs an engine, and of it what only tensorrt-rtx is asked for.
RUNNING = used_names(Path(kcdp.runtime.backends.engines.__file__).read_text(encoding="utf-8"))
RUNNING_RTX = {"CudaGraphStrategy", "WHOLE_GRAPH_CAPTURE", "cuda_graph_strategy", "create_runtime_config"}

#: Members of LayerType and DataType that are compared by name.
LAYERS = PRODUCTS | TRANSPARENT | {QUANTISED}
TYPES = frozenset().union(*PROMISED.values())

#: The newest of each major version that the builder is written for.
WHEELS = ("tensorrt_cu12_bindings==10.16.1.11", "tensorrt_cu13_bindings==11.4.0.106")
PLATFORM = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64", "--only-binary", ":all:")


@pytest.fixture(scope="module", params=WHEELS)
def binding(request, tmp_path_factory) -> bytes:
    """The extension module inside a wheel, as bytes: it needs libraries that are not there, and is not imported."""
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1",
         "--timeout", "20", "--no-deps", *PLATFORM, "--dest", str(folder), request.param],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        pytest.skip(f"NVIDIA's wheel {request.param} cannot be obtained: {reason}")
    with zipfile.ZipFile(wheels[0]) as archive:
        extensions = [name for name in archive.namelist() if name.endswith(".so")]
        assert len(extensions) == 1
        return archive.read(extensions[0])


def absent(names: set[str], binding: bytes) -> list[str]:
    """Names that no string of the extension module ends with. (The linker lets strings share their ends.)"""
    return sorted(name for name in names if name.encode() + b"\0" not in binding)


def test_the_names_were_found():
    everything = set().union(*NAMES.values())
    assert len(everything) > 40 and sorted(FIELDS) == ["builder", "module", "network"]
    assert {"create_network", "STRONGLY_TYPED", "parse_from_file", "node_operator", "get_layer", "metadata",
            "create_optimization_profile", "set_shape", "build_serialized_network", "profiling_verbosity", "DETAILED",
            "create_timing_cache", "log", "phase_start", "step_complete", "WORKSPACE"} <= everything  # fmt: skip
    assert NAMES["capabilities"] == {"ComputeCapability", "num_compute_capabilities", "set_compute_capability"}
    assert not everything & {"join", "items", "append", "lower", "messages", "package"}, "these are our own"
    touching = {module for module, names in NAMES.items() if names}
    assert touching == {"batches", "builder", "capabilities", "messages", "network", "progress", "timing"}


def test_names_in_the_wheels(binding):
    for module in sorted(set(NAMES) - RTX_ONLY):
        assert absent(NAMES[module], binding) == [], module
    assert absent(set(LAYERS | TYPES), binding) == []


def test_names_that_run_an_engine(binding):
    assert {"Runtime", "deserialize_cuda_engine", "set_tensor_address", "execute_async_v3", "OUTPUT"} <= RUNNING
    assert not RUNNING & {"reason", "errors", "append", "reserve"}, "these are our own"
    assert RUNNING_RTX < RUNNING and absent(RUNNING - RUNNING_RTX, binding) == []


def test_what_is_only_asked_of_one_package_is_not_in_the_other(binding):
    assert absent(NAMES["capabilities"], binding) == sorted(NAMES["capabilities"])


def test_names_in_the_installed_package():
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    known = {"__version__", *dir(trt)}.union(*(dir(value) for value in vars(trt).values() if isinstance(value, type)))
    everything = {**NAMES, "running": RUNNING}
    assert {name: sorted(names - known) for name, names in everything.items() if names - known} == {}
    assert set(trt.CudaGraphStrategy.__members__) >= {"WHOLE_GRAPH_CAPTURE"}
    assert set(trt.LayerType.__members__) >= LAYERS and set(trt.DataType.__members__) >= TYPES


def test_twin_a_wrong_name_is_missed(binding):
    source = SOURCES["builder"].replace("build_serialized_network", "build_serialised_network")
    assert absent(used_names(source, FIELDS), binding) == ["build_serialised_network"]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("def f(trt: Native):\n    x = trt.Maker(1)\n    y = x.make().all[0]\n    z = y.last", "Maker make all last"),
        ("def f(trt: Native):\n    for i in trt.all:\n        i.one\n    [j.two for j in trt.new]", "all one new two"),
        ("def f(a, trt: Native):\n    a.own\n    str(trt.text).lower()\n    a.module.far", "text far"),
        ("def f(trt: Native):\n    return getattr(trt.Flag, 'FAST', None), trt.X.__members__.items()", "Flag FAST X"),
        ("def f(trt: Native):\n    class A(trt.Base):\n        def tell(self, e: Native): e.level", "Base tell level"),
        ("def f(c: Native):\n    c.speed = 1\n    if (t := c.get()) is not None: t.size", "speed get size"),
        ("def f(c):\n    x: Native = c.own()\n    x.theirs", "theirs"),
    ],
)  # fmt: skip
def test_twin_what_is_followed(source, names):
    assert used_names(source, {"module"}) == set(names.split())
