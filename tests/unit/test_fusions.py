"""Graphs for ONNX Runtime's CUDA provider: fused nodes are counted, compute the same, and what must not match does not.

Operators with a kernel on processors run in it; the others are written out as documented and run so.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kcdp.config import load_config
from kcdp.export.device.model import DeviceModel
from kcdp.export.fusions.parts import DOMAIN
from kcdp.export.fusions.registry import FUSIONS, OPERATORS, check_fused, describe, fuse_for_cuda, left_unfused
from kcdp.export.fusions.unfusing import EXPANSIONS, expand_for_cpu
from kcdp.export.passes.registry import PassOptions, apply_passes
from kcdp.export.precision.ranges import Range
from kcdp.export.precision.typed import to_half
from kcdp.export.tracing import drop_dead_branches, trace
from kcdp.models.build import build_model

SIZE, COUNT = 32, 3
#: Operators that ONNX Runtime has no kernel for on a processor.
CUDA_ONLY = ("GroupNorm", "BiasSplitGelu", "NhwcConv")
KINDS = {
    "constant": [],
    "implicit": ["model.knowledge.mode=implicit", "model.knowledge.hidden=16"],
    "explicit": ["model.knowledge.mode=explicit", "model.encoder.kind=kl", "model.encoder.blocks=[1,1,1]"],
}
#: Of the tiny network: in the U-Net, and beside it in the knowledge (implicit) or the encoder (explicit).
FUSED = {
    "constant": {"GroupNorm": 35, "MultiHeadAttention": 8, "BiasSplitGelu": 0, "BiasGelu": 7,
                 "SkipLayerNormalization": 14, "QuickGelu": 0, "NhwcConv": 68},
    "implicit": {"GroupNorm": 36, "MultiHeadAttention": 9, "BiasSplitGelu": 0, "BiasGelu": 8,
                 "SkipLayerNormalization": 15, "QuickGelu": 0, "NhwcConv": 70},
    "explicit": {"GroupNorm": 35, "MultiHeadAttention": 9, "BiasSplitGelu": 0, "BiasGelu": 7,
                 "SkipLayerNormalization": 14, "QuickGelu": 11, "NhwcConv": 72},
}  # fmt: skip


@cache
def exported(kind):
    """The tiny network's graph as bytes, nothing in it at its neutral starting value."""
    torch.manual_seed(0)
    model = build_model(load_config("tiny", overrides=KINDS[kind], data={"data": {"source": "synthetic:photos?n=12"}}))
    with torch.no_grad():
        for parameter in model.eval().parameters():
            if parameter.ndim == 1 or not parameter.any():
                parameter.add_(0.3 * torch.randn_like(parameter))
    device = DeviceModel(model, model.knowledge is None)
    apply_passes(device, PassOptions(SIZE))
    graph = trace(device, SIZE)
    drop_dead_branches(graph)
    return ir.to_proto(graph).SerializeToString()


def network(kind, batch=None):
    """The graph, and for a fixed number of pictures the same with that number in all shapes."""
    model = ir.from_proto(onnx.load_from_string(exported(kind)))
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values if batch is not None else ():
        if value.shape is not None:
            value.shape = ir.Shape([batch if str(length) == "batch" else length for length in value.shape])
    return model


def feeds(model, count=COUNT):
    generator = np.random.default_rng(0)
    found = {}
    for value in model.graph.inputs:
        shape = [length if isinstance(length, int) else count for length in value.shape]
        if value.dtype == ir.DataType.UINT8:
            found[value.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            found[value.name] = generator.normal(size=shape).astype(value.dtype.numpy())
    return found


def opened(model, providers=("CPUExecutionProvider",)):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=list(providers))


def run(model, feed, providers=("CPUExecutionProvider",)):
    session = opened(model, providers)
    return dict(zip([port.name for port in session.get_outputs()], session.run(None, feed), strict=True))


def copied(model):
    return ir.from_proto(ir.to_proto(model))


def assert_close(got, want, tolerance=1e-5):
    assert got.keys() == want.keys()
    for name in want:
        assert got[name].shape == want[name].shape and got[name].dtype == want[name].dtype
        scale = max(float(np.abs(want[name].astype(np.float64)).max()), 1.0)
        worst = float(np.abs(got[name].astype(np.float64) - want[name].astype(np.float64)).max())
        assert worst <= tolerance * scale, (name, worst, scale)


