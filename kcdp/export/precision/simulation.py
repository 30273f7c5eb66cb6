"""Graphs that hold each layer twice, as it is and quantised, computed in float32 as integer kernels would.

In one they stand side by side on the same input, in the other behind a switch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from kcdp.export.precision.calibration import Feed, Interval, add_outputs, insert_behind, open_session, rows_of
from kcdp.export.precision.layers import (
    CONVOLUTIONS,
    Layer,
    add_constant,
    find_layers,
    name_of,
)
from kcdp.export.precision.quantize import ActivationType, quantise_weight, rounding_domain

TINY = 1e-30
#: Inputs of the graph with switches: which layers are quantised, bool [L]; scales and zero points of activations, [V];
#: what is taken off each channel of each layer's answer, all in one row.
ON, SCALES, ZEROS, SHIFTS = "kcdp.on", "kcdp.scales", "kcdp.zeros", "kcdp.shifts"

#: Layer name -> float32 [channels], the mean error of its answer that is taken off again.
Shifts = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Comparison:
    """Layers beside their quantised twins.

    Attributes:
        noise: noise to signal of each answer, [L].
        work: multiplications of each layer for a picture, [L].
        shifts: mean error of each channel of an answer, before it is rounded itself.
    """

    noise: np.ndarray
    work: np.ndarray
    shifts: Shifts


def compare_layers(
    model: ir.Model,
    kind: ActivationType,
    limit: int,
    ranges: Mapping[str, Interval],
    shifts: Shifts,
    feeds: Sequence[Feed],
) -> Comparison:
    """Run each layer beside its quantised twin, both on what the layer gets in float32."""
    probe = model.clone()
    graph = probe.graph
    layers = find_layers(graph)
    columns: dict[str, list[ir.Value]] = {"kcdp.noise": [], "kcdp.signal": [], "kcdp.size": [], "kcdp.mean": []}
    flat = add_constant(graph, "kcdp.flat", np.array([-1], np.int64))
    inner = add_constant(graph, "kcdp.inner", np.array([0, 2], np.int64))
    outer = add_constant(graph, "kcdp.outer", np.array([0], np.int64))
    for i, layer in enumerate(layers):
        twin = Twin(layer, kind, probe, limit, f"kcdp.{i}")
        pairs = {name: [add_constant(graph, f"kcdp.{i}.round{j}.{k}", part)
                        for k, part in enumerate(kind.parameters(ranges[name]))]
                 for j, name in enumerate(layer.quantised_values)}  # fmt: skip
        shift = shifts.get(layer.name, np.zeros(layer.channels, np.float32))
        twin.build(pairs, add_constant(graph, f"kcdp.{i}.shift", shift.reshape(layer.channel_shape)))
        inside = layer.kind in CONVOLUTIONS
        shape = add_constant(
            graph, f"kcdp.{i}.shape", np.array([0, layer.channels, -1] if inside else [-1, layer.channels])
        )
        error = twin.apply("Sub", [twin.raw, layer.node.outputs[0]])
        noise = twin.apply("Sub", [twin.result, layer.answer])
        parts = (
            twin.apply("ReduceSumSquare", [noise], keepdims=0),
            twin.apply("ReduceSumSquare", [layer.answer], keepdims=0),
            twin.apply("Cast", [twin.apply("Size", [layer.answer])], to=ir.DataType.FLOAT),
            twin.apply("ReduceMean", [twin.apply("Reshape", [error, shape]), inner if inside else outer], keepdims=0),
        )
        for column, part in zip(columns.values(), parts, strict=True):
            column.append(twin.apply("Reshape", [part, flat]))
        insert_behind(graph, layer.answer, twin.nodes)
    add_outputs(graph, columns)
    return _gather(layers, feeds, list(columns), open_session(probe, optimise=False))


def _gather(layers: Sequence[Layer], feeds: Sequence[Feed], names: Sequence[str], session: Any) -> Comparison:
    rows = [session.run(names, feed) for feed in feeds]
    pictures = np.array([rows_of(feed) for feed in feeds])
    noise, signal, size = np.asarray([row[:3] for row in rows], np.float64).sum(axis=0)
    mean = np.average([row[3] for row in rows], axis=0, weights=pictures).astype(np.float32)
    ends = np.cumsum([layer.channels for layer in layers])
    shifts = {layer.name: part for layer, part in zip(layers, np.split(mean, ends[:-1]), strict=True)}
    each = np.array([layer.parameters / layer.channels for layer in layers])
    return Comparison(noise / np.maximum(signal, TINY), size / pictures.sum() * each, shifts)


def switched_session(model: ir.Model, kind: ActivationType, limit: int) -> tuple[Any, list[str]]:
    """A session in which every layer is an If, and the values that have a scale, in the order of the inputs."""
    switched = model.clone()
    graph = switched.graph
    layers = find_layers(graph)
    values = sorted({name for layer in layers for name in layer.quantised_values})
    ends = np.cumsum([0, *(layer.channels for layer in layers)])
    on, scales, zeros, shifts = (
        ir.Value(name=name, shape=ir.Shape([int(length)]), type=ir.TensorType(dtype))
        for name, length, dtype in (
            (ON, len(layers), ir.DataType.BOOL), (SCALES, len(values), ir.DataType.FLOAT),
            (ZEROS, len(values), kind.dtype), (SHIFTS, ends[-1], ir.DataType.FLOAT),
        )
    )  # fmt: skip
    graph.inputs.extend([on, scales, zeros, shifts])
    for i, layer in enumerate(layers):

        def number(name: str, value: Any, i: int = i) -> ir.Value:
            return add_constant(graph, f"kcdp.{i}.{name}", np.array(value, np.int64))

        twin = Twin(layer, kind, switched, limit, f"kcdp.{i}")
        place = {name: number(f"place{j}", values.index(name)) for j, name in enumerate(layer.quantised_values)}
        pairs = {name: [twin.apply("Gather", [scales, index]), twin.apply("Gather", [zeros, index])]
                 for name, index in place.items()}  # fmt: skip
        shift = twin.apply("Slice", [shifts, number("start", [ends[i]]), number("end", [ends[i + 1]])])
        twin.build(pairs, twin.apply("Reshape", [shift, number("channels", layer.channel_shape)]))
        _switch(graph, layer, twin, on, number("switch", i))
    return open_session(switched, optimise=False), values


def _switch(graph: ir.Graph, layer: Layer, twin: Twin, on: ir.Value, index: ir.Value) -> None:
    """An If in place of a layer."""
    node, output = layer.node, layer.node.outputs[0]
    plain = _copy(node, node.inputs, f"{twin.name}.plain")
    flag = ir.node("Gather", [on, index])
    flag.outputs[0].name = f"{twin.name}.on"
    choice = ir.node(
        "If", [flag.outputs[0]],
        {"then_branch": ir.Graph([], [twin.result], nodes=twin.nodes, name=f"{twin.name}.then"),
         "else_branch": ir.Graph([], [plain.outputs[0]], nodes=[plain], name=f"{twin.name}.else")},
        name=f"{twin.name}.if",
    )  # fmt: skip
    graph.insert_before(node, [flag, choice])
    chosen = choice.outputs[0]
    name, chosen.type, chosen.shape = output.name, output.type, output.shape
    output.replace_all_uses_with(chosen, replace_graph_outputs=True)
    graph.remove(node)
    chosen.name = name


class Twin:
    """The nodes of a layer with rounded input, weights and answer; they are not part of a graph yet.

    Attributes:
        raw: the answer before the Relu and before it is rounded.
        result: the answer, where ``Layer.answer`` is.
    """

    raw: ir.Value
    result: ir.Value

    def __init__(self, layer: Layer, kind: ActivationType, model: ir.Model, limit: int, name: str) -> None:
        self.layer, self.kind, self.name = layer, kind, name
        self.nodes: list[ir.Node] = []
        self.domain = rounding_domain(kind, model)
        assert layer.weight.const_value is not None
        integers, scale = quantise_weight(layer.weight.const_value.numpy(), layer.axis, limit)
        self.weight = [add_constant(model.graph, f"{name}.weight.{part}", array)
                       for part, array in (("integers", integers), ("scale", scale))]  # fmt: skip

    def apply(self, kind: str, inputs: Sequence[ir.Value | None], domain: str = "", **attributes: Any) -> ir.Value:
        """The output of a new node."""
        node = ir.node(kind, inputs, attributes, domain=domain, name=f"{self.name}.node{len(self.nodes)}")
        node.outputs[0].name = node.name
        self.nodes.append(node)
        return node.outputs[0]

    def build(self, parameters: Mapping[str, Sequence[ir.Value]], shift: ir.Value) -> None:
        """Write the nodes.

        Args:
            parameters: scale and zero point by the names of ``Layer.quantised_values``.
            shift: what is taken off the answer, in ``Layer.channel_shape``.
        """
        layer = self.layer
        weight = self.apply("DequantizeLinear", self.weight, axis=layer.axis)
        source = self._round(layer.source, parameters[name_of(layer.source)])
        copy = _copy(layer.node, [source, weight, *layer.node.inputs[2:]], f"{self.name}.layer")
        self.nodes.append(copy)
        self.raw = self.result = self.apply("Sub", [copy.outputs[0], shift])
        if layer.answer is not layer.node.outputs[0]:
            self.result = self.apply("Relu", [self.result])
        if self.kind.answers and layer.kind in CONVOLUTIONS:
            self.result = self._round(self.result, parameters[name_of(layer.answer)])

    def _round(self, value: ir.Value, parameters: Sequence[ir.Value]) -> ir.Value:
        integers = self.apply("QuantizeLinear", [value, *parameters], self.domain)
        return self.apply("DequantizeLinear", [integers, *parameters], self.domain)


def _copy(node: ir.Node, inputs: Sequence[ir.Value | None], name: str) -> ir.Node:
    copy = ir.Node(node.domain, node.op_type, inputs, node.attributes, name=name)
    copy.outputs[0].name, copy.outputs[0].type = name, node.outputs[0].type
    return copy
