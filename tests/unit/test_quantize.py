"""8-bit layers: what is written into a graph, and that runtimes compute it in integers."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from kcdp.errors import KcdpError
from kcdp.export.precision import layers as layers_module
from kcdp.export.precision.calibration import METHODS, Interval, collect, open_session
from kcdp.export.precision.layers import find_layers
from kcdp.export.precision.quantize import ACTIVATIONS, quantise_weight, quantize
from kcdp.export.precision.weight_only import quantize_weights

#: Output channels of very different size: one scale for all of them would round the small ones away.
UNEVEN = (10.0 ** -np.linspace(0, 3, 16)).astype(np.float32)
PICTURES = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)


def array(*shape, scale=0.3):
    """The same numbers for the same shape."""
    return (np.random.default_rng(shape).normal(size=shape) * scale).astype(np.float32)


def graph(opset=20, **weights):
    """Conv, Relu, Conv without bias that two nodes read, Conv, Add, MatMul, Add, ConvTranspose-free head, Gemm."""
    constants = {
        "w1": array(16, 3, 3, 3) * UNEVEN[:, None, None, None], "b1": array(16), "w2": array(16, 16, 3, 3),
        "w3": array(16, 16, 1, 1), "b3": array(16), "w4": array(16, 32) * np.tile(UNEVEN, 2), "b4": array(32),
        "w5": array(6, 32), "b5": array(6),
    }  # fmt: skip
    constants.update(weights)
    make = onnx.helper.make_node
    nodes = [
        make("Conv", ["x", "w1", "b1"], ["c1"], "conv1", pads=[1, 1, 1, 1]),
        make("Relu", ["c1"], ["r1"], "relu"),
        make("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        make("Conv", ["c2", "w3", "b3"], ["c3"], "conv3"),
        make("Add", ["c3", "c2"], ["a3"], "add"),
        make("GlobalAveragePool", ["a3"], ["p3"], "pool"),
        make("Flatten", ["p3"], ["f3"], "flatten"),
        make("MatMul", ["f3", "w4"], ["m4"], "matmul"),
        make("Add", ["m4", "b4"], ["a4"], "row"),
        make("Gemm", ["a4", "w5", "b5"], ["logits"], "gemm", transB=1),
    ]
    value = onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_model(
        onnx.helper.make_graph(
            nodes, "g", [value("x", 1, ["batch", 3, 8, 8])], [value("logits", 1, ["batch", 6])],
            [onnx.numpy_helper.from_array(a.astype(np.float32), n) for n, a in constants.items()],
        ),
        opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10,
    )  # fmt: skip
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def ranges_of(model, method="min-max"):
    names = {name for layer in find_layers(model.graph) for name in layer.quantised_values}
    return collect(model, names, [{"x": PICTURES[:8]}, {"x": PICTURES[8:16]}]).ranges(method)


def quantised(model, **options):
    report = quantize(model, ranges_of(model), **options)
    onnx.checker.check_model(ir.to_proto(model), full_check=options.get("activations") != "uint16")
    return report


def run(model, pictures=PICTURES):
    return open_session(model).run(["logits"], {"x": pictures})[0]


def fused(model, tmp_path):
    """Kinds of nodes after ONNX Runtime has had its way."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "fused.onnx"), 3
    onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node)


def snr(want, got):
    return 10 * np.log10((want**2).sum() / ((got - want) ** 2).sum())


def test_every_layer_is_found_with_the_axis_of_its_output_channels():
    found = {layer.name: (layer.kind, layer.axis, layer.answer.name) for layer in find_layers(graph().graph)}
    assert found == {
        "conv1": ("Conv", 0, "r1"), "conv2": ("Conv", 0, "c2"), "conv3": ("Conv", 0, "c3"),
        "matmul": ("MatMul", 1, "m4"), "gemm": ("Gemm", 0, "logits"),
    }  # fmt: skip


def test_products_of_activations_and_stacked_weights_are_no_layers():
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    proto = onnx.helper.make_model(onnx.helper.make_graph(
        [make("MatMul", ["x", "x"], ["a"], "square"), make("MatMul", ["a", "w"], ["b"], "stack"),
         make("MatMul", ["v", "b"], ["y"], "left")],
        "g", [value("x", 1, [2, 4, 4])], [value("y", 1, [2, 4, 4])],
        [onnx.numpy_helper.from_array(array(2, 4, 4), "w"), onnx.numpy_helper.from_array(array(4, 4), "v")],
    ))  # fmt: skip
    assert find_layers(ir.from_proto(proto).graph) == []