def kinds(model):
    return Counter(node.op_type for node in model.graph if node.domain == DOMAIN)


def fused(model, tolerance=1e-5):
    """Fuse, compare both ways, check; the counts that are not 0, and the fused graph."""
    feed = feeds(model)
    want = run(model, feed)
    counts = fuse_for_cuda(model)
    assert check_fused(counts, model) == [] and kinds(model) == Counter(counts)
    half = any(value.dtype == ir.DataType.FLOAT16 for node in model.graph for value in node.outputs)
    for operators in (None,) if half else (CUDA_ONLY, None):
        plain = copied(model)
        left = sum(kinds(model).values()) - expand_for_cpu(plain, operators)
        assert left == sum(kinds(plain).values()) and (operators is not None or not left)
        assert_close(run(plain, feed), want, tolerance)
    return {operator: count for operator, count in counts.items() if count}, model


# The whole network


@pytest.mark.parametrize(
    "kind", ["constant", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("implicit", "explicit"))]
)
def test_everything_in_the_network_is_fused_and_computes_the_same(kind):
    model = network(kind)
    counts, _ = fused(model)
    assert {operator: counts.get(operator, 0) for operator in OPERATORS} == FUSED[kind]
    whys = Counter(place.why for place in left_unfused(model))
    assert whys["its probabilities are wanted"] == 6 and "" not in whys
    text = describe(counts, model)
    assert "35 GroupNorm" in text or "36 GroupNorm" in text
    assert "6 attention (its probabilities are wanted)" in text and "\n" not in text


def test_the_order_of_axes_changes_only_around_maps_tokens_and_doublings():
    model = network("constant")
    convolutions = {node.name for node in model.graph if node.op_type == "Conv"}
    fuse_for_cuda(model)
    assert convolutions == {node.name for node in model.graph if node.op_type == "NhwcConv"}, "islands go by name"
    turned = [
        node for node in model.graph
        if node.op_type == "Transpose" and tuple(node.attributes["perm"].value) in ((0, 2, 3, 1), (0, 3, 1, 2))
    ]  # fmt: skip
    # into and out of each of three doublings, and for each of four levels that are read out; none for the pictures
    assert len(turned) == 3 * 2 + 4
    assert not any(node.op_type == "Conv" for node in model.graph)


def test_a_fixed_number_of_pictures():
    for batch in (1, 2):
        model = network("constant", batch)
        feed = feeds(model)
        want = run(model, feed)
        counts = fuse_for_cuda(model)
        assert counts == FUSED["constant"]
        assert any(node.op_type == "Expand" and node.name.endswith("each") for node in model.graph) == (batch > 1)
        expand_for_cpu(model, CUDA_ONLY)
        assert_close(run(model, feed), want)


def half_network(kind, change=lambda name, measured: measured):
    model = network(kind)
    ranges = {}
    for node in model.graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.dtype == ir.DataType.FLOAT:
                ranges[value.name] = change(value, Range(-1.0, 1.0))
    report = to_half(model, ir.DataType.FLOAT16, ranges)
    return model, report


def test_half_precision():
    model, _ = half_network("constant")
    counts, _ = fused(model, 5e-3)
    assert {operator: counts.get(operator, 0) for operator in OPERATORS} == FUSED["constant"]
    for node in model.graph:
        if node.domain == DOMAIN:
            assert node.outputs[0].dtype == node.inputs[0].dtype == ir.DataType.FLOAT16
        if node.op_type == "GroupNorm":  # the kernel takes weights of float32 only
            assert {value.dtype for value in node.inputs[1:]} == {ir.DataType.FLOAT}


def test_islands_of_float32_around_group_norms_are_joined_into_half_ones():
    def change(value, measured):
        norms = any(use.node.op_type == "InstanceNormalization" for use in value.uses())
        return Range(-300.0, 300.0) if norms else measured  # their squares are too large

    plain, _ = half_network("constant")
    model, report = half_network("constant", change)
    norms = [island for island in report.islands if island.kind == "InstanceNormalization"]
    assert len(norms) == 35
    counts, _ = fused(model, 5e-3)
    assert counts["GroupNorm"] == 35
    fuse_for_cuda(plain)
    casts = [sum(node.op_type == "Cast" for node in graph.graph) for graph in (plain, model)]
    assert casts[0] == casts[1]  # none is left of those around the norms


