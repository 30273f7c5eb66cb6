"""Half precision: one type in every node, islands where numbers ask for them, and naive twins that go wrong."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from half_graphs import BOTH, BRAIN, HALF, error, graph, run, types

from kcdp.config import load_config
from kcdp.errors import KcdpError
from kcdp.export.device.model import DeviceModel, ReferenceModel
from kcdp.export.parity import Gate, run_gate
from kcdp.export.passes.registry import PassOptions, apply_passes
from kcdp.export.precision.census import census, check_census
from kcdp.export.precision.islands import TYPES
from kcdp.export.precision.ranges import Range, measure_ranges
from kcdp.export.precision.typed import retype, to_half
from kcdp.export.reference import Reference
from kcdp.export.tracing import drop_dead_branches, keep_outputs, save_graph, trace
from kcdp.graph import tagging_graph
from kcdp.models.build import build_model

RNG = np.random.default_rng(0)
FLOAT = ir.DataType.FLOAT
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # in the naive twins


def normal(*shape, scale=1.0, mean=0.0):
    return RNG.normal(mean, scale, shape).astype(np.float32)


def both_ways(model, feed, dtype):
    """float32, naively converted, converted by measurement, and the report."""
    (want,) = run(model, feed)
    naive, half = model.clone(), model.clone()
    retype(naive, dtype, set())
    report = to_half(half, dtype, measure_ranges(model, [feed]))
    assert set(types(naive).values()) <= {dtype}
    found = types(half)
    names = {island.node for island in report.islands}
    assert {name for name, kind in found.items() if kind == FLOAT} <= names
    assert report.precision_map() == {"default": TYPES[dtype].name, **dict.fromkeys(names, "float32")}
    assert report.casts == sum("_cast" in str(node.name) for node in half.graph)
    return want, run(naive, feed)[0], run(half, feed)[0], report


def reasons(report):
    return {island.node: island.why for island in report.islands}


def test_a_value_that_overflows():
    constants = {"up": normal(8, 64, scale=1e4), "down": normal(64, 4, scale=1e-4)}
    nodes = [("MatMul", ["x", "up"], ["large"], {}), ("Relu", ["large"], ["r"], {}),
             ("MatMul", ["r", "down"], ["y"], {})]  # fmt: skip
    model, feed = graph(nodes, {"x": ["batch", 8]}, constants), {"x": normal(5, 8, scale=3)}
    want, naive, half, report = both_ways(model, feed, HALF)
    assert not np.isfinite(naive).all()
    assert error(half, want) < 1e-3
    assert reasons(report)["node_large"].startswith("makes values that reach")
    assert reasons(report)["node_y"].startswith("reads values that reach")
    assert report.islands[0].measured == pytest.approx(np.abs(feed["x"] @ constants["up"]).max(), rel=1e-5)
    want, naive, half, report = both_ways(model, feed, BRAIN)  # which has float32's range
    assert error(naive, want) < 0.02 and report.islands == ()


def test_a_value_that_has_lost_its_digits():
    constants = {"small": np.float32(1e-4), "large": np.float32(3e3)}
    nodes = [("Mul", ["x", "small"], ["tiny"], {}), ("Mul", ["tiny", "large"], ["y"], {})]
    model, feed = graph(nodes, {"x": ["batch", 8]}, constants), {"x": normal(5, 8, scale=1e-3)}
    want, naive, half, report = both_ways(model, feed, HALF)
    assert error(naive, want) > 0.1 > 1e-3 > error(half, want)
    assert reasons(report)["node_tiny"].startswith("makes values below")


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", ["InstanceNormalization", "LayerNormalization", "GroupNormalization"])
def test_a_normalisation_far_from_zero(kind, dtype):
    more = {"num_groups": 2} if kind == "GroupNormalization" else {}
    width = 32 if kind == "LayerNormalization" else 4
    nodes = [("Add", ["x", "shift"], ["far"], {}), (kind, ["far", "scale", "bias"], ["y"], more)]
    constants = {"shift": np.float32(200), "scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
    model, feed = graph(nodes, {"x": ["batch", 4, 32]}, constants), {"x": normal(3, 4, 32, scale=0.2)}
    want, naive, half, report = both_ways(model, feed, dtype)
    assert error(naive, want) > 0.1 > 0.01 > error(half, want)
    assert reasons(report)["node_far"].startswith("a mean that is taken off is")
    assert report.islands[0].measured == pytest.approx(1000, rel=0.6)


@pytest.mark.parametrize("dtype", BOTH)
def test_a_normalisation_near_zero_is_no_island(dtype):
    nodes = [("Relu", ["x"], ["r"], {}), ("LayerNormalization", ["r", "scale"], ["y"], {})]
    model, feed = graph(nodes, {"x": ["batch", 64]}, {"scale": np.ones(64, np.float32)}), {"x": normal(3, 64)}
    want, naive, half, report = both_ways(model, feed, dtype)
    assert report.islands == () and error(half, want) == error(naive, want) < 0.01


def test_squares_inside_an_operator():
    nodes = [("Relu", ["x"], ["r"], {}), ("LayerNormalization", ["r", "scale"], ["y"], {})]
    model = graph(nodes, {"x": ["batch", 64]}, {"scale": np.ones(64, np.float32)})
    report = both_ways(model, {"x": normal(3, 64, scale=200)}, HALF)[-1]
    assert [(i.node, i.why.startswith("squares inside reach")) for i in report.islands] == [("node_y", True)]


@pytest.mark.parametrize("dtype", BOTH)
def test_large_scores(dtype):
    """Keys that are nearly alike: their scores differ by less than a rounding step."""
    constants = {"keys": (300 * np.ones((16, 8)) + RNG.normal(0, 2, (16, 8))).astype(np.float32),
                 "scale": np.float32(1 / 4)}  # fmt: skip
    nodes = [("MatMul", ["x", "keys"], ["products"], {}), ("Mul", ["products", "scale"], ["scores"], {}),
             ("Softmax", ["scores"], ["y"], {"axis": -1})]  # fmt: skip
    feed = {"x": (1 + RNG.integers(0, 3, (6, 16)) / 2).astype(np.float32)}
    model = graph(nodes, {"x": ["batch", 16]}, {**constants, "keys": np.round(constants["keys"])})
    want, naive, half, report = both_ways(model, feed, dtype)
    assert np.abs(naive - want).max() > (0.05 if dtype == HALF else 0.3)
    assert np.abs(half - want).max() < 2e-3  # whole numbers go in, so that the islands see them as they are
    assert set(reasons(report)) == {"node_products", "node_scores", "node_y"}
    small = both_ways(model, {"x": feed["x"] * (4e-3 if dtype == HALF else 1e-3)}, dtype)[-1]
    assert small.islands == ()


@pytest.mark.parametrize("dtype", BOTH)
def test_a_difference_of_almost_the_same(dtype):
    nodes = [("Mul", ["x", "large"], ["a"], {}), ("Sin", ["a"], ["s"], {}), ("Add", ["a", "s"], ["b"], {}),
             ("Sub", ["b", "a"], ["y"], {})]  # fmt: skip
    model, feed = graph(nodes, {"x": ["batch", 8]}, {"large": np.float32(512)}), {"x": np.abs(normal(5, 8)) + 1}
    want, naive, half, report = both_ways(model, feed, dtype)
    assert error(naive, want) > 0.1
    assert reasons(report)["node_y"].startswith("a difference ") and "node_a" in reasons(report)
    assert error(half, want) < (1e-2 if dtype == HALF else 4) * error(naive, want)


@pytest.mark.parametrize("dtype", BOTH)
def test_a_long_sum_is_told_by_its_length(dtype):
    count = 4096 if dtype == HALF else 512
    nodes = [("Relu", ["x"], ["r"], {}), ("ReduceMean", ["r", "axes"], ["y"], {"keepdims": 0})]
    for length, islands in ((count, {"node_y"}), (count // 8, set())):
        model = graph(nodes, {"x": ["batch", 4, length]}, {"axes": np.array([2])})
        report = both_ways(model, {"x": normal(3, 4, length)}, dtype)[-1]
        assert set(reasons(report)) == islands


def test_a_mean_whose_sum_overflows():
    nodes = [("Relu", ["x"], ["r"], {}), ("ReduceMean", ["r", "axes"], ["y"], {"keepdims": 0})]
    model = graph(nodes, {"x": ["batch", 4, 512]}, {"axes": np.array([2])})
    report = both_ways(model, {"x": normal(3, 4, 512, mean=200)}, HALF)[-1]
    assert reasons(report)["node_y"].startswith("a sum inside reaches")


@pytest.mark.parametrize("scale", [1e-9, 1e6])
def test_weights_that_the_type_does_not_hold(scale):
    constants = {"w": normal(8, 8, scale=scale), "back": np.float32(1 / scale)}
    nodes = [("Conv", ["x", "w4"], ["c"], {}), ("Mul", ["c", "back"], ["y"], {})]
    constants["w4"] = constants.pop("w").reshape(8, 8, 1, 1)
    model, feed = graph(nodes, {"x": ["batch", 8, 4, 4]}, constants), {"x": normal(2, 8, 4, 4)}
    want, naive, half, report = both_ways(model, feed, HALF)
    assert not error(naive, want) < 0.5 and error(half, want) < 1e-3
    assert "weight" in reasons(report)["node_c"]
    assert reasons(both_ways(model, feed, BRAIN)[-1]) == {}


@pytest.mark.parametrize("dtype", BOTH)
def test_inputs_that_onnx_fixes_and_constants_in_nodes(dtype):
    """Scales of Resize stay float32; Constant, ConstantOfShape and Cast make the half type themselves."""
    value = ir.to_proto(ir.tensor(np.float32(2.0), name="t"))
    nodes = [
        ("Cast", ["images"], ["bytes"], {"to": 1}), ("Resize", ["bytes", "", "scales"], ["big"], {"mode": "nearest"}),
        ("Constant", [], ["two"], {"value": value}), ("Constant", [], ["three"], {"value_float": 3.0}),
        ("Shape", ["big"], ["shape"], {}), ("ConstantOfShape", ["shape"], ["zeros"], {}),
        ("Mul", ["big", "two"], ["doubled"], {}), ("Add", ["doubled", "three"], ["more"], {}),
        ("Add", ["more", "zeros"], ["y"], {}), ("ArgMax", ["y"], ["best"], {"axis": 1}),
        ("Gather", ["table", "best"], ["z"], {}),
    ]  # fmt: skip
    constants = {"scales": np.array([1, 1, 2, 2], np.float32), "table": np.arange(8, dtype=np.float32)}
    model = graph(nodes, {"images": ["batch", 2, 4, 4]}, constants, ("y", "z"), kind=2)
    feed = {"images": RNG.integers(0, 60, (3, 2, 4, 4), dtype=np.uint8)}
    want = run(model, feed)
    half = model.clone()
    report = to_half(half, dtype, measure_ranges(model, [feed]))
    for got, expected in zip(run(half, feed), want, strict=True):
        np.testing.assert_array_equal(got, expected)  # small integers
    initializers = {name: value.dtype for name, value in half.graph.initializers.items()}
    assert initializers["scales"] == FLOAT and [v.dtype for v in half.graph.outputs] == [FLOAT, FLOAT]
    assert half.graph.inputs[0].dtype == ir.DataType.UINT8
    assert [value.name for value in half.graph.outputs] == ["y", "z"]
    if dtype == HALF:
        assert report.islands == () and report.casts == 2
    assert len(report.islands) == len(report.to_dict()["islands"])


def test_a_weight_with_readers_of_both_types_is_there_twice_and_borders_have_one_cast():
    constants = {"w": normal(4, 4)}
    nodes = [("MatMul", ["x", "w"], ["a"], {}), ("MatMul", ["a", "w"], ["b"], {}), ("Relu", ["a"], ["c"], {}),
             ("Transpose", ["c"], ["d"], {}), ("MatMul", ["b", "w"], ["e"], {}),
             ("Add", ["e", "c"], ["y"], {})]  # fmt: skip
    model, feed = graph(nodes, {"x": [4, 4]}, constants, ("y", "d")), {"x": normal(4, 4)}
    want = run(model, feed)
    casts = retype(model, HALF, {"node_a", "node_d"})
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds == {"w": FLOAT, "w_float16": HALF}
    assert types(model)["node_a"] == FLOAT and types(model)["node_b"] == HALF
    assert casts == 3  # a down once for b and c, c up for d, the output y
    for cast in (node for node in model.graph if node.op_type == "Cast"):
        above = cast.inputs[0].producer()
        assert above is None or above.op_type != "Cast"
    assert error(run(model, feed)[0], want[0]) < 2e-3


def test_what_lies_between_islands_is_not_rounded():
    constants = {"up": normal(8, 64, scale=3e4), "down": normal(64, 4, scale=1e-4), "less": np.float32(1e-5)}
    nodes = [("MatMul", ["x", "up"], ["large"], {}), ("Mul", ["large", "less"], ["small"], {}),
             ("Transpose", ["small"], ["t"], {}), ("Mul", ["t", "more"], ["again"], {}),
             ("Transpose", ["again"], ["u"], {}), ("MatMul", ["u", "down"], ["y"], {})]  # fmt: skip
    model = graph(nodes, {"x": ["batch", 8]}, {**constants, "more": np.float32(1e5)})
    report = both_ways(model, {"x": normal(5, 8)}, HALF)[-1]
    assert reasons(report)["node_t"] == "between islands"


def test_the_end_of_a_graph_is_float32_where_it_costs_nothing():
    constants = {"kernel": normal(64, 3, 3, 3, scale=0.2), "wide": normal(64, 64, 3, 3, scale=0.05),
                 "answer": normal(64, 6)}  # fmt: skip
    nodes = [("Conv", ["x", "kernel"], ["a"], {"pads": [1] * 4}), ("Conv", ["a", "wide"], ["b"], {"pads": [1] * 4}),
             ("ReduceMean", ["b", "axes"], ["v"], {"keepdims": 0}), ("MatMul", ["v", "answer"], ["y"], {})]  # fmt: skip
    model = graph(nodes, {"x": ["batch", 3, 16, 16]}, {**constants, "axes": np.array([2, 3])})
    feed = {"x": normal(2, 3, 16, 16)}
    want, naive, half, report = both_ways(model, feed, BRAIN)
    found = {island.node: island for island in report.islands}
    assert set(found) == {"node_v", "node_y"} and found["node_y"].why.startswith("at the end of the graph")
    work = {"a": 27 * 64 * 256, "b": 576 * 64 * 256, "y": 64 * 6}
    assert found["node_y"].measured == pytest.approx(work["y"] / sum(work.values()))
    assert error(half, want) < error(naive, want)


def test_pixels_are_scaled_in_float32_where_eight_bits_are_too_few():
    nodes = [("Cast", ["images"], ["p"], {"to": 1}), ("Mul", ["p", "scale"], ["m"], {}),
             ("Add", ["m", "shift"], ["n"], {}), ("Conv", ["n", "kernel"], ["y"], {})]  # fmt: skip
    constants = {"scale": np.float32(1 / 127.5), "shift": np.float32(-1), "kernel": normal(8, 3, 1, 1)}
    model = graph(nodes, {"images": ["batch", 3, 4, 4]}, constants, kind=2)
    feed = {"images": RNG.integers(110, 145, (3, 3, 4, 4), dtype=np.uint8)}
    want, naive, half, report = both_ways(model, feed, BRAIN)
    assert set(reasons(report)) >= {"node_p", "node_m", "node_n"} and "node_y" not in reasons(report)
    assert error(half, want) < 0.3 * error(naive, want)


@pytest.mark.parametrize("dtype", BOTH)
def test_weights_are_converted_when_they_are_written(dtype, tmp_path):
    constants = {"w": normal(64, 64, scale=0.1)}
    model = graph([("MatMul", ["x", "w"], ["y"], {})], {"x": ["batch", 64]}, constants)
    retype(model, dtype, set())
    (weight,) = model.graph.initializers.values()
    assert isinstance(weight.const_value, ir.LazyTensor) and weight.const_value.nbytes == 64 * 64 * 2
    save_graph(model, tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 64 * 64 * 2 + 2000
    (stored,) = ir.load(tmp_path / "m.onnx").graph.initializers.values()
    assert stored.dtype == dtype
    numpy_type = np.float16 if dtype == HALF else ml_dtypes.bfloat16
    np.testing.assert_array_equal(stored.const_value.numpy(), constants["w"].astype(numpy_type))


@pytest.fixture(scope="module")
def tiny():
    """The preset, untrained, with its graph."""
    torch.manual_seed(0)
    network = build_model(load_config("tiny", data={"data": {"source": "synthetic:photos?n=12"}})).eval()
    device = DeviceModel(network)
    apply_passes(device, PassOptions(32))
    model = trace(device, 32, opset=22)
    drop_dead_branches(model)
    return network, model


@pytest.mark.parametrize("dtype", BOTH)
def test_a_tiny_model_passes_the_gate(tiny, dtype, tmp_path):
    network, model = tiny[0], tiny[1].clone()
    images, name = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8), TYPES[dtype].name
    report = to_half(model, dtype, measure_ranges(model, [{"images": images[:8]}]))
    types(model)
    found = census(model)
    assert check_census(found, name, report.precision_map()) == []
    assert sum(kind == name for kind in found.products.values()) > 0.5 * len(found.products)
    save_graph(model, tmp_path / "twin.onnx")
    keep_outputs(model, ["logits"], {})
    save_graph(model, tmp_path / "model.onnx")
    reference = Reference(ReferenceModel(network), images)
    result = run_gate(
        reference, tmp_path / "model.onnx", tagging_graph(32), Gate(name, batch_sizes=(5,)), runtimes=(),
        twin=tmp_path / "twin.onnx",
    )  # fmt: skip
    assert result.passed, result.failures
    (run_,) = result.runtimes
    assert run_.facts["runtime"] == "rounding" and run_.runs[0].numbers["levels"]


def test_what_cannot_be_converted():
    nodes = [("MatMul", ["x", "w"], ["a"], {}), ("Relu", ["a"], ["y"], {})]
    model = graph(nodes, {"x": ["batch", 8]}, {"w": normal(8, 8)})
    found = dict(measure_ranges(model, [{"x": normal(2, 8)}]))
    with pytest.raises(KcdpError, match=r"'a' is not finite in float32 on the pictures measured; check the model"):
        to_half(model, HALF, {**found, "a": Range(0.0, np.inf, finite=False)})
    model.graph[0].outputs[0].type = None
    with pytest.raises(ValueError, match="the type of a is not stored"):
        to_half(model, HALF, found)
