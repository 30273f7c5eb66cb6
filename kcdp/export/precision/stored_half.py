"""Weights stored in bfloat16 in a float32 graph, for runtimes that choose the arithmetic themselves.

OpenVINO computes a float32 graph in bfloat16 where it is told to, keeps sums and what lies between fused operators
wider than a strongly typed graph lets it, and rounds the weights first of all: so they may as well be stored rounded.
Measured with the preset edge on 1,000 faces: decisions 99.6 %, logits off by 0.8 %; strongly typed 99.1 % and 1.2 %.
"""

from __future__ import annotations

import ml_dtypes
import onnx_ir as ir

from kcdp.export.precision.layers import drop_unread, find_layers

BFLOAT16 = ir.DataType.BFLOAT16


def store_bfloat16(model: ir.Model) -> int:
    """Round the weights of all layers and put a Cast behind each, in place.

    Returns:
        how many tensors are stored so.
    """
    graph = model.graph
    made: dict[ir.Value, ir.Value] = {}
    for layer in find_layers(graph):
        if layer.weight not in made:
            made[layer.weight] = _stored(graph, layer.weight)
        layer.node.replace_input_with(1, made[layer.weight])
    drop_unread(graph)
    return len(made)


def _stored(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    tensor, name = weight.const_value, f"{weight.name}_bfloat16"
    assert tensor is not None

    def convert() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype(ml_dtypes.bfloat16), dtype=BFLOAT16, name=name)

    lazy = ir.LazyTensor(convert, dtype=BFLOAT16, shape=weight.shape, name=name)  # type: ignore[arg-type]
    value = ir.Value(name=name, shape=weight.shape, type=ir.TensorType(BFLOAT16), const_value=lazy)
    graph.register_initializer(value)
    cast = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{name}_cast")
    cast.outputs[0].name, cast.outputs[0].type = f"{name}_float32", ir.TensorType(ir.DataType.FLOAT)
    cast.outputs[0].shape = weight.shape
    graph.insert_before(graph[0], cast)
    return cast.outputs[0]