def test_on_a_processor_the_only_complaint_is_that_kernels_are_missing():
    model = network("constant")
    fuse_for_cuda(model)
    expand_for_cpu(model, [operator for operator in OPERATORS if operator not in CUDA_ONLY])
    missing = set()
    for operator in CUDA_ONLY:
        one = copied(model)
        expand_for_cpu(one, [other for other in CUDA_ONLY if other != operator])
        if not kinds(one):
            continue
        with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.NotImplemented, match=f" {operator}"):
            opened(one)
        missing.add(operator)
    assert missing == {"GroupNorm", "NhwcConv"}


@pytest.mark.gpu
def test_on_a_gpu_the_half_network_computes_the_same():
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(f"no CUDA provider in this ONNX Runtime {onnxruntime.__version__}")
    model, _ = half_network("constant")
    feed = feeds(model)
    want = run(model, feed)
    fuse_for_cuda(model)
    got = run(model, feed, ("CUDAExecutionProvider", "CPUExecutionProvider"))
    assert_close(got, want, 2e-2)


# One pattern at a time


def graph(text, **constants):
    """A graph from ONNX's text, with arrays as constants and shapes inferred."""
    parsed = onnx.parser.parse_graph(text)
    parsed.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()
    )
    model = onnx.helper.make_model(parsed, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True))
    for number, node in enumerate(model.graph):
        node.name = f"n{number}"
    return model


def weights(*shape, scale=0.3, seed=0):
    return (scale * np.random.default_rng([seed, *shape]).normal(size=shape)).astype(np.float32)


def attention(*, keys=200, heads=2, size=8, axis=-1, order="0,2,1,3", extra="", outputs="", mixed="p"):
    width = heads * size
    return graph(
        f"""g (float[N,12,{width}] x, float[N,{keys},{width}] c) => (float[N,12,{width}] y{outputs}) {{
            q = MatMul(x, wq)  qs = Reshape(q, s)  qt = Transpose<perm=[{order}]>(qs)
            k = MatMul(c, wk)  ks = Reshape(k, s)  kt = Transpose<perm=[0,2,3,1]>(ks)
            v = MatMul(c, wv)  vs = Reshape(v, s)  vt = Transpose<perm=[0,2,1,3]>(vs)
            a = MatMul(qt, kt)  p = Softmax<axis={axis}>(a)  {extra}
            o = MatMul({mixed}, vt)  ot = Transpose<perm=[0,2,1,3]>(o)  y = Reshape(ot, j)
        }}""",
        wq=weights(width, width), wk=weights(width, width, seed=1), wv=weights(width, width, seed=2),
        s=np.array([0, 0, heads, size]), j=np.array([0, 0, width]), two=np.float32(2), heads=np.array([1]),
    )  # fmt: skip


def test_attention_with_many_keys_takes_them_as_they_are():
    counts, model = fused(attention())
    assert counts == {"MultiHeadAttention": 1}
    (node,) = (node for node in model.graph if node.domain == DOMAIN)
    assert [len(value.shape) for value in node.inputs] == [3, 3, 3]
    assert node.attributes["scale"].value == 1.0 and node.attributes["num_heads"].value == 2
    assert not any(node.op_type in ("Transpose", "Reshape") for node in model.graph)


def test_attention_with_few_keys_never_meets_the_kernel_without_a_scale():
    counts, model = fused(attention(keys=128))
    (node,) = (node for node in model.graph if node.domain == DOMAIN)
    assert counts == {"MultiHeadAttention": 1}
    assert [len(value.shape) for value in node.inputs] == [3, 4, 4]


