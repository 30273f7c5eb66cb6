"""8-bit integers: QuantizeLinear and DequantizeLinear around the layers that have weights.

The forms are those that ONNX Runtime, OpenVINO and TensorRT recognise and turn into integer kernels. The input of a
layer is quantised by one scale for the whole tensor; its weights are int8, symmetric, with a scale for each output
channel. For CPUs its bias is int32 in the product of both scales, and the answer of a convolution is quantised too:
ONNX Runtime fuses none without, and OpenVINO 2026.4 is wrong about a convolution without bias that has two readers.
Formulas: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
https://arxiv.org/abs/1712.05877, sections 2.1 and 2.4.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnx_ir as ir

from kcdp.errors import KcdpError, nearest
from kcdp.export.precision.layers import (
    CONVOLUTIONS,
    Layer,
    LayerRow,
    QuantReport,
    add_constant,
    check_names,
    drop_unread,
    find_layers,
    name_of,
    usual_bias,
    weight_bytes,
)


class Interval(Protocol):
    """Smallest and largest value of a tensor."""

    @property
    def low(self) -> float: ...

    @property
    def high(self) -> float: ...


@dataclass(frozen=True)
class ActivationType:
    """An integer type of activations.

    Attributes:
        low, high: ends of what is used of the type.
        symmetric: the zero point is 0 (TensorRT knows no other).
        answers: the answers of convolutions are rounded too.
        integer_bias: biases are int32; False leaves them in float32.
        rounds: False: activations stay as they are.
    """

    dtype: ir.DataType
    low: int
    high: int
    symmetric: bool = False
    answers: bool = True
    integer_bias: bool = True
    rounds: bool = True

    def rounded_in(self, layer: Layer) -> tuple[str, ...]:
        """Names of the values around a layer that need a range."""
        return layer.quantised_values if self.rounds else ()

    def parameters(self, interval: Interval) -> tuple[np.ndarray, np.ndarray]:
        """Scale (float32 []) and zero point (the type, []) for which the real 0 is exact and nothing is cut off.

        Raises:
            KcdpError: the interval is not finite.
        """
        low, high = min(interval.low, 0.0), max(interval.high, 0.0)
        if not np.isfinite([low, high]).all():
            raise KcdpError(f"a range of {low} to {high}", "finite numbers", "check the calibration pictures")
        if self.symmetric:
            low, high = -max(-low, high), max(-low, high)
        scale = max((high - low) / (self.high - self.low), SMALLEST_SCALE)
        zero = 0 if self.symmetric else int(np.clip(round(self.low - low / scale), self.low, self.high))
        return np.array(scale, np.float32), np.array(zero, self.dtype.numpy())


#: Activations by name. "uint8" is for CPUs: they multiply uint8 with int8, and ONNX Runtime fuses a convolution only
#: with a rounded answer and an int32 bias. "int8" is for TensorRT, which wants neither; on CPUs it saves no time.
#: "uint16" is for NPUs that have it; CPUs load it and compute in float32.
ACTIVATIONS: Mapping[str, ActivationType] = {
    "uint8": ActivationType(ir.DataType.UINT8, 0, 255),
    "int8": ActivationType(ir.DataType.INT8, -127, 127, symmetric=True, answers=False, integer_bias=False),
    "uint16": ActivationType(ir.DataType.UINT16, 0, 65535),
}
#: For 8-bit weights alone.
UNTOUCHED = ActivationType(ir.DataType.FLOAT, 0, 0, answers=False, integer_bias=False, rounds=False)
#: From this operator set on QuantizeLinear knows 16 bits; before, ONNX Runtime's operator of the same name does.
WIDE_OPSET = 21
WIDE_DOMAIN = "com.microsoft"
SMALLEST_SCALE = 1e-12
#: Largest weight after rounding. CPUs without VNNI add pairs of u8 x s8 products in 16 bits, which 63 cannot overflow.
FULL_RANGE, REDUCED_RANGE = 127, 63
#: Largest integer of a bias: int32 with room for the sum that it is added to.
BIAS_RANGE = 2**30


def quantize(
    model: ir.Model,
    ranges: Mapping[str, Interval],
    *,
    activations: str = "uint8",
    skip: Mapping[str, str] | Collection[str] = frozenset(),
    reduce_range: bool = False,
) -> QuantReport:
    """Quantise the layers of a float32 graph, in place.

    Args:
        ranges: value name -> what it holds on calibration pictures, for every name in ``Layer.quantised_values``.
        activations: a key of ``ACTIVATIONS``.
        skip: names of layers to leave in float32, with the reason where it is a mapping.
        reduce_range: weights of 7 bits, for CPUs without VNNI.

    Raises:
        KcdpError: no layer or activation type has such a name, or a range is missing or not finite.
    """
    if activations not in ACTIVATIONS:
        raise KcdpError(
            f"activations {activations!r}{nearest(activations, ACTIVATIONS)}", f"one of {', '.join(ACTIVATIONS)}"
        )
    layers = find_layers(model.graph)
    check_names(skip, layers)
    before = weight_bytes(model.graph)
    limit = REDUCED_RANGE if reduce_range else FULL_RANGE
    writer = _Writer(model, ACTIVATIONS[activations], ranges, limit)
    chosen = [layer for layer in layers if layer.name not in skip]
    for layer in chosen:
        writer.rewrite(layer)
    drop_unread(model.graph)
    reasons = skip if isinstance(skip, Mapping) else dict.fromkeys(skip, "asked for")
    rows = [LayerRow(layer.name, layer.kind, layer.parameters, layer.name not in skip, reasons.get(layer.name, ""))
            for layer in layers]  # fmt: skip
    return QuantReport(activations, tuple(rows), before, weight_bytes(model.graph))


def quantise_weight(weight: np.ndarray, axis: int, limit: int = FULL_RANGE) -> tuple[np.ndarray, np.ndarray]:
    """float32 weights to int8 of the same shape, -limit..limit, and their scales float32 [channels]: w = q * scale."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.maximum(np.abs(weight).max(axis=others) / limit, SMALLEST_SCALE).astype(np.float32)
    return round_weight(weight, scale, axis, limit), scale


