"""Engines without a package: which one is chosen, what its messages become, where an engine fits, what to type."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from kcdp.cache import cache_folder
from kcdp.engine_file import EngineKey, Place, misfits, model_digest, system_name
from kcdp.errors import KcdpError
from kcdp.export.engine.batches import BatchRange, check_batches
from kcdp.export.engine.builder import BuildOptions
from kcdp.export.engine.layer_report import Kernel, count_kernels, parse_report
from kcdp.export.engine.messages import Messages, make_logger, one_line
from kcdp.export.engine.network import Layer
from kcdp.export.engine.package import open_package
from kcdp.export.engine.progress import BuildProgress
from kcdp.export.engine.store import cached_path, check_out
from kcdp.export.engine.tool_line import tool_line, try_line
from kcdp.export.engine.true_types import EngineTypeError, Promise, check_kernels, check_network
from kcdp.gpu import Gpu, find_gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", (9, 0))
ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9))


def fails(call) -> str:
    """The one line of a KcdpError."""
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the GPU ----------------------------------------------------------------------------------------------------------


class Driver:
    """The functions of libcuda that are asked, for a machine with these cards."""

    def __init__(self, *cards: Gpu, start: int = 0, broken: str = "") -> None:
        self.cards, self.start, self.broken = cards, start, broken

    def cuInit(self, flags):
        return self.start

    def cuDeviceGetCount(self, count):
        count._obj.value = len(self.cards)
        return 0

    def cuDeviceGet(self, device, index):
        device._obj.value = index
        return 0

    def cuDeviceGetName(self, name, length, device):
        ctypes.memmove(name, self.cards[device.value].name.encode() + b"\0", len(self.cards[device.value].name) + 1)
        return int(self.broken == "name")

    def cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = self.cards[device.value].capability[attribute - 75]
        return 0


def test_the_gpu_as_the_driver_tells_it():
    assert find_gpu(driver=Driver(H100, ADA)) == H100 and find_gpu(1, driver=Driver(H100, ADA)) == ADA
    assert H100.architecture == "SM90" and Gpu("x", (12, 1)).architecture == "SM121"


def test_no_gpu():
    assert find_gpu(driver=Driver()) is None and find_gpu(2, driver=Driver(H100, ADA)) is None
    assert find_gpu(driver=Driver(H100, start=100)) is None  # CUDA_ERROR_NO_DEVICE
    assert find_gpu(driver=Driver(H100, broken="name")) is None


# --- the package ------------------------------------------------------------------------------------------------------


@pytest.fixture
def installed(monkeypatch):
    """``installed(tensorrt="11.4.0", tensorrt_rtx=None)``: these versions, and None for what is not there."""

    def install(**versions):
        for module, version in versions.items():
            found = None if version is None else SimpleNamespace(__version__=version)
            monkeypatch.setitem(sys.modules, module, found)

    return install


@pytest.mark.parametrize(
    ("choice", "gpu", "capabilities", "versions", "chosen"),
    [
        ("auto", H100, (), ("11.4.0.106", "1.7"), "tensorrt 11.4.0.106"),
        ("auto", H100, ("SM89",), ("11.4.0.106", "1.7"), "tensorrt-rtx 1.7"),
        ("auto", None, (), ("11.4.0.106", "1.7"), "tensorrt-rtx 1.7"),
        ("auto", ADA, (), (None, "1.7"), "tensorrt-rtx 1.7"),
        ("tensorrt", ADA, (), ("10.3.0", None), "tensorrt 10.3.0"),
        ("tensorrt-rtx", H100, (), ("11.4.0.106", "1.7"), "tensorrt-rtx 1.7"),
    ],
)
def test_the_package_that_is_chosen(installed, choice, gpu, capabilities, versions, chosen):
    installed(tensorrt=versions[0], tensorrt_rtx=versions[1])
    assert open_package(choice, gpu, capabilities).label == chosen


def test_packages_that_cannot_be_had(installed):
    installed(tensorrt=None, tensorrt_rtx=None)
    for name, module in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")):
        expected = f"the package '{module}' is not installed; run: pip install \"kcdp[{name}]\""
        assert fails(lambda name=name: open_package(name, H100)) == expected
    for gpu in (None, H100):
        assert fails(lambda gpu=gpu: open_package("auto", gpu)) == (
            "the package 'tensorrt_rtx' is not installed; run: pip install \"kcdp[tensorrt-rtx]\" (builds without a GPU"
            ', for GeForce and RTX cards), or on a machine with a GPU run: pip install "kcdp[tensorrt]"'
        )


def test_the_package_tensorrt_refuses(installed):
    installed(tensorrt="11.4.0", tensorrt_rtx=None)
    assert fails(lambda: open_package("tensorrt", None)) == (
        "no NVIDIA GPU was found, and the package 'tensorrt' builds for the GPU of the machine it runs on; build where "
        "the engine is to run, or choose --package tensorrt-rtx"
    )
    assert fails(lambda: open_package("tensorrt", H100, ("SM89", "SM90"))) == (
        "--capability SM89 --capability SM90 with the package 'tensorrt'; expected no --capability: it builds for the "
        "GPU of the machine it runs on; or choose --package tensorrt-rtx"
    )
    for version in ("9.3.0", "12.0.0"):
        installed(tensorrt=version)
        message = fails(lambda: open_package("tensorrt", H100))
        assert message == f"tensorrt {version} is installed; expected major version 10 or 11"


@pytest.mark.parametrize(
    ("version", "capability", "oldest"),
    [("11.4.0.106", (7, 0), "SM75"), ("10.5.0", (7, 2), "SM75"), ("10.4.0", (6, 1), "SM70"), ("10", (6, 1), "SM75")],
)
def test_cards_that_are_too_old_for_the_package_tensorrt(installed, version, capability, oldest):
    installed(tensorrt=version)
    card = Gpu("Old", capability)
    assert fails(lambda: open_package("tensorrt", card)) == (
        f"Old is {card.architecture}; expected {oldest} or newer, which tensorrt {version} builds for; build on "
        "another machine"
    )
    major, minor = int(oldest[2]), int(oldest[3])
    assert open_package("tensorrt", Gpu("Younger", (major, minor))).version == version


def test_a_package_whose_libraries_are_missing(monkeypatch):
    def broken(name, extra):
        raise ImportError("libnvinfer.so.11: cannot open shared object file\nmore")

    monkeypatch.setattr("kcdp.export.engine.package.require", broken)
    assert fails(lambda: open_package("tensorrt", H100)) == (
        "the package 'tensorrt' cannot be loaded: libnvinfer.so.11: cannot open shared object file; run: pip install "
        '"kcdp[tensorrt]"'
    )


# --- messages and the builder's report --------------------------------------------------------------------------------

NOISE = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/checkMacros.cpp:250 "
    "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version))"
)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Invalid Node - mix\nITensor::getDimensions: Error Code 4: API Usage Error (mix: types differ. In validate at "
         f"/_src/node.cpp:88)\n{NOISE}", "mix: types differ"),
        (f"{NOISE}\nIBuilder::build: Error Code 4: Internal Error (no profile was defined)", "no profile was defined"),
        ("onnxOpCheckers.cpp said no", "onnxOpCheckers.cpp said no"),
        (f"first\nsecond\n{NOISE}", "first. second"),
        (NOISE, ""),
    ],
)  # fmt: skip
def test_one_line_of_many(text, line):
    assert one_line(text) == line


def test_messages_keep_what_is_needed():
    messages = Messages()
    for severity, text in (("VERBOSE", "chatter"), ("ERROR", NOISE), ("INTERNAL_ERROR", "the reason"), ("WARNING", "w"),
                           ("INFO", "Total Weights Memory: 12 bytes"), ("VERBOSE", "Layers:\nName: x")):  # fmt: skip
        messages.add(severity, text)
    assert messages.reason() == "the reason" and messages.report == "Layers:\nName: x"
    assert messages.bytes_of("Total Weights Memory") == 12 and messages.bytes_of("Total Activation Memory") is None
    assert len(messages.errors) == 2 and len(messages.infos) == 1 and Messages().reason() == "no reason was given"


def report_line(name: str, kind: str, *outputs: str, constant: str = "Half", nodes: tuple[str, ...] = ()) -> str:
    """A line as builders write it."""

    def tensors(*dtypes):
        form = "Format: (NHWC) Channel major format"
        return ", ".join(
            f"{{ Name: t{i}, Dimensions: [1,{i},3], Datatype: {d}, {form} }}" for i, d in enumerate(dtypes)
        )

    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {tensors('Half')}], Constants: [ {tensors(constant)}], "
        f"Outputs: [ {tensors(*outputs)}], TacticName: stub, StreamId: 0, Metadata: {metadata}"
    )


def test_the_report_is_read():
    text = "\n".join(["Layers:", report_line("a_0", "correlation", "Half", constant="Float", nodes=("conv", "bias")),
                      report_line("b_1", "kgen", "Half", "Float"), report_line("c_2", "kgen", "Half", "Float"), "",
                      "I/O Tensors:", " Name: images, IOMode: Input, DataType: UInt8"])  # fmt: skip
    kernels = parse_report(text)
    assert kernels is not None
    assert kernels[0] == Kernel("a_0", "correlation", ("Half",), ("Half",), ("conv", "bias"))
    assert count_kernels(kernels) == {"kgen Half Float": 2, "correlation Half": 1}
    assert Kernel("", "gemm", ("Int8", "Half"), ("Float",), ()).label == "gemm Int8 to Float"
    assert Kernel("", "kgen", ("Int8",), ("Float", "Half"), ()).label == "kgen Float Half"


@pytest.mark.parametrize("text", [None, "", "Layers:\n", "Layers:\nName: a, LayerType: gemm, Somehow: otherwise"])
def test_a_report_of_another_form_is_no_report(text):
    assert parse_report(text) is None


# --- types ------------------------------------------------------------------------------------------------------------

LAYERS = [
    Layer("pool", "REDUCE", "FLOAT", ()), Layer("mix", "CONVOLUTION", "HALF", ("mix",)),
    Layer("answer_1", "MATRIX_MULTIPLY", "FLOAT", ("answer",)), Layer("up", "DECONVOLUTION", "BF16", ()),
]  # fmt: skip


def test_types_of_layers():
    check_network(LAYERS[:2], Promise.of({"default": "float16"}))
    check_network(LAYERS[:3], Promise.of({"default": "float16", "answer": "float32"}))
    for precision in ("float32", "int8-weights"):
        check_network(LAYERS, Promise.of({"default": precision}))
    with pytest.raises(EngineTypeError) as caught:
        check_network(LAYERS, Promise.of({"default": "float16"}))
    assert caught.value.layers == [
        "layer 'answer_1' (MATRIX_MULTIPLY) is FLOAT", "layer 'up' (DECONVOLUTION) is BF16",
    ]  # fmt: skip
    assert str(caught.value) == (
        "layer 'answer_1' (MATRIX_MULTIPLY) is FLOAT (and 1 more) in a bundle of float16; no engine was kept; export "
        "the bundle again"
    )
    with pytest.raises(EngineTypeError, match="INT8 \\(BF16, FLOAT, HALF\\) in a bundle of int8"):
        check_network(LAYERS, Promise.of({"default": "int8"}))
    with pytest.raises(EngineTypeError, match="HALF \\(none at all\\) in a bundle of float16"):
        check_network(LAYERS[:1], Promise.of({"default": "float16"}))


@pytest.mark.parametrize("kind", ["gemm", "correlation", "CaskConvolution", "CaskGemmMatrixMultiply"])
@pytest.mark.parametrize("types", [("Half", "Float"), ("Float", "Half")])
def test_types_of_kernels(kind, types):
    kernels = [Kernel("norm", "kgen", ("Float",), ("Float",), ()), Kernel("k", kind, ("Half",), ("Half",), ())]
    check_kernels(kernels, Promise.of({"default": "float16"}))
    check_kernels(None, Promise.of({"default": "float16"}))
    kernels.append(Kernel("k2", kind, types[:1], types[1:], ("answer",)))
    check_kernels(kernels, Promise.of({"default": "float16", "answer": "float32"}))
    check_kernels(kernels, Promise.of({"default": "float32"}))
    for precision in ("float16", "bfloat16"):
        with pytest.raises(EngineTypeError, match=rf"^kernel 'k2' \({kind}\) is Float in a bundle of {precision}; "):
            check_kernels(kernels, Promise.of({"default": precision, "other": "float32"}))


def test_types_of_quantised_kernels():
    kernels = [Kernel("norm", "kgen", ("Int8",), ("Float",), ()), Kernel("k", "gemm", ("Float",), ("Int8",), ())]
    with pytest.raises(
        EngineTypeError, match=r"^no kernel of a matrix product or convolution takes Int8 in a bundle of "
    ):
        check_kernels(kernels, Promise.of({"default": "int8"}))
    check_kernels([*kernels, Kernel("q", "gemm", ("Int8",), ("Float",), ())], Promise.of({"default": "int8"}))


# --- batches and the tool's line --------------------------------------------------------------------------------------


def test_batches():
    assert BatchRange.parse("1:8:16") == BatchRange(1, 8, 16) and BatchRange.parse(" 2:2:2 ").best == 2
    absurd = ("1:8:4097", f"1:8:{2**31}", "1:8:99999999999999", f"1:8:{'9' * 5000}")
    for text in ("?", "8", "1:8", "0:1:2", "0:0:0", "4:2:8", "1:8:4", "a:b:c", "1:2:3:4", "-1:2:3", "1:2:3.5", *absurd):
        assert fails(lambda text=text: BatchRange.parse(text)) == (
            f"--profile {text}; expected MIN:OPT:MAX, whole numbers in rising order, from 1 to 4096; for example 1:8:16"
        )
    assert check_batches({"images": (1, 8, 8, 3)}, None) == {}
    free = {"images": (-1, 8, 8, 3), "knowledge": (-1, 4, 16)}
    assert check_batches({**free, "other": (3,)}, BatchRange(1, 2, 3)) == free
    message = fails(lambda: check_batches({"images": (-1, -1, 8, 3)}, BatchRange(1, 2, 3)))
    assert message == "the input images [-1, -1, 8, 3] has a free axis beside the batch; expected the batch alone"


def test_the_line_of_nvidias_tool():
    model, engine, shapes = Path("a b.kcdp/model.onnx"), Path("x.engine"), {"images": (-1, 8, 8, 3), "k": (-1, 4)}
    assert tool_line("tensorrt", model, engine, shapes, BuildOptions(BatchRange(1, 2, 4), workspace=512)) == (
        "trtexec '--onnx=a b.kcdp/model.onnx' --saveEngine=x.engine --stronglyTyped --minShapes=images:1x8x8x3,k:1x4 "
        "--optShapes=images:2x8x8x3,k:2x4 --maxShapes=images:4x8x8x3,k:4x4 --memPoolSize=workspace:512M --skipInference"
    )
    assert tool_line("tensorrt-rtx", model, engine, {}, BuildOptions(capabilities=("SM89", "SM120"))).endswith(
        "--saveEngine=x.engine --computeCapabilities=89,120 --skipInference"
    )
    assert try_line("tensorrt", engine) == "trtexec --loadEngine=x.engine"


# --- where an engine fits ---------------------------------------------------------------------------------------------

KEY = EngineKey("a" * 64, "tensorrt", "11.4.0", H100.name, ("SM90",), "linux-x86_64", None, {"workspace": None})
HERE = Place("11.4.0", H100, "linux-x86_64")
RTX_KEY = replace(KEY, package="tensorrt-rtx", gpu="", capabilities=("SM86", "SM89"))


@pytest.mark.parametrize(
    ("key", "place", "reasons"),
    [
        (KEY, HERE, []),
        (KEY, replace(HERE, gpu=ADA), [f"it was built on {H100.name} (SM90), this is {ADA.name} (SM89)"]),
        (KEY, replace(HERE, gpu=None), ["no NVIDIA GPU was found here"]),
        (KEY, replace(HERE, system="windows-x86_64"), ["it was built for linux-x86_64, this is windows-x86_64"]),
        (KEY, Place("11.4.1", ADA, "linux-aarch64"), [
            "it was built with tensorrt 11.4.0, installed is 11.4.1",
            "it was built for linux-x86_64, this is linux-aarch64",
            f"it was built on {H100.name} (SM90), this is {ADA.name} (SM89)",
        ]),
        (RTX_KEY, replace(HERE, gpu=ADA), []),
        (RTX_KEY, replace(HERE, gpu=ADA, system="windows-x86_64"), []),
        (RTX_KEY, HERE, ["it was built for SM86, SM89, this is SM90"]),
        (replace(RTX_KEY, capabilities=()), replace(HERE, gpu=ADA), []),
        (replace(RTX_KEY, capabilities=()), replace(HERE, gpu=Gpu("Turing", (7, 5))),
         ["it was built for Ampere and later (SM80), this is SM75"]),
    ],
)  # fmt: skip
def test_where_an_engine_fits(key, place, reasons):
    assert misfits(key, place) == reasons
    assert misfits(key, place, "a" * 64) == reasons
    assert misfits(key, place, "b" * 64) == [
        "it was built from another graph (model aaaaaaaaaaaa…, not bbbbbbbbbbbb…)", *reasons
    ]  # fmt: skip


def test_everything_in_the_key_counts():
    changes = {
        "model_sha256": "b" * 64, "package": "tensorrt-rtx", "package_version": "11.4.1", "gpu": "",
        "profile": (1, 2, 3), "capabilities": ("SM89",), "system": "linux-aarch64", "options": {"workspace": 1},
    }  # fmt: skip
    assert set(changes) == set(vars(KEY))
    digests = {replace(KEY, **{name: value}).digest for name, value in changes.items()}
    assert len(digests | {KEY.digest}) == len(changes) + 1 and len(KEY.digest) == 64


def test_the_digest_of_a_model_is_its_graph_and_weights():
    files = {"model.onnx": {"sha256": "1", "bytes": 1}, "model.onnx.data": {"sha256": "2", "bytes": 1}}
    digest = model_digest(files)
    assert model_digest({**files, "text.onnx": {"sha256": "3", "bytes": 1}}) == digest
    assert model_digest(dict(reversed(files.items()))) == digest
    for name in files:
        assert model_digest({**files, name: {"sha256": "9", "bytes": 1}}) != digest


def test_the_name_of_this_system(monkeypatch):
    for system, machine, name in (("Windows", "AMD64", "windows-x86_64"), ("Linux", "aarch64", "linux-aarch64"),
                                  ("Darwin", "arm64", "darwin-aarch64")):  # fmt: skip
        monkeypatch.setattr("platform.system", lambda system=system: system)
        monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
        assert system_name() == name


# --- where engines are kept -------------------------------------------------------------------------------------------


def test_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KCDP_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "engines" and cache_folder("x") == Path("x/engines")
    monkeypatch.delenv("KCDP_CACHE")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "me")
    assert cache_folder() == tmp_path / "me" / ".cache" / "kcdp" / "engines"
    assert cached_path(tmp_path, "edge", KEY) == tmp_path / f"edge-{KEY.digest[:16]}.engine"


def test_names_that_no_engine_may_have(tmp_path):
    for name in ("engine", "x.json"):
        expected = f"--out {tmp_path / name}; expected a file name with an ending such as NAME.engine"
        assert fails(lambda name=name: check_out(tmp_path / name, True, KEY)) == expected
    (tmp_path / "folder.engine").mkdir()
    assert " is a folder; " in fails(lambda: check_out(tmp_path / "folder.engine", True, KEY))
    check_out(tmp_path / "new.engine", False, KEY)


def test_a_file_that_is_no_description_is_not_replaced(tmp_path):
    (tmp_path / "x.engine.json").write_text("{}")
    assert "exists already, where the engine's description goes" in fails(
        lambda: check_out(tmp_path / "x.engine", False, KEY)
    )
    check_out(tmp_path / "x.engine", True, KEY)


def test_an_interrupt_that_comes_with_a_message_stops_the_build():
    messages = Messages()
    messages.add = lambda severity, text: (_ for _ in ()).throw(KeyboardInterrupt)
    logger = make_logger(SimpleNamespace(ILogger=type("ILogger", (), {"__init__": lambda self: None})), messages)
    progress = BuildProgress(False, messages)
    assert progress.step("Building")
    logger.log(SimpleNamespace(name="INFO"), "text")
    assert not progress.step("Building")
    with pytest.raises(KeyboardInterrupt):
        progress.close()


def test_progress_notes_an_interrupt():
    progress = BuildProgress(show=False)
    progress.start("Building", None, 3)
    progress.start("Timing", "Building", 3)
    assert progress.step("Timing")
    progress.finish("Timing")
    progress.close()
    progress.interrupted = True
    assert not progress.step("Building")
    with pytest.raises(KeyboardInterrupt):
        progress.close()