def test_a_scale_in_front_of_the_softmax_stays():
    model = graph(
        """g (float[N,2,5,8] q, float[N,5,16] c) => (float[N,5,16] y) {
            cq = MatMul(c, w) cs = Reshape(cq, s)  ct = Transpose<perm=[0,2,1,3]>(cs)  qm = Mul(ct, root)
            kt = Transpose<perm=[0,1,3,2]>(q)  km = Mul(kt, root)
            a = MatMul(qm, km)  p = Softmax<axis=-1>(a)
            o = MatMul(p, q)  ot = Transpose<perm=[0,2,1,3]>(o)  y = Reshape(ot, j)
        }""",
        w=weights(16, 16), s=np.array([0, 0, 2, 8]), j=np.array([0, 0, 16]), root=np.float32(0.5),
    )  # fmt: skip
    counts, model = fused(model)
    assert counts == {"MultiHeadAttention": 1}
    (node,) = (node for node in model.graph if node.domain == DOMAIN)
    assert node.attributes["scale"].value == 0.25


@pytest.mark.parametrize(("change", "why"), [
    ({"extra": "m = ReduceMean<keepdims=0>(p, heads)", "outputs": ", float[N,12,200] m"},
     "its probabilities are wanted"),
    ({"outputs": ", float[N,2,12,200] p"}, "its probabilities are wanted"),
    ({"axis": 2}, None),
    ({"extra": "r = Mul(p, two)", "mixed": "r"}, None),
    ({"outputs": ", float[N,2,12,200] a"}, "its scores are wanted"),
])  # fmt: skip
def test_attention_that_is_not_the_operators_is_left(change, why):
    model = attention(**change)
    counts = fuse_for_cuda(model)
    assert not counts["MultiHeadAttention"] and not kinds(model)
    assert [place.why for place in left_unfused(model)] == ([why] if why else [])


