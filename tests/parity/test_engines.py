"""Engines really built, by ``tensorrt-rtx``, which needs no GPU: their types, their kernels, and what is refused."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from engine_graphs import SIZE, half_bundle, quantised_graph, small_bundle, small_graph
from onnx import helper

from kcdp.engine_file import (
    EngineDescription,
    Place,
    open_engine_description,
    read_engine_description,
    sidecar,
    system_name,
)
from kcdp.errors import KcdpError
from kcdp.export import command_engine
from kcdp.export.engine import builder as builder_module
from kcdp.export.engine.batches import BatchRange
from kcdp.export.engine.builder import BuildOptions, build_engine
from kcdp.export.engine.make import make_engine
from kcdp.export.engine.network import parse_graph
from kcdp.export.engine.package import CLASSIC, RTX, Package, open_package
from kcdp.export.engine.progress import BuildProgress
from kcdp.export.engine.timing import keep_timings, use_timings
from kcdp.export.engine.true_types import PRODUCTS, EngineTypeError, products_by_type
from kcdp.files import sha256_file, write_json
from kcdp.gpu import Gpu

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (it exists for x86-64 Linux and Windows)")
pytestmark = pytest.mark.tensorrt

TARGETS = [(), ("SM89",), ("SM120",)]
CARDS = {"SM89": Gpu("Ada", (8, 9)), "SM120": Gpu("Blackwell", (12, 0)), "": Gpu("Ampere", (8, 6))}


@pytest.fixture(scope="module")
def package():
    return open_package(RTX, None)


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """Preset -> a bundle of float16 with a batch of 1."""
    folder = tmp_path_factory.mktemp("bundles")
    return {preset: half_bundle(folder / f"{preset}.kcdp", preset) for preset in ("tiny", "edge")}


@pytest.fixture
def build(package, tmp_path):
    """``build(bundle, **options)``: an engine in a cache of its own, quietly."""

    def make(bundle, *, batches=None, capabilities=(), workspace=None, **rest):
        options = BuildOptions(batches, capabilities, workspace)
        return make_engine(bundle, package, options, tmp_path / "cache", **{"say": lambda line: None, **rest})

    return make


def fails(call) -> str:
    """The one line of a KcdpError."""
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def weight_bytes(bundle) -> int:
    return sum(entry["bytes"] for entry in bundle.manifest.files.values())


# --- what is built ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capabilities", TARGETS, ids=lambda names: "+".join(names) or "portable")
@pytest.mark.parametrize("preset", ["tiny", "edge"])
def test_presets_build_and_every_product_is_float16(presets, build, preset, capabilities):
    made = build(presets[preset], capabilities=capabilities)
    described = made.description
    assert not made.cached and made.path.read_bytes()[:4] == b"vtrt"
    assert described.bytes == made.path.stat().st_size > described.memory["weights"] > 0.5e6
    products = {name for name in described.layers if name.split()[0] in PRODUCTS}
    assert products == {"CONVOLUTION HALF", "MATRIX_MULTIPLY HALF"}
    assert sum(described.layers[name] for name in products) > 100
    assert described.kernels is not None
    heavy = {name: n for name, n in described.kernels.items() if name.split()[0] in ("gemm", "correlation")}
    assert set(heavy) == {"gemm Half", "correlation Half"} and sum(heavy.values()) > 60
    print(f"\n{preset} {capabilities}: {described.build_seconds} s, {described.bytes} bytes, {described.kernels}")
    place = Place(described.key.package_version, CARDS["+".join(capabilities)], system_name())
    assert open_engine_description(made.path, here=place) == described


def test_the_description_says_what_the_bundle_said(build, tmp_path):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    described = build(bundle).description
    manifest = bundle.manifest
    assert described.labels == manifest.labels and described.precision == "float16"
    assert described.graph == manifest.graph.to_dict() and described.preprocess == manifest.preprocess.to_dict()
    assert described.knowledge == {"mode": "constant"} and described.calibration == {"temperature": 1.0}
    assert described.bundle == "small.kcdp" and described.key.system == system_name() and described.key.gpu == ""
    again = EngineDescription.from_dict(json.loads(json.dumps(described.to_dict())), "x")
    assert again == described


def test_an_engine_is_built_once_and_found_again(build, tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    first = build(bundle)
    assert files(tmp_path / "cache") == [first.path.name, sidecar(first.path).name]
    assert files(bundle.path) == ["manifest.json", "model.onnx"], "a bundle is sealed"
    second = build(bundle)
    assert second.cached and second.description == first.description
    third = build(bundle, rebuild=True)
    assert not third.cached and third.description.sha256 == first.description.sha256
    others = [build(bundle, capabilities=("SM89",)), build(bundle, workspace=64)]
    monkeypatch.setattr(builder_module, "REVISION", 99)
    others.append(build(bundle))
    assert len({made.path for made in (first, *others)}) == 4 and not any(made.cached for made in others)


@pytest.mark.parametrize("damage", ["cut", "changed", "no description", "bad description"])
def test_a_damaged_engine_in_the_cache_is_built_again(build, tmp_path, damage):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    path = build(bundle).path
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "changed":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "no description":
        sidecar(path).unlink()
    else:
        sidecar(path).write_text("{")
    made = build(bundle)
    assert not made.cached and made.path == path and path.read_bytes() == data


def test_a_free_batch_needs_a_range_and_then_builds(build, tmp_path):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph(batch="batch"), batch=None)
    message = fails(lambda: build(bundle))
    assert message == "the graph's batch is free (input images); expected --profile MIN:OPT:MAX; for example 1:8:16"
    assert files(tmp_path / "cache") == []
    made = build(bundle, batches=BatchRange(1, 4, 8))
    assert made.description.key.profile == (1, 4, 8)
    line = made.description.command
    for flag, n in (("min", 1), ("opt", 4), ("max", 8)):
        assert f"--{flag}Shapes=images:{n}x16x16x3" in line
    assert build(bundle, batches=BatchRange(1, 4, 8)).cached
    assert not build(bundle, batches=BatchRange(1, 2, 8)).cached


def test_a_fixed_batch_takes_no_range(build, tmp_path):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph(batch=3), batch=3)
    message = fails(lambda: build(bundle, batches=BatchRange(1, 4, 8)))
    assert message == "the graph's batch is fixed (3); expected no --profile; or export with --batch MIN:OPT:MAX"


def test_quantised_layers_are_seen_as_such(build, tmp_path):
    made = build(small_bundle(tmp_path / "q.kcdp", quantised_graph(), "int8"))
    assert made.description.layers["CONVOLUTION INT8"] == 1 and made.description.layers["MATRIX_MULTIPLY FLOAT"] == 1
    assert made.description.kernels is not None and made.description.kernels["correlation Int8 to Float"] == 1


def test_bfloat16(build, tmp_path):
    made = build(small_bundle(tmp_path / "small.kcdp", small_graph("bfloat16"), "bfloat16"))
    assert made.description.layers["CONVOLUTION BF16"] == made.description.layers["MATRIX_MULTIPLY BF16"] == 1
    message = fails(lambda: build(small_bundle(tmp_path / "small.kcdp", small_graph(), "bfloat16")))
    assert message.startswith("no matrix product or convolution is BF16 (HALF) in a bundle of bfloat16; ")


# --- types that are not what the bundle says --------------------------------------------------------------------------


def test_twin_float32_called_float16(build, tmp_path):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph("float32"))
    message = fails(lambda: build(bundle))
    assert message == (
        "no matrix product or convolution is HALF (FLOAT) in a bundle of float16; no engine was kept; export the "
        "bundle again"
    )
    assert files(tmp_path / "cache") == []


def test_twin_one_product_in_float32(build, tmp_path):
    model = small_graph(second="float32")
    bundle = small_bundle(tmp_path / "small.kcdp", model)
    with pytest.raises(EngineTypeError) as caught:
        build(bundle)
    assert caught.value.layers == ["layer 'answer' (MATRIX_MULTIPLY) is FLOAT"]
    assert files(tmp_path / "cache") == []
    manifest = replace(bundle.manifest, precision={"default": "float16", "answer": "float32"})
    assert build(replace(bundle, manifest=manifest)).description.layers["MATRIX_MULTIPLY FLOAT"] == 1


def test_twin_the_kernels_are_looked_at_too(build, tmp_path, monkeypatch):
    """The network's check switched off, the builder's report alone has to see it."""
    monkeypatch.setattr("kcdp.export.engine.make.check_network", lambda layers, promise: None)
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph("float32"))
    with pytest.raises(EngineTypeError, match=r"kernel '.*' \((gemm|correlation)\) is Float"):
        build(bundle)
    assert files(tmp_path / "cache") == []


def test_float32_is_refused_unless_asked_for(build, tmp_path):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph("float32"), "float32")
    assert fails(lambda: build(bundle)) == (
        f"{bundle.path} is a bundle of float32, and its engine would compute in float32; expected float16, bfloat16 or "
        "int8; export with: --target tensorrt --precision fp16 (or add --allow-float32)"
    )
    kernels = build(bundle, allow_float32=True).description.kernels
    assert kernels is not None and any(name.startswith(("gemm Float", "correlation Float")) for name in kernels)


def test_int8_without_a_quantised_layer(build, tmp_path):
    message = fails(lambda: build(small_bundle(tmp_path / "small.kcdp", small_graph("float32"), "int8")))
    assert message.startswith("no matrix product or convolution is INT8 (FLOAT) in a bundle of int8; ")


# --- graphs that cannot be taken --------------------------------------------------------------------------------------


def test_twin_a_leftover_float32_weight(build, tmp_path, package):
    message = fails(lambda: build(small_bundle(tmp_path / "small.kcdp", small_graph(weight="float32"))))
    assert message.startswith(f"{package.label} cannot take model.onnx: node 'mix' (Conv): ")
    assert "Half" in message and "Float" in message and "cudaError" not in message and ".cpp" not in message
    assert message.endswith("python -m kcdp.export RUN --target tensorrt --precision fp16 --out NAME.kcdp")
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize(
    ("operator", "domain", "reason"), [("Det", "", "unsupported node"), ("Mystery", "example.com", "Plugin not found")]
)
def test_twin_an_operator_that_it_does_not_know(build, tmp_path, operator, domain, reason):
    extra = [helper.make_node(operator, ["mixed"], ["mixed2"], "strange", domain=domain)]
    model = small_graph(extra=extra)
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    message = fails(lambda: build(small_bundle(tmp_path / "small.kcdp", model)))
    assert f"node 'strange' ({operator}): " in message and reason in message and "cudaError" not in message


def test_bytes_that_are_moved_before_they_are_numbers(build, tmp_path):
    """The order that torch's exporter writes for ``images.permute(...).to(...)``."""
    model = small_graph()
    cast, transpose = model.graph.node[0], model.graph.node[1]
    cast.input[0], cast.output[0], transpose.input[0], transpose.output[0] = "moved", "planes", "images", "moved"
    nodes = [transpose, cast, *model.graph.node[2:]]
    swapped = [type(cast).FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(swapped)
    message = fails(lambda: build(small_bundle(tmp_path / "small.kcdp", model)))
    assert "node 'move_channels' (Transpose): " in message and "UInt8" in message


def test_what_is_no_graph_at_all(package, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    message = fails(lambda: parse_graph(package, tmp_path / "model.onnx"))
    assert message.startswith(f"{package.label} cannot take model.onnx: ")


def test_the_builder_gives_up_with_its_reason(package, tmp_path, monkeypatch):
    """Nothing tells it the batches: it returns nothing, and says why in its log alone."""
    monkeypatch.setattr(builder_module, "add_profile", lambda *arguments: None)
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph(batch="batch"), batch=None)
    message = fails(lambda: build_engine(parse_graph(package, bundle.model_path), BuildOptions()))
    assert message.startswith(f"{package.label} gave up building: ") and "profile" in message


# --- engines that do not fit ------------------------------------------------------------------------------------------


def test_an_engine_built_elsewhere_is_refused(build, tmp_path, package):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    made = build(bundle, capabilities=("SM89",))
    here = Place(package.version, CARDS["SM89"], system_name())
    assert open_engine_description(made.path, here=here, model_sha256=made.description.key.model_sha256)
    fix = "; build it where it is to run: python -m kcdp.export engine BUNDLE"
    cases = [
        (replace(here, package_version="9.9"), f"it was built with tensorrt-rtx {package.version}, installed is 9.9"),
        (replace(here, gpu=CARDS["SM120"]), "it was built for SM89, this is SM120"),
        (replace(here, gpu=None), "no NVIDIA GPU was found here"),
        (replace(here, system="linux-aarch64"), f"it was built for {system_name()}, this is linux-aarch64"),
    ]
    for place, reason in cases:
        message = fails(lambda place=place: open_engine_description(made.path, here=place))
        assert message == f"{made.path} does not fit here: {reason}{fix}"
    message = fails(lambda: open_engine_description(made.path, here=here, model_sha256="0" * 64))
    assert "it was built from another graph (model " in message
    assert fails(lambda: open_engine_description(made.path)).count(" | ") == 0, "this machine: only its GPU is missing"


@pytest.mark.parametrize("change", ["version", "capability", "missing", "unknown"])
def test_an_edited_description_is_refused(build, tmp_path, change):
    path = build(small_bundle(tmp_path / "small.kcdp", small_graph())).path
    data = json.loads(sidecar(path).read_text())
    if change == "version":
        data["key"]["package_version"] = "9.9"
    elif change == "capability":
        data["key"]["capabilities"] = ["SM75"]
    elif change == "missing":
        del data["labels"]
    else:
        data["speed"] = 1
    write_json(sidecar(path), data)
    message = fails(lambda: read_engine_description(path))
    assert message.startswith(str(sidecar(path))) and message.endswith(
        "build the engine again: python -m kcdp.export engine BUNDLE"
    )


def test_a_truncated_engine_is_refused(build, tmp_path):
    made = build(small_bundle(tmp_path / "small.kcdp", small_graph()))
    size = made.path.stat().st_size
    made.path.write_bytes(made.path.read_bytes()[: size // 2])
    assert fails(lambda: read_engine_description(made.path)) == (
        f"{made.path} was changed or damaged: it has {size // 2} bytes; expected {size} bytes; build the engine again: "
        "python -m kcdp.export engine BUNDLE"
    )


# --- the command ------------------------------------------------------------------------------------------------------


def command(*words: object) -> int:
    """As ``python -m kcdp.export engine`` parses and runs it."""
    parser = argparse.ArgumentParser()
    command_engine.add_arguments(parser)
    return command_engine.run(parser.parse_args([str(word) for word in words]))


def test_command(tmp_path, capsys, package):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    words = (bundle.path, "--cache", tmp_path / "c", "--capability", "sm120", "--capability", "SM89")
    assert command(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1/4 parse {bundle.model_path} with {package.label}"
    assert lines[1].endswith("layers; matrix products and convolutions: 2 HALF")
    assert lines[2] == "3/4 build for SM89, SM120"
    engine = lines[3].removeprefix("4/4 write ")
    assert Path(engine).parent == tmp_path / "c" / "engines" and Path(engine).is_file()
    assert lines[4].startswith(f"{engine}: ") and lines[4].endswith("for SM89, SM120")
    assert lines[5].startswith("kernels: ")
    assert lines[6] == "built without running it: speed and answers on a card are yet to be measured"
    assert lines[7] == (
        f"the same with NVIDIA's tool: tensorrt_rtx --onnx={bundle.model_path} --saveEngine={engine} "
        "--computeCapabilities=89,120 --skipInference"
    )
    assert lines[8] == f"next, where the card is: tensorrt_rtx --loadEngine={engine}"
    assert command(*words, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["cached"] and facts["engine"] == engine and facts["key"]["capabilities"] == ["SM89", "SM120"]
    assert facts["sha256"] == sha256_file(engine) and facts["description"] == str(sidecar(Path(engine)))


def test_command_writes_where_it_is_told(tmp_path, capsys):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    out = tmp_path / "engines" / "x.engine"
    assert command(bundle.path, "--out", out, "--json") == 0
    assert files(out.parent) == ["x.engine", "x.engine.json"] and not json.loads(capsys.readouterr().out)["cached"]
    assert command(bundle.path, "--out", out, "--json") == 0 and json.loads(capsys.readouterr().out)["cached"]
    message = fails(lambda: command(bundle.path, "--out", out, "--capability", "SM89"))
    assert message == f"{out} exists already and is another engine; expected a new name; or add --overwrite"
    assert command(bundle.path, "--out", out, "--capability", "SM89", "--overwrite", "--json") == 0
    assert read_engine_description(out).key.capabilities == ("SM89",)
    inside = bundle.path / "x.engine"
    assert fails(lambda: command(bundle.path, "--out", inside)) == (
        f"--out {inside} is inside a bundle, which is sealed; expected a file elsewhere; for example x.engine"
    )
    assert files(bundle.path) == ["manifest.json", "model.onnx"]


def test_command_fails_with_status_1_where_the_types_are_wrong(tmp_path, capsys):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph("float32"))
    assert command(bundle.path, "--cache", tmp_path / "c", "--json") == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {
        "engine": None, "layers": ["no matrix product or convolution is HALF (FLOAT)"]
    }  # fmt: skip
    assert printed.err.startswith("kcdp: error: no matrix product or convolution is HALF (FLOAT) in a bundle of ")
    assert files(tmp_path / "c" / "engines") == []


KNOWN = "SM75, SM80, SM86, SM89, SM120, SM121"
ELSEWHERE = "for other cards, build where one is, with --package tensorrt"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--capability", "SM98"], f"--capability SM98 (did you mean 'SM89'?); expected one of {KNOWN}; {ELSEWHERE}"),
        (["--capability", "SM999"], f"--capability SM999 (did you mean 'SM89'?); expected one of {KNOWN}; {ELSEWHERE}"),
        (["--capability", "sm90"], f"--capability sm90 (did you mean 'SM89'?); expected one of {KNOWN}; {ELSEWHERE}"),
        (["--capability", "SM70"], f"--capability SM70; expected one of {KNOWN}; SM75 are the oldest cards that it "),
        (["--capability", "CURRENT"], f"--capability CURRENT; expected one of {KNOWN}"),
        (["--capability", "8.9"], f"--capability 8.9 (did you mean 'SM89'?); expected one of {KNOWN}"),
        (["--profile", "8:4:1"], "--profile 8:4:1; expected MIN:OPT:MAX, whole numbers in rising order"),
        (["--profile", "1:8"], "--profile 1:8; expected MIN:OPT:MAX"),
        (["--profile", "0:1:8"], "--profile 0:1:8; expected MIN:OPT:MAX"),
        (["--profile", "1:8:99999999999999"], "--profile 1:8:99999999999999; expected MIN:OPT:MAX, whole numbers in "),
        (["--workspace", "0"], "--workspace 0; expected a number of MiB from 1 to 1048576"),
    ],
)
def test_command_refuses(tmp_path, words, message):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    assert fails(lambda: command(bundle.path, "--cache", tmp_path / "c", *words)).startswith(message)
    assert not (tmp_path / "c").exists()


def test_cards_that_do_not_know_bfloat16_are_refused_before_the_build(tmp_path, capsys):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph("bfloat16"), "bfloat16")
    words = (bundle.path, "--cache", tmp_path / "c")
    assert fails(lambda: command(*words, "--capability", "SM89", "--capability", "SM75")) == (
        "--capability SM75 for a bundle of bfloat16, in which such cards do not compute; expected some of SM80, SM86, "
        "SM89, SM120, SM121; or export with --precision fp16"
    )
    assert capsys.readouterr().out == ""
    assert command(*words, "--capability", "SM80") == 0
    assert command(small_bundle(tmp_path / "half.kcdp", small_graph()).path, *words[1:], "--capability", "SM75") == 0


def test_the_builder_itself_says_it_late_and_in_its_own_words(build, tmp_path):
    """The twin: why it is asked first."""
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph("bfloat16"), "bfloat16")
    assert "gave up building: " in fails(lambda: build(bundle, capabilities=("SM75",)))


