"""8-bit weights alone: the file is a quarter of float32, the arithmetic stays in float.

DequantizeLinear stands in front of each layer. A layer whose weights are many times larger for some inputs than for
others loses the smaller ones, which pictures alone show: ``kcdp.export.precision.sensitivity``. It saves space on disk
and on the way to a device; whether it saves memory or time there is up to the runtime, and most unpack on loading.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import onnx_ir as ir

from kcdp.errors import KcdpError
from kcdp.export.precision.layers import (
    Layer,
    LayerRow,
    QuantReport,
    add_constant,
    check_names,
    drop_unread,
    find_layers,
    lengths,
    name_of,
    weight_bytes,
)
from kcdp.export.precision.quantize import FULL_RANGE, SMALLEST_SCALE, quantise_weight

#: Layers of fewer weights stay as they are.
LEAST_WEIGHTS = 1024
#: From this operator set on DequantizeLinear takes a scale for each block; and from this one a scale in half precision.
BLOCK_OPSET, HALF_OPSET = 21, 19
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def quantize_weights(
    model: ir.Model, *, block: int | None = None, skip: Mapping[str, str] | Collection[str] = frozenset()
) -> QuantReport:
    """Store the weights of a float32 or float16 graph in int8, in place.

    Args:
        block: so many weights of a MatMul or Gemm, along what is summed over, share a scale; None, and everywhere
            else: one scale for each output channel.
        skip: names of layers to leave as they are, with the reason where it is a mapping.

    Raises:
        KcdpError: no layer has such a name, or the graph's operator set has no blocks, or none in half precision.
    """
    opset = model.opset_imports.get("", 0)
    layers = find_layers(model.graph, FLOATS)
    check_names(skip, layers)
    needed = max(BLOCK_OPSET if block is not None else 0, HALF_OPSET if _any_half(layers) else 0)
    if opset < needed:
        raise KcdpError(f"8-bit weights of this kind in operator set {opset}", f"{needed} or newer")
    before, rows = weight_bytes(model.graph), []
    made: dict[tuple[ir.Value, int], ir.Value] = {}
    reasons = skip if isinstance(skip, Mapping) else dict.fromkeys(skip, "asked for")
    left = {**too_small(layers), **reasons}
    for layer in layers:
        why = left.get(layer.name, "")
        if not why:
            key = (layer.weight, layer.axis)
            if key not in made:
                made[key] = _unpacked(model.graph, layer, block)
            layer.node.replace_input_with(1, made[key])
        rows.append(LayerRow(layer.name, layer.kind, layer.parameters, not why, why))
    drop_unread(model.graph)
    return QuantReport("", tuple(rows), before, weight_bytes(model.graph))


def too_small(layers: Collection[Layer]) -> dict[str, str]:
    """Names of layers that are not worth it, and why."""
    why = f"fewer than {LEAST_WEIGHTS} weights"
    return {layer.name: why for layer in layers if layer.parameters < LEAST_WEIGHTS}


def _any_half(layers: Collection[Layer]) -> bool:
    return any(layer.weight.dtype == ir.DataType.FLOAT16 for layer in layers)


def _unpacked(graph: ir.Graph, layer: Layer, block: int | None) -> ir.Value:
    """Weights as the answer of a DequantizeLinear."""
    tensor, name = layer.weight.const_value, name_of(layer.weight)
    assert tensor is not None
    weight = tensor.numpy().astype(np.float32, copy=False)
    attributes: Mapping[str, int] = {"axis": layer.axis}
    if block is not None and weight.ndim == 2 and weight.shape[1 - layer.axis] % block == 0:
        integers, scale = quantise_blocks(weight, 1 - layer.axis, block)
        attributes = {"axis": 1 - layer.axis, "block_size": block}
    else:
        integers, scale = quantise_weight(weight, layer.axis)
    inputs = [add_constant(graph, f"{name}.integers", integers),
              add_constant(graph, f"{name}.scale", scale.astype(tensor.numpy().dtype))]  # fmt: skip
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}.unpacked")
    result = node.outputs[0]
    result.name, result.type, result.shape = node.name, layer.weight.type, ir.Shape(lengths(layer.weight))
    graph.insert_before(graph[0], node)
    return result


def quantise_blocks(weight: np.ndarray, axis: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 weights of two axes to int8 of the same shape and scales, one for each ``block`` along ``axis``."""
    blocks = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis] // block, block, -1)
    scale = np.maximum(np.abs(blocks).max(axis=1) / FULL_RANGE, SMALLEST_SCALE).astype(np.float32)
    integers = np.clip(np.rint(blocks / scale[:, None]), -FULL_RANGE, FULL_RANGE).astype(np.int8)
    integers = integers.reshape(weight.shape[axis], -1)
    return np.ascontiguousarray(np.moveaxis(integers, 0, axis)), np.ascontiguousarray(np.moveaxis(scale, 0, axis))