def round_weight(weight: np.ndarray, scale: np.ndarray, axis: int, limit: int) -> np.ndarray:
    """Weights in steps of given scales, [channels], as int8."""
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    quotient = weight / scale.reshape(shape)
    return np.clip(np.rint(quotient, out=quotient), -limit, limit, out=quotient).astype(np.int8)


def rounding_domain(activation: ActivationType, model: ir.Model) -> str:
    """Where QuantizeLinear of a type is found for a model, whose imports get it."""
    if activation.dtype != ir.DataType.UINT16 or model.opset_imports.get("", 0) >= WIDE_OPSET:
        return ""
    model.opset_imports.setdefault(WIDE_DOMAIN, 1)
    return WIDE_DOMAIN


class _Writer:
    """Puts QuantizeLinear and DequantizeLinear into a graph."""

    def __init__(self, model: ir.Model, activation: ActivationType, ranges: Mapping[str, Interval], limit: int) -> None:
        self.graph, self.activation, self.ranges, self.limit = model.graph, activation, ranges, limit
        self.pairs: dict[ir.Value, ir.Value] = {}
        self.scales: dict[ir.Value, np.ndarray] = {}
        self.domain = rounding_domain(activation, model)

    def rewrite(self, layer: Layer) -> None:
        """Integers into one layer and, where the form wants it, out of it."""
        source = layer.node.inputs[0]
        assert source is not None
        dequantised = source if source in self.scales else self.pair(source)
        layer.node.replace_input_with(0, dequantised)
        self.weights(layer, self.scales[dequantised])
        if self.activation.answers and layer.kind in CONVOLUTIONS:
            readers = [use for use in layer.answer.uses() if use.node.op_type != "QuantizeLinear"]
            result = self.pair(layer.answer)
            for node, index in readers:
                node.replace_input_with(index, result)

    def pair(self, value: ir.Value) -> ir.Value:
        """A value after rounding, made once."""
        if value in self.pairs:
            return self.pairs[value]
        name = name_of(value)
        if name not in self.ranges:
            raise KcdpError(f"no range of {name!r}", "a range of every value that is quantised", "calibrate this graph")
        scale, zero = self.activation.parameters(self.ranges[name])
        inputs = (self.constant(f"{name}.rounding.scale", scale), self.constant(f"{name}.rounding.zero", zero))
        quantised = _node("QuantizeLinear", [value, *inputs], f"{name}.quantised", self.activation.dtype, self.domain)
        result = _node("DequantizeLinear", [quantised.outputs[0], *inputs], f"{name}.rounded", domain=self.domain)
        for node in (quantised, result):
            node.outputs[0].shape = value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], [quantised, result])
        else:
            self.graph.insert_after(producer, [quantised, result])
        self.pairs[value], self.scales[result.outputs[0]] = result.outputs[0], scale
        return result.outputs[0]

    def weights(self, layer: Layer, source_scale: np.ndarray) -> None:
        """int8 weights and, where the layer has one of a number for each channel, an int32 bias."""
        assert layer.weight.const_value is not None
        weight = layer.weight.const_value.numpy()
        integers, scale = quantise_weight(weight, layer.axis, self.limit)
        if self.activation.integer_bias and layer.bias is not None and usual_bias(layer):
            assert layer.bias.const_value is not None
            bias = layer.bias.const_value.numpy()
            needed = np.abs(bias) / (source_scale * np.float32(BIAS_RANGE))
            if (needed > scale).any():  # a channel of next to no weights
                scale = np.maximum(scale, needed)
                integers = round_weight(weight, scale, layer.axis, self.limit)
            self.put(layer, 2, np.rint(bias / (scale * source_scale)).astype(np.int32), scale * source_scale, 0)
        self.put(layer, 1, integers, scale, layer.axis)

    def put(self, layer: Layer, index: int, integers: np.ndarray, scale: np.ndarray, axis: int) -> None:
        """Constant integers in place of an input."""
        name = f"{layer.name}.{('weight', 'bias')[index - 1]}"
        zero = np.zeros(scale.shape, integers.dtype)
        inputs = [
            self.constant(f"{name}.{part}", array)
            for part, array in (("integers", integers), ("scale", scale.astype(np.float32)), ("zero", zero))
        ]
        node = _node("DequantizeLinear", inputs, f"{name}.rounded", attributes={"axis": axis})
        node.outputs[0].shape = ir.Shape(integers.shape)
        self.graph.insert_before(layer.node, node)
        layer.node.replace_input_with(index, node.outputs[0])

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        return add_constant(self.graph, name, array)


def _node(
    kind: str,
    inputs: list[ir.Value],
    name: str,
    dtype: ir.DataType = ir.DataType.FLOAT,
    domain: str = "",
    attributes: Mapping[str, int] | None = None,
) -> ir.Node:
    node = ir.node(kind, inputs, attributes, domain=domain, name=name)
    node.outputs[0].name, node.outputs[0].type = name, ir.TensorType(dtype)
    return node
