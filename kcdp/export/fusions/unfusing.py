"""Fused operators written out in standard ones, as their documentation defines them: to run a graph made for CUDA on a
processor, and to check the fusions without a GPU.

Source: ``docs/ContribOperators.md`` of ONNX Runtime. Attention and group norms are computed in float32, as the CUDA
kernels do, whatever their type.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from kcdp.export.fusions.group_norm import TO_FIRST, TO_LAST
from kcdp.export.fusions.parts import DOMAIN, FLOAT, Writer, attribute, known, replace
from kcdp.export.precision.layers import name_of

Values = list[ir.Value | None]


def expand_for_cpu(model: ir.Model, operators: Collection[str] | None = None) -> int:
    """Write fused nodes out in standard operators (operator set 20 and above), in place; how many.

    Args:
        operators: those to write out; None: all of ``EXPANSIONS``.

    Raises:
        KeyError: an operator of ONNX Runtime's that no expansion is known for.
    """
    wanted = EXPANSIONS.keys() if operators is None else operators
    count = 0
    for node in [node for node in model.graph if node.domain == DOMAIN]:
        if operators is not None and node.op_type not in wanted:
            continue
        expand = EXPANSIONS[node.op_type]
        outputs = [value for value in node.outputs if value.uses() or value.is_graph_output()]
        made = expand(_Expander(model, node), node)
        for value in outputs:
            new = made[node.outputs.index(value)]
            assert new is not None, (node.op_type, value.name)
            replace(value, new)
        model.graph.remove(node, safe=True)
        count += 1
    if not any(node.domain == DOMAIN for node in model.graph):
        model.opset_imports.pop(DOMAIN, None)
    return count


class _Expander:
    """Writes standard nodes in front of a fused one."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self.writer, self.base, self.number = Writer(model, node), name_of(node.outputs[0]), 0

    def name(self, kind: str) -> str:
        """A new name."""
        self.number += 1
        return f"{self.base}_{kind.lower()}_{self.number}"

    def __call__(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """A node; what it computes has the type of its first input and an unknown shape."""
        assert inputs[0] is not None and inputs[0].dtype is not None
        dtype = ir.DataType(attributes["to"]) if kind == "Cast" else inputs[0].dtype
        dtype = ir.DataType.INT64 if kind == "Shape" else dtype
        return self.writer.node(kind, inputs, None, dtype, name=self.name(kind), outputs=outputs, **attributes)

    def integers(self, *numbers: int) -> ir.Value:
        """A constant."""
        return self.writer.integers(numbers, self.name("integers"))

    def number_like(self, number: float, value: ir.Value) -> ir.Value:
        """A constant of the type of ``value``."""
        assert value.dtype is not None
        return self.writer.constant(np.asarray(number, dtype=value.dtype.numpy()), self.name("number"))

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """In another type."""
        return value if value.dtype == dtype else self("Cast", value, to=int(dtype))


def _present(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None
    return value


def _dtype(node: ir.Node) -> ir.DataType:
    dtype = node.outputs[0].dtype
    assert dtype is not None
    return dtype


def _attention(write: _Expander, node: ir.Node) -> Values:
    """softmax(scale * Q K') V for each head."""
    heads = int(node.attributes["num_heads"].value)
    query, keys, values = (write.cast(_present(node, index), FLOAT) for index in range(3))

    def split(value: ir.Value, source: ir.Value) -> ir.Value:
        if len(known(source)) == 4:
            return value
        parted = write("Reshape", value, write.integers(0, 0, heads, -1))
        return write("Transpose", parted, perm=[0, 2, 1, 3])

    query, keys, values = (
        split(value, _present(node, index)) for index, value in enumerate((query, keys, values))
    )  # fmt: skip
    scores = write("MatMul", query, write("Transpose", keys, perm=[0, 1, 3, 2]))
    scores = write("Mul", scores, write.number_like(float(node.attributes["scale"].value), scores))
    mixed = write("MatMul", write("Softmax", scores, axis=-1), values)
    joined = write("Reshape", write("Transpose", mixed, perm=[0, 2, 1, 3]), write.integers(0, 0, -1))
    return [write.cast(joined, _dtype(node))]


def _group_norm(write: _Expander, node: ir.Node) -> Values:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta over [N, H, W, C], and x * sigmoid(x) of it."""
    source = write.cast(_present(node, 0), FLOAT)
    groups, epsilon = int(node.attributes["groups"].value), float(attribute(node, "epsilon", 1e-5))
    size = write("Shape", source)
    grouped = write("Reshape", source, write.integers(0, -1, groups, known(_present(node, 1))[0] // groups))  # type: ignore[operator]
    axes = write.integers(1, 3)
    centred = write("Sub", grouped, write("ReduceMean", grouped, axes, keepdims=1))
    variance = write("ReduceMean", write("Mul", centred, centred), axes, keepdims=1)
    deviation = write("Sqrt", write("Add", variance, write.number_like(epsilon, variance)))
    normed = write("Reshape", write("Div", centred, deviation), size)
    answer = write("Add", write("Mul", normed, _present(node, 1)), _present(node, 2))
    if node.attributes["activation"].value:
        answer = write("Mul", answer, write("Sigmoid", answer))
    return [write.cast(answer, _dtype(node))]


def _bias_split_gelu(write: _Expander, node: ir.Node) -> Values:
    """The first half of x + bias times the GELU of the second."""
    total = write("Add", _present(node, 0), _present(node, 1))
    states = write("Split", total, outputs=2, axis=-1, num_outputs=2)
    producer = states.producer()
    assert producer is not None
    gate = producer.outputs[1]
    gate.name, gate.type = write.name("gate"), states.type
    return [write("Mul", states, write("Gelu", gate))]


def _bias_gelu(write: _Expander, node: ir.Node) -> Values:
    return [write("Gelu", write("Add", _present(node, 0), _present(node, 1)))]


def _quick_gelu(write: _Expander, node: ir.Node) -> Values:
    """x * sigmoid(alpha * x)."""
    source, alpha = _present(node, 0), float(attribute(node, "alpha", 1.702))
    return [write("Mul", source, write("Sigmoid", write("Mul", source, write.number_like(alpha, source))))]


def _skip_layer_norm(write: _Expander, node: ir.Node) -> Values:
    """The layer norm of input + skip + bias, and that sum."""
    total = write("Add", _present(node, 0), _present(node, 1))
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        total = write("Add", total, node.inputs[4])
    epsilon = float(attribute(node, "epsilon", 1e-12))
    normed = write("LayerNormalization", total, _present(node, 2), node.inputs[3], axis=-1, epsilon=epsilon)
    return [normed, None, None, total]


def _channels_last_convolution(write: _Expander, node: ir.Node) -> Values:
    attributes = {name: value.value for name, value in node.attributes.items()}
    turned = write("Transpose", _present(node, 0), perm=list(TO_FIRST))
    return [write("Transpose", write("Conv", turned, *node.inputs[1:], **attributes), perm=list(TO_LAST))]


EXPANSIONS: Mapping[str, Callable[[_Expander, ir.Node], Values]] = {
    "MultiHeadAttention": _attention,
    "GroupNorm": _group_norm,
    "BiasSplitGelu": _bias_split_gelu,
    "BiasGelu": _bias_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
    "QuickGelu": _quick_gelu,
    "NhwcConv": _channels_last_convolution,
}
