"""The layers of a graph that have weights, and what is told of them after quantisation."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from kcdp.errors import KcdpError, nearest

#: Layer kind -> axis of the output channels in its weights; a Gemm with transB has them first.
OUTPUT_AXES: Mapping[str, int] = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1, "Gemm": 1}
#: Layers whose answer has to be quantised too, to become integer kernels.
CONVOLUTIONS = ("Conv", "ConvTranspose")


@dataclass(frozen=True)
class Layer:
    """A node with constant weights as its second input.

    Attributes:
        name: the node's name.
        kind: Conv, ConvTranspose, MatMul or Gemm.
        axis: axis of the output channels in ``weight``.
        answer: where its answer is quantised: its output, after a Relu that is its only reader.
    """

    node: ir.Node
    name: str
    kind: str
    axis: int
    source: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    answer: ir.Value

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return int(np.prod(lengths(self.weight)))

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return lengths(self.weight)[self.axis]

    @property
    def quantised_values(self) -> tuple[str, ...]:
        """Names of the values that need a range."""
        names = (name_of(self.source),)
        return (*names, name_of(self.answer)) if self.kind in CONVOLUTIONS else names


def find_layers(graph: ir.Graph, dtypes: Collection[ir.DataType] = (ir.DataType.FLOAT,)) -> list[Layer]:
    """The layers that can be quantised, in the graph's order. A product of two activations has no weights."""
    return [layer for node in graph if (layer := _layer(node, dtypes)) is not None]


def _layer(node: ir.Node, dtypes: Collection[ir.DataType]) -> Layer | None:
    if node.domain or node.op_type not in OUTPUT_AXES:
        return None
    source, weight = node.inputs[:2]
    if source is None or source.is_initializer() or weight is None or not weight.is_initializer():
        return None
    if weight.const_value is None or weight.dtype not in dtypes:
        return None
    if node.op_type == "MatMul" and len(lengths(weight)) != 2:  # a product for each item of a stack
        return None
    if node.op_type == "ConvTranspose" and attribute_of(node, "group", 1) != 1:  # its axis 1 is of one group only
        return None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    axis = OUTPUT_AXES[node.op_type]
    if node.op_type == "Gemm" and attribute_of(node, "transB", 0):
        axis = 0
    return Layer(node, name_of(node), node.op_type, axis, source, weight, bias, _answer(node.outputs[0]))


def _answer(output: ir.Value) -> ir.Value:
    """Rounding cuts off below the zero point, so that a Relu in front of it costs nothing."""
    readers = [use.node for use in output.uses()]
    if len(readers) == 1 and readers[0].op_type == "Relu" and not output.is_graph_output():
        return readers[0].outputs[0]
    return output


@dataclass(frozen=True)
class LayerRow:
    """What became of a layer.

    Attributes:
        snr_db: signal to noise of its answer when it alone is quantised, in dB; None: not measured.
        effect_db: signal to noise of the logits when it alone is quantised, in dB; None: not measured.
        why: why it was left out; empty when it was quantised.
    """

    name: str
    kind: str
    parameters: int
    quantised: bool
    why: str = ""
    snr_db: float | None = None
    effect_db: float | None = None


@dataclass(frozen=True)
class QuantReport:
    """What quantisation did to a graph.

    Attributes:
        activations: type of activations; "" where only weights are quantised.
        bytes_before, bytes_after: of all weights.
    """

    activations: str
    rows: tuple[LayerRow, ...]
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = field(default=())

    @property
    def quantised(self) -> int:
        """Number of layers."""
        return sum(row.quantised for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; layers that were quantised and not measured are only counted."""
        rows = [vars(row) for row in self.rows if not row.quantised or row.snr_db is not None]
        return {
            "activations": self.activations, "layers": len(self.rows), "quantised": self.quantised,
            "bytes_before": self.bytes_before, "bytes_after": self.bytes_after, "notes": list(self.notes),
            "rows": rows,
        }  # fmt: skip

    def explained(self, reasons: Mapping[str, str]) -> QuantReport:
        """With more said, by layer name, of why layers were left out."""
        rows = [replace(row, why=f"{row.why} ({reasons[row.name]})") if row.why and row.name in reasons else row
                for row in self.rows]  # fmt: skip
        return replace(self, rows=tuple(rows))

    def summary(self) -> str:
        """One line."""
        return (f"{self.quantised} of {len(self.rows)} layers in 8 bits, weights {self.bytes_before / 1e6:.1f} -> "
                f"{self.bytes_after / 1e6:.1f} MB")  # fmt: skip

    def table(self) -> str:
        """Markdown: one row for each layer, worst first."""
        head = "| layer | kind | weights | SNR dB | effect dB | kept |\n|---|---|---:|---:|---:|---|"
        order = sorted(self.rows, key=lambda row: (row.quantised, np.inf if row.snr_db is None else row.snr_db))
        lines = [
            f"| `{row.name}` | {row.kind} | {row.parameters} | {_decibels(row.snr_db)} | {_decibels(row.effect_db)} | "
            f"{'int8' if row.quantised else f'float: {row.why}'} |"
            for row in order
        ]
        return "\n".join([head, *lines])


def check_names(names: Collection[str], layers: Collection[Layer]) -> None:
    """Raises KcdpError for a name that no layer has."""
    known = [layer.name for layer in layers]
    for name in sorted(set(names) - set(known)):
        raise KcdpError(f"no layer is called {name!r}{nearest(name, known)}", "the name of a layer with weights")


def add_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def drop_unread(graph: ir.Graph) -> None:
    """Remove initializers that no node reads."""
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def weight_values(graph: ir.Graph) -> Iterator[ir.Value]:
    """Initializers that hold a tensor."""
    return (value for value in graph.initializers.values() if value.const_value is not None)


def weight_bytes(graph: ir.Graph) -> int:
    """Bytes of all initializers."""
    return sum(value.const_value.nbytes for value in weight_values(graph) if value.const_value is not None)


def usual_bias(layer: Layer) -> bool:
    """Its third input is absent or a constant, one number for each output channel, added as it is."""
    if {attribute_of(layer.node, name, 1.0) for name in ("alpha", "beta")} != {1.0}:
        return False
    return layer.bias is None or (layer.bias.is_initializer() and lengths(layer.bias) == (layer.channels,))


def attribute_of(node: ir.Node, name: str, default: float) -> float:
    """A number among a node's attributes."""
    return float(node.attributes[name].value) if name in node.attributes else default


def lengths(value: ir.Value) -> tuple[int, ...]:
    """The shape of a constant."""
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def name_of(thing: ir.Value | ir.Node) -> str:
    """Exported graphs name everything."""
    assert thing.name, thing
    return thing.name


def _decibels(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