def test_answers_stay_near_and_a_wrong_axis_is_seen(monkeypatch):
    model = graph()
    want = run(model)
    report = quantised(model)
    assert report.quantised == 5 and report.bytes_after < report.bytes_before / 2
    right = snr(want, run(model))
    assert right > 30
    monkeypatch.setattr(layers_module, "OUTPUT_AXES", {"Conv": 1, "ConvTranspose": 0, "MatMul": 0, "Gemm": 0})
    twin = graph()
    monkeypatch.setattr("kcdp.export.precision.quantize.usual_bias", lambda layer: False)
    quantize(twin, ranges_of(twin))
    assert snr(want, run(twin)) < right - 6


def test_weights_are_right_to_half_a_step_of_their_own_channel():
    weight = array(16, 5, 3, 3) * UNEVEN[:, None, None, None]
    integers, scale = quantise_weight(weight, 0)
    assert integers.dtype == np.int8 and np.abs(integers).max() == 127 and scale.shape == (16,)
    assert (np.abs(integers * scale[:, None, None, None] - weight) <= scale[:, None, None, None] * 0.5001).all()


def test_every_input_of_a_quantised_layer_was_rounded_and_no_other():
    model = graph()
    quantised(model, skip={"conv3"})
    for node in model.graph:
        if node.op_type in ("Conv", "MatMul", "Gemm"):
            kinds = [value.producer().op_type if value.producer() else "constant" for value in node.inputs[:2]]
            assert kinds == (["DequantizeLinear", "constant"] if node.name == "conv3" else ["DequantizeLinear"] * 2)
    (add,) = (node for node in model.graph if node.name == "add")
    assert [value.name for value in add.inputs] == ["c3", "c2.rounded"], "all readers of a rounded answer read it"


def test_onnxruntime_fuses_all_and_nothing_without_rounded_answers(tmp_path, monkeypatch):
    model = graph()
    quantised(model)
    kinds = fused(model, tmp_path)
    assert (kinds["QLinearConv"], kinds["QGemm"]) == (3, 2)
    assert not {"Conv", "MatMul", "Gemm"} & set(kinds)
    plain = ACTIVATIONS["uint8"].__class__(ir.DataType.UINT8, 0, 255, answers=False)
    monkeypatch.setattr("kcdp.export.precision.quantize.ACTIVATIONS", {"uint8": plain})
    model = graph()
    quantised(model)
    kinds = fused(model, tmp_path)
    assert (kinds["QLinearConv"], kinds["Conv"] + kinds["FusedConv"]) == (1, 2), (
        "only the one whose reader wants a rounded input"
    )


def test_openvino_computes_in_integers_and_the_same(tmp_path):
    openvino = pytest.importorskip("openvino")
    model = graph()
    quantised(model)
    want = run(model)
    ir.save(model, tmp_path / "model.onnx")
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(tmp_path / "model.onnx"), "CPU", options)
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    kinds = [(fact["layerType"].astype(str), fact["runtimePrecision"].astype(str)) for fact in facts]
    computing = [precision for kind, precision in kinds if kind.startswith(("Convolution", "FullyConnected", "MatMul"))]
    assert len(computing) == 5 and set(computing) <= {"u8", "i8"}, kinds
    assert snr(want, compiled({"x": PICTURES})[0]) > 35


def test_a_channel_of_next_to_no_weights_keeps_its_bias_and_overflows_unguarded(monkeypatch):
    weight, bias = array(16, 3, 3, 3), array(16)
    weight[3] *= 1e-9
    bias[3] = 2.0
    model, twin = graph(w1=weight, b1=bias), graph(w1=weight, b1=bias)
    want = run(model)
    quantised(model)
    assert snr(want, run(model)) > 24
    monkeypatch.setattr("kcdp.export.precision.quantize.BIAS_RANGE", 2**50)
    with np.errstate(invalid="ignore"):
        quantised(twin)
    assert snr(want, run(twin)) < 10


def test_reduced_range_has_weights_of_seven_bits():
    model = graph()
    quantised(model, reduce_range=True)
    weights = [v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith("weight.integers")]
    assert len(weights) == 5 and {int(np.abs(w).max()) for w in weights} == {63}


def test_int8_activations_have_the_zero_point_0_and_float_biases():
    model = graph()
    want = run(model)
    quantised(model, activations="int8")
    assert snr(want, run(model)) > 25
    zeros = [v.const_value.numpy() for n, v in model.graph.initializers.items() if n.endswith(".zero")]
    assert zeros and all(z.dtype == np.int8 and not z.any() for z in zeros)


@pytest.mark.parametrize("opset", [20, 21])
def test_uint16_activations_load_and_are_finer(opset):
    model = graph(opset)
    want = run(model)
    quantised(model, activations="uint16")
    domains = {n.domain for n in model.graph if n.op_type == "QuantizeLinear"}
    assert domains == ({"com.microsoft"} if opset == 20 else {""})
    finer = snr(want, run(model))
    other = graph(opset)
    quantised(other)
    assert finer > snr(want, run(other)) + 3