def test_batches_whose_tensors_are_too_large_are_refused_before_the_build(build, tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph(batch="batch"), batch=None)
    largest = 2**31 - 1
    numbers = SIZE * SIZE * 32
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr("kcdp.export.engine.make.build_engine", lambda *arguments, **options: pytest.fail("built"))
        message = fails(lambda: build(bundle, batches=BatchRange(1, 8, largest // numbers + 1), say=said.append))
    assert message == (
        f"the layer 'mix' makes {numbers * (largest // numbers + 1)} numbers for a batch of {largest // numbers + 1}; "
        f"expected at most {largest} in a tensor: TensorRT's kernels count with 32 bits; give a --profile of at most "
        f"{largest // numbers} pictures"
    )
    assert len(said) == 2 and files(tmp_path / "cache") == []
    assert build(bundle, batches=BatchRange(1, 8, largest // numbers)).path.exists()


def test_an_engine_without_its_description_is_not_left_behind(build, tmp_path, monkeypatch):
    def full(path, data):
        raise KcdpError("the disk is full")

    monkeypatch.setattr("kcdp.engine_file.write_json", full)
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    assert fails(lambda: build(bundle, out=tmp_path / "a" / "b" / "x.engine")) == "the disk is full"
    assert files(tmp_path) == ["small.kcdp"]


# --- what only the package ``tensorrt`` needs, as far as its sibling can show it --------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_timings_are_kept_and_used_again(package, tmp_path):
    trt = package.module
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    for stored in (None, b"kept", b"damaged"):
        parsed = parse_graph(package, bundle.model_path)
        config = parsed.builder.create_builder_config()
        if stored == b"damaged":
            (tmp_path / "t.cache").write_bytes(stored)
        use_timings(config, tmp_path / "t.cache")
        assert parsed.builder.build_serialized_network(parsed.network, config) is not None
        assert keep_timings(config, tmp_path / "t.cache") and (tmp_path / "t.cache").stat().st_size > 32
    assert isinstance(config.get_timing_cache(), trt.ITimingCache)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_way_through_for_the_package_tensorrt(package, tmp_path):
    """Its sibling under its name: the card in the key, timings kept, the other tool. Not the package itself."""
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    posing, card = Package(CLASSIC, package.module), Gpu("NVIDIA H100 80GB HBM3", (9, 0))
    lines: list[str] = []
    made = make_engine(bundle, posing, BuildOptions(), tmp_path / "cache", gpu=card, say=lines.append)
    key = made.description.key
    assert (key.package, key.gpu, key.capabilities) == ("tensorrt", card.name, ("SM90",))
    assert lines[2] == f"3/4 build for {card.name} (SM90)" and "trtexec" in made.description.command
    timings = f"timing-tensorrt-{package.version}-nvidia-h100-80gb-hbm3-sm90.cache"
    assert files(tmp_path / "cache") == sorted([made.path.name, sidecar(made.path).name, timings])
    assert open_engine_description(made.path, here=Place(package.version, card, system_name())).key == key
    other = make_engine(bundle, posing, BuildOptions(), tmp_path / "cache", gpu=CARDS["SM89"], say=lines.append)
    assert other.path != made.path


def test_ctrl_c_stops_a_build(package, tmp_path, monkeypatch):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())

    def press(self, phase, parent, steps):
        raise KeyboardInterrupt

    monkeypatch.setattr(BuildProgress, "start", press)
    with pytest.raises(KeyboardInterrupt):
        build_engine(parse_graph(package, bundle.model_path), BuildOptions())


def test_layers_of_a_network(package, tmp_path):
    bundle = small_bundle(tmp_path / "small.kcdp", small_graph())
    parsed = parse_graph(package, bundle.model_path)
    layers = parsed.layers()
    assert parsed.input_shapes() == {"images": (1, 16, 16, 3)} and products_by_type(layers) == {"HALF": 2}
    assert [layer.nodes for layer in layers if layer.kind in PRODUCTS] == [("mix",), ("answer",)]
