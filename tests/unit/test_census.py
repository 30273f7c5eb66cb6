"""What computes in which type, counted and compared with what was promised."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest
from half_graphs import BOTH, HALF, graph

from kcdp.export.precision.calibration import collect
from kcdp.export.precision.census import census, check_census
from kcdp.export.precision.quantize import quantize
from kcdp.export.precision.ranges import measure_ranges
from kcdp.export.precision.typed import retype, to_half
from kcdp.export.precision.weight_only import quantize_weights

RNG = np.random.default_rng(0)
FEED = {"x": RNG.normal(0, 1, (2, 3, 8, 8)).astype(np.float32)}


def layers():
    constants = {
        "kernel": RNG.normal(0, 0.3, (16, 3, 3, 3)), "wide": RNG.normal(0, 0.3, (16, 16, 3, 3)),
        "matrix": RNG.normal(0, 0.3, (16, 6)),
    }  # fmt: skip
    nodes = [
        ("Conv", ["x", "kernel"], ["a"], {"pads": [1] * 4}), ("Relu", ["a"], ["b"], {}),
        ("Conv", ["b", "wide"], ["c"], {"pads": [1] * 4}), ("ReduceMean", ["c", "axes"], ["d"], {"keepdims": 0}),
        ("MatMul", ["d", "matrix"], ["y"], {}),
    ]  # fmt: skip
    constants = {name: array.astype(np.float32) for name, array in constants.items()}
    return graph(nodes, {"x": ["batch", 3, 8, 8]}, {**constants, "axes": np.array([2, 3])}, opset=21)


def test_a_float32_graph():
    found = census(layers())
    assert found.to_dict() == {
        "Conv": {"float32": 2}, "Relu": {"float32": 1}, "ReduceMean": {"float32": 1}, "MatMul": {"float32": 1},
    }  # fmt: skip
    assert found.text() == "  Conv 2 float32; MatMul 1 float32; other operators 2 float32"
    assert json.dumps(found.to_dict()) and check_census(found, "float32", {}) == []
    assert check_census(found, "float16", {})[0] == "the product node_a computes in float32 and is no declared island"


@pytest.mark.parametrize("dtype", BOTH)
def test_a_half_graph_with_an_island_that_is_declared_or_is_not(dtype):
    model, name = layers(), dtype.name.lower()
    model.opset_imports[""] = 22
    retype(model, dtype, {"node_c"})
    found = census(model)
    assert found.counts["Conv"] == {name: 1, "float32": 1} and found.products["node_c"] == "float32"
    assert check_census(found, name, {"default": name, "node_c": "float32"}) == []
    failures = check_census(found, name, {"default": name})
    assert failures == ["the product node_c computes in float32 and is no declared island"]
    assert len(check_census(found, "float32", {})) == 2


def test_a_weight_left_in_float32_is_found():
    """The twin: someone forgets a layer."""
    model = layers()
    report = to_half(model, HALF, measure_ranges(model, [FEED]))
    assert check_census(census(model), "float16", report.precision_map()) == []
    node = next(node for node in model.graph if node.name == "node_c")
    weight, source = node.inputs[1], node.inputs[0]
    wide = ir.tensor(weight.const_value.numpy().astype(np.float32), name="wide_again")
    value = ir.Value(name="wide_again", shape=weight.shape, type=ir.TensorType(wide.dtype), const_value=wide)
    model.graph.register_initializer(value)
    cast = ir.node("Cast", [source], {"to": int(ir.DataType.FLOAT)}, name="up")
    cast.outputs[0].name, cast.outputs[0].dtype = "up", ir.DataType.FLOAT
    model.graph.insert_before(node, cast)
    node.replace_input_with(0, cast.outputs[0])
    node.replace_input_with(1, value)
    node.outputs[0].dtype = ir.DataType.FLOAT
    assert check_census(census(model), "float16", report.precision_map()) == [
        "the product node_c computes in float32 and is no declared island"
    ]


@pytest.mark.parametrize(("activations", "kind"), [("uint8", "int8"), ("int8", "int8"),
                                                   ("uint16", "int8 int16-activations")])  # fmt: skip
def test_integers(activations, kind):
    model = layers()
    names = [value.name for value in (*model.graph.inputs, *(v for node in model.graph for v in node.outputs))]
    ranges = collect(model, names, [FEED], samples=64).extremes
    quantize(model, ranges, activations=activations, skip={"node_a"})
    found = census(model)
    assert found.products == {"node_a": "float32", "node_c": kind, "node_y": kind}
    assert check_census(found, "int8", {"node_a": "float32"}) == []
    assert check_census(found, "int8", {}) == ["the layer node_a computes in float32 and is not declared"]


def test_weights_alone_are_not_counted_as_integer_products():
    model = layers()
    quantize_weights(model, skip={"node_y"})
    found = census(model)
    assert found.products == {"node_a": "float32", "node_c": "int8-weights float32", "node_y": "float32"}
    declared = {"node_y": "float32", "node_a": "float32"}  # node_a has few weights
    assert check_census(found, "int8-weights", declared) == []
    assert check_census(found, "int8-weights", {"node_y": "float32"}) == [
        "the layer node_a computes in float32 and is not declared"
    ]
    assert check_census(found, "int8", declared) == ["no product is int8"]


def test_nothing_quantised_is_a_failure():
    assert check_census(census(layers()), "int8", dict.fromkeys(["node_a", "node_c", "node_y"], "float32")) == [
        "no product is int8"
    ]