def test_errors_name_what_is_near():
    with pytest.raises(KcdpError, match="no layer is called 'conv9' \\(did you mean 'conv"):
        quantised(graph(), skip={"conv9"})
    with pytest.raises(KcdpError, match=r"activations 'uint9'.* expected one of uint8, int8, uint16"):
        quantised(graph(), activations="uint9")
    with pytest.raises(KcdpError, match="no range of 'x'"):
        quantize(graph(), {})
    with pytest.raises(KcdpError, match="a range of nan to 1"):
        quantize(graph(), dict.fromkeys(ranges_of(graph()), Interval(float("nan"), 1.0)))


def test_extremes_are_exact_and_ranges_follow_their_method():
    model = graph()
    found = collect(model, {"x", "c2"}, [{"x": PICTURES[:10]}, {"x": PICTURES[10:]}])
    assert found.extremes["x"] == Interval(float(PICTURES.min()), float(PICTURES.max()))
    assert set(np.unique(found.samples["x"])) <= set(np.unique(PICTURES))
    whole, inner, best = (found.ranges(method)["x"] for method in ("min-max", "percentile", "least-error"))
    assert whole.low <= inner.low < inner.high <= whole.high
    assert whole.low <= best.low < best.high <= whole.high
    assert list(METHODS) == ["min-max", "percentile", "least-error"]


def test_least_error_cuts_off_what_is_rare_and_min_max_keeps_it():
    samples, extremes = np.random.default_rng(0).normal(size=100_000), Interval(-4.0, 100.0)
    assert METHODS["min-max"](extremes, samples, 256) == extremes
    assert METHODS["least-error"](extremes, samples, 256).high < 10
    assert METHODS["percentile"](extremes, samples, 256).high < 5
    assert METHODS["least-error"](Interval(0.0, 0.0), np.zeros(8), 256) == Interval(0.0, 0.0)


def test_values_that_are_missing_or_not_finite_are_refused():
    with pytest.raises(KcdpError, match="the graph has no value 'c9'"):
        collect(graph(), {"c9"}, [{"x": PICTURES}])
    with pytest.raises(KcdpError, match="'c1' is not finite on the calibration pictures"):
        collect(graph(b1=np.full(16, np.nan)), {"c1"}, [{"x": PICTURES}])


def test_weights_alone_are_a_quarter_and_right_to_half_a_step(tmp_path):
    model = graph(w4=array(16, 512), b4=array(512), w5=array(6, 512))
    want = run(model)
    report = quantize_weights(model, skip={"conv2"})
    assert {row.name: row.why for row in report.rows} == {
        "conv1": "fewer than 1024 weights", "conv2": "asked for", "conv3": "fewer than 1024 weights", "matmul": "",
        "gemm": "",
    }  # fmt: skip
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert snr(want, run(model)) > 35
    unskipped = graph(w4=array(16, 4096), b4=array(4096), w5=array(6, 4096))
    before = sum(v.const_value.nbytes for v in unskipped.graph.initializers.values())
    report = quantize_weights(unskipped)
    assert report.bytes_before == before and report.bytes_after < before / 2.9  # biases and scales stay


def test_blocks_of_weights_are_finer_and_need_their_operator_set():
    weight = array(64, 32)
    weight[0] *= 50  # along the axis that is summed over: a scale by channel suffers, one by block does not
    wide = {"w2": array(64, 16, 3, 3), "w3": array(64, 64, 1, 1), "b3": array(64), "w4": weight}
    sizes = []
    for block in (None, 16):
        candidate = graph(21, **wide)
        quantize_weights(candidate, block=block, skip={"conv2"})
        onnx.checker.check_model(ir.to_proto(candidate), full_check=True)
        (node,) = (n for n in candidate.graph if n.name == "w4.unpacked")
        integers, scale = (v.const_value.numpy().astype(np.float32) for v in node.inputs)
        unpacked = integers * (scale if block is None else np.repeat(scale, block, axis=0))
        sizes.append(np.abs(unpacked - weight)[16:].max())
    assert sizes[1] < sizes[0] / 5
    with pytest.raises(KcdpError, match="operator set 20; expected 21 or newer"):
        quantize_weights(graph(20), block=16)


def test_half_precision_weights_are_unpacked_to_half():
    make, value = onnx.helper.make_node, onnx.helper.make_tensor_value_info
    weight = array(64, 32).astype(np.float16)
    proto = onnx.helper.make_model(onnx.helper.make_graph(
        [make("MatMul", ["x", "w"], ["logits"], "matmul")], "g", [value("x", 10, ["batch", 64])],
        [value("logits", 10, ["batch", 32])], [onnx.numpy_helper.from_array(weight, "w")],
    ), opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)  # fmt: skip
    model = ir.from_proto(proto)
    quantize_weights(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    x = array(4, 64).astype(np.float16)
    assert snr((x @ weight).astype(np.float32), run(model, x).astype(np.float32)) > 38
