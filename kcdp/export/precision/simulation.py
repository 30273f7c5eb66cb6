"""Graphs that hold each layer twice, as it is and quantised, computed in float32 as integer kernels would.

In one they stand side by side on the same input, in the other behind a switch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
#: Inputs of the graph with switches: which layers are quantised, bool [L]; scales and zero points of activations, [V].
ON, SCALES, ZEROS = "kcdp.on", "kcdp.scales", "kcdp.zeros"


def compare_layers(
    model: ir.Model, kind: ActivationType, limit: int, ranges: Mapping[str, Interval], feeds: Sequence[Feed]
) -> tuple[np.ndarray, np.ndarray]:
    """Run each layer beside its quantised twin, both on what the layer gets in float32.

    Returns:
        noise to signal of each answer, [L], and the multiplications of each layer for a picture, [L].
    """
    probe = model.clone()
    graph = probe.graph
    layers = find_layers(graph)
    columns: dict[str, list[ir.Value]] = {"kcdp.noise": [], "kcdp.signal": [], "kcdp.size": []}
    flat = add_constant(graph, "kcdp.flat", np.array([-1], np.int64))
    for i, layer in enumerate(layers):
        twin = Twin(layer, kind, probe, limit, f"kcdp.{i}")
        twin.build({name: [add_constant(graph, f"kcdp.{i}.round{j}.{k}", part)
                           for k, part in enumerate(kind.parameters(ranges[name]))]
                    for j, name in enumerate(kind.rounded_in(layer))})  # fmt: skip
        parts = (
            twin.apply("ReduceSumSquare", [twin.apply("Sub", [twin.result, layer.answer])], keepdims=0),
            twin.apply("ReduceSumSquare", [layer.answer], keepdims=0),
            twin.apply("Cast", [twin.apply("Size", [layer.answer])], to=ir.DataType.FLOAT),
        )
        for column, part in zip(columns.values(), parts, strict=True):
            column.append(twin.apply("Reshape", [part, flat]))
        insert_behind(graph, layer.answer, twin.nodes)
    add_outputs(graph, columns)
    session = open_session(probe, optimise=False)
    rows = np.asarray([session.run(list(columns), feed) for feed in feeds], np.float64)
    noise, signal, size = rows.sum(axis=0)
    each = np.array([layer.parameters / layer.channels for layer in layers])
    return noise / np.maximum(signal, TINY), size / sum(map(rows_of, feeds)) * each


def switched_session(model: ir.Model, kind: ActivationType, limit: int) -> tuple[Any, list[str]]:
    """A session in which every layer is an If, and the values that have a scale, in the order of the inputs.

    Where activations are not rounded there is no such value, and the graph has no inputs for them.
    """
    switched = model.clone()
    graph = switched.graph
    layers = find_layers(graph)
    values = sorted({name for layer in layers for name in kind.rounded_in(layer)})
    on, scales, zeros = (
        ir.Value(name=name, shape=ir.Shape([length]), type=ir.TensorType(dtype))
        for name, length, dtype in (
            (ON, len(layers), ir.DataType.BOOL), (SCALES, len(values), ir.DataType.FLOAT),
            (ZEROS, len(values), kind.dtype),
        )
    )  # fmt: skip
    graph.inputs.extend([on, scales, zeros] if values else [on])
    for i, layer in enumerate(layers):

        def number(name: str, value: Any, i: int = i) -> ir.Value:
            return add_constant(graph, f"kcdp.{i}.{name}", np.array(value, np.int64))

        twin = Twin(layer, kind, switched, limit, f"kcdp.{i}")
        place = {name: number(f"place{j}", values.index(name)) for j, name in enumerate(kind.rounded_in(layer))}
        pairs = {name: [twin.apply("Gather", [scales, index]), twin.apply("Gather", [zeros, index])]
                 for name, index in place.items()}  # fmt: skip
        twin.build(pairs)
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
        result: the answer, where ``Layer.answer`` is.
    """

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

    def build(self, parameters: Mapping[str, Sequence[ir.Value]]) -> None:
        """Write the nodes.

        Args:
            parameters: scale and zero point by the names of ``Layer.quantised_values``.
        """
        layer = self.layer
        weight = self.apply("DequantizeLinear", self.weight, axis=layer.axis)
        source = self._round(layer.source, parameters[name_of(layer.source)]) if self.kind.rounds else layer.source
        copy = _copy(layer.node, [source, weight, *layer.node.inputs[2:]], f"{self.name}.layer")
        self.nodes.append(copy)
        self.result = copy.outputs[0]
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