class Block(nn.Module):
    """As in the autoencoder: a group norm of cells, torch's own attention, linear projections, a SiLU."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.GroupNorm(4, 16)
        self.projections = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, pictures):
        hidden = F.silu(self.conv(pictures))
        cells = self.norm(hidden.flatten(2)).transpose(1, 2)
        q, k, v = (project(cells).unflatten(-1, (2, 8)).transpose(1, 2) for project in self.projections)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.conv((mixed.transpose(1, 2).unflatten(2, hidden.shape[2:]) + hidden)[:, :3])


def test_the_exporters_own_attention_and_a_group_norm_of_cells():
    torch.manual_seed(0)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        Block().eval(), (torch.randn(2, 3, 4, 6),), dynamo=True, opset_version=20, verbose=False,
        dynamic_shapes=({0: batch},),
    )  # fmt: skip
    counts, model = fused(copied(program.model))
    assert counts == {"GroupNorm": 1, "MultiHeadAttention": 1, "QuickGelu": 1, "NhwcConv": 2}
    turned = Counter(tuple(node.attributes["perm"].value) for node in model.graph if node.op_type == "Transpose")
    # into the first convolution and out of the last, around the Slice; keys and values by heads
    assert turned == {(0, 2, 3, 1): 2, (0, 3, 1, 2): 2, (0, 2, 1, 3): 2}


def norm(*, channels=8, groups=2, scale=1.0, gate="n", outputs=""):
    return graph(
        f"""g (float[N,{channels},4,6] x) => (float[N,{channels},4,6] y{outputs}) {{
            r = Reshape(x, s)  i = InstanceNormalization<epsilon=0.01>(r, one, zero)  z = Shape(x)
            b = Reshape(i, z)  m = Mul(b, gamma)  n = Add(m, beta)  g = Sigmoid({gate})  y = Mul(n, g)
        }}""",
        s=np.array([0, groups, -1]), one=np.full(groups, scale, np.float32), zero=np.zeros(groups, np.float32),
        gamma=weights(channels, 1, 1, scale=1.0), beta=weights(channels, 1, 1, seed=1),
    )  # fmt: skip


def test_group_norm_takes_its_silu_along():
    counts, model = fused(norm())
    assert counts == {"GroupNorm": 1}
    (node,) = (node for node in model.graph if node.domain == DOMAIN)
    given = {name: value.value for name, value in node.attributes.items()}
    assert (given["groups"], given["activation"], given["channels_last"]) == (2, 1, 1)
    assert given["epsilon"] == pytest.approx(0.01)


@pytest.mark.parametrize(("change", "silu"), [({"gate": "x"}, 0), ({"outputs": ", float[N,8,4,6] n"}, 0)])
def test_another_gate_is_no_silu(change, silu):
    counts, model = fused(norm(**change))
    (node,) = (node for node in model.graph if node.op_type == "GroupNorm")
    assert node.attributes["activation"].value == silu and counts["GroupNorm"] == 1


@pytest.mark.parametrize(("change", "why"), [
    ({"channels": 6}, "3 channels in a group: the kernel takes even numbers up to 512"),
    ({"channels": 1028}, "514 channels in a group: the kernel takes even numbers up to 512"),
    ({"scale": 2.0}, "an instance normalisation with weights of its own"),
])  # fmt: skip
def test_norms_that_the_kernel_excludes_are_left(change, why):
    model = norm(**change)
    counts = fuse_for_cuda(model)
    assert counts["GroupNorm"] == 0 and counts["QuickGelu"] == 1  # the SiLU then has its own
    assert [place.why for place in left_unfused(model)] == [why] and check_fused(counts, model) == []


def gated(width=2560, approximate="none", second="h1", first="h0"):
    half = width // 2
    return graph(
        f"""g (float[N,3,4] x) => (float[N,3,{half}] y) {{
            m = MatMul(x, w)  b = Add(m, bias)  h0, h1 = Split<axis=2, num_outputs=2>(b)
            e = Gelu<approximate="{approximate}">({second})  y = Mul({first}, e)
        }}""",
        w=weights(4, width), bias=weights(width, seed=1),
    )  # fmt: skip


def test_bias_split_gelu_at_the_kernels_widths_and_bias_gelu_elsewhere():
    for width in (2560, 5120, 10240):
        assert fused(gated(width))[0] == {"BiasSplitGelu": 1}
    counts, model = fused(gated(1280))
    assert counts == {"BiasGelu": 1}
    assert [place.why for place in left_unfused(model)] == ["1280 channels: the kernel has 2560, 5120, 10240"]


@pytest.mark.parametrize("change", [{"approximate": "tanh"}, {"second": "h0", "first": "h1"}, {"first": "h1"}])
def test_another_gate_is_no_split_gelu(change):
    model = gated(**change)
    assert not fuse_for_cuda(model)["BiasSplitGelu"]


def test_bias_and_gelu_without_a_split():
    text = "g (float[N,3,4] x) => (float[N,3,8] y{0}) {{ m = MatMul(x, w)  b = Add(m, bias)  y = Gelu(b) }}"
    constants = {"w": weights(4, 8), "bias": weights(8)}
    assert fused(graph(text.format(""), **constants))[0] == {"BiasGelu": 1}
    model = graph(text.format(", float[N,3,8] b"), **constants)
    assert fuse_for_cuda(model)["BiasGelu"] == 0  # the sum is wanted


def skipped(outputs="", shape="N,3,8", bias="8", read="t"):
    return graph(
        f"""g (float[N,3,8] x, float[{shape}] r) => (float[N,3,8] y{outputs}) {{
            m = MatMul(x, w)  b = Add(m, bias)  t = Add(r, b)
            y = LayerNormalization<axis=-1, epsilon=0.001>({read}, gamma, beta)
        }}""",
        w=weights(8, 8), bias=weights(*map(int, bias.split(","))), gamma=weights(8, scale=1.0), beta=weights(8, seed=1),
    )  # fmt: skip


def test_a_sum_its_bias_and_its_norm_are_one():
    for outputs in ("", ", float[N,3,8] t"):
        counts, model = fused(skipped(outputs))
        assert counts == {"SkipLayerNormalization": 1}
        assert [node.op_type for node in model.graph] == ["MatMul", "SkipLayerNormalization"]
    counts, model = fused(skipped(", float[N,3,8] b"))  # the biased states are wanted: the bias stays outside
    assert counts == {"SkipLayerNormalization": 1} and "Add" in [node.op_type for node in model.graph]


@pytest.mark.parametrize("change", [{"shape": "1,1,8"}, {"read": "b"}])
def test_another_sum_is_left(change):
    model = skipped(**change)
    assert not fuse_for_cuda(model)["SkipLayerNormalization"] and left_unfused(model) == []


def test_a_layer_norm_in_an_island_is_left_in_float32():
    model = graph(
        """g (float16[N,3,8] x, float16[N,3,8] r) => (float[N,3,8] y) {
            t = Add(r, x)  f = Cast<to=1>(t)  y = LayerNormalization<axis=-1>(f, gamma, beta)
        }""",
        gamma=weights(8), beta=weights(8, seed=1),
    )  # fmt: skip
    assert not fuse_for_cuda(model)["SkipLayerNormalization"]
    assert [place.why for place in left_unfused(model)] == ["a float32 island: the kernel would add up in float16"]


def test_silu():
    assert fused(graph("g (float[N,3] x) => (float[N,3] y) { s = Sigmoid(x)  y = Mul(s, x) }"))[0] == {"QuickGelu": 1}
    other = graph("g (float[N,3] x, float[N,3] z) => (float[N,3] y) { s = Sigmoid(x)  y = Mul(s, z) }")
    assert fuse_for_cuda(other)["QuickGelu"] == 0 and left_unfused(other) == []


def island(size):
    width = 2 * size
    return graph(
        f"""g (float16[N,12,{width}] x) => (float16[N,12,{width}] y) {{
            qs = Reshape(x, s)  q = Transpose<perm=[0,2,1,3]>(qs)  k = Transpose<perm=[0,2,3,1]>(qs)
            qf = Cast<to=1>(q)  kf = Cast<to=1>(k)  a = MatMul(qf, kf)  p = Softmax<axis=-1>(a)  ph = Cast<to=10>(p)
            o = MatMul(ph, q)  ot = Transpose<perm=[0,2,1,3]>(o)  y = Reshape(ot, j)
        }}""",
        s=np.array([0, 0, 2, size]), j=np.array([0, 0, width]),
    )  # fmt: skip


def test_an_island_around_a_softmax_is_joined_where_the_kernel_keeps_scores_in_float32():
    counts, model = fused(island(8), 2e-3)
    assert counts == {"MultiHeadAttention": 1} and not any(node.op_type == "Cast" for node in model.graph)
    model = island(4)
    assert fuse_for_cuda(model)["MultiHeadAttention"] == 0
    why = "a float32 island, and heads of 4 have no kernel that keeps scores in float32"
    assert [place.why for place in left_unfused(model)] == [why]


# The check


PATTERNS = {
    "MultiHeadAttention": attention, "GroupNorm": norm, "BiasSplitGelu": gated, "BiasGelu": lambda: gated(1280),
    "SkipLayerNormalization": skipped,
    "QuickGelu": lambda: graph("g (float[N,3] x) => (float[N,3] y) { s = Sigmoid(x)  y = Mul(s, x) }"),
    "NhwcConv": lambda: graph(
        "g (float[N,2,5,5] x) => (float[N,3,3,3] y) { y = Conv<kernel_shape=[3,3]>(x, w) }", w=weights(3, 2, 3, 3)
    ),
}  # fmt: skip


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_fusion_that_finds_nothing_is_a_failure(operator):
    """The twin: the pattern is there, and the fusion was not run."""
    model = PATTERNS[operator]()
    (fusion,) = (fusion for fusion in FUSIONS if fusion.operator == operator)
    assert any(line.startswith(f"no {operator} ({fusion.what}): 1 could have been") for line in check_fused({}, model))
    counts = fuse_for_cuda(model)
    assert counts[operator] == 1 and check_fused(counts, model) == []


def test_a_wrong_count_is_a_failure():
    model = norm()
    counts = fuse_for_cuda(model)
    assert check_fused({**counts, "GroupNorm": 2}, model) == ["2 GroupNorm were fused, the graph has 1"]


def test_a_wrong_fused_node_is_seen():
    """The twin of the comparisons: a scale that the kernel would take for another."""
    model = attention()
    want = run(model, feeds(model))
    fuse_for_cuda(model)
    for node in model.graph:
        if node.domain == DOMAIN:
            node.attributes["scale"] = ir.AttrFloat32("scale", 8**-0.5)
    with pytest.raises(AssertionError, match="y"):
        assert_close(run(model, feeds(model)), want)


def test_every_operator_can_be_written_out():
    assert set(EXPANSIONS) == set(OPERATORS) == set(PATTERNS)
    with pytest.raises(KeyError, match="Nothing"):
        model = norm()
        model.graph.append(ir.node("Nothing", [model.graph.inputs[0]], domain=DOMAIN))
        expand_for_cpu(model)
