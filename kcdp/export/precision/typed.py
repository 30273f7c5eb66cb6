"""Half precision that is really there: a strongly typed graph, with float32 islands where pictures ask for them.

Every node computes in one float type, and Casts stand where types meet, so that TensorRT 10 (strongly typed), 11 and
any other runtime compute what is written. Islands come from measured ranges. Runtimes accumulate products and
statistics in float32 themselves; what has to be avoided is a number that the type cannot hold, or holds too coarsely.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir

from kcdp.export.precision.layers import drop_unread, name_of
from kcdp.export.precision.ranges import NORMS, Range

FLOAT = ir.DataType.FLOAT


@dataclass(frozen=True)
class HalfType:
    """What a half type can hold.

    Attributes:
        name: in manifests.
        numpy: its numpy dtype.
        largest: magnitude that values may reach on the pictures measured: a quarter of what the type holds.
        step: spacing of its numbers between 1 and 2.
    """

    name: str
    numpy: Any
    largest: float
    step: float


TYPES: Mapping[ir.DataType, HalfType] = {
    ir.DataType.FLOAT16: HalfType("float16", np.float16, 65504 / 4, 2.0**-10),
    ir.DataType.BFLOAT16: HalfType("bfloat16", ml_dtypes.bfloat16, 3e38 / 4, 2.0**-7),
}
#: A group whose mean is so many steps' worth of deviations away from 0 loses its deviation to rounding.
OFFSET_STEPS = 32.0
#: Scores of an attention rounded by more than this move its probabilities by as many parts.
SCORE_ERROR = 0.05
#: Share of a layer's weights that may round to 0.
VANISHING = 0.01


@dataclass(frozen=True)
class Island:
    """A node that stays in float32.

    Attributes:
        measured: the number that decided; None where none did.
    """

    node: str
    kind: str
    why: str
    measured: float | None = None


@dataclass(frozen=True)
class HalfReport:
    """What became of a graph.

    Attributes:
        dtype: "float16" or "bfloat16".
        casts: Casts put in where types meet.
    """

    dtype: str
    islands: tuple[Island, ...]
    casts: int

    def precision_map(self) -> dict[str, str]:
        """The manifest's entry."""
        return {"default": self.dtype, **{island.node: "float32" for island in self.islands}}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"dtype": self.dtype, "casts": self.casts, "islands": [asdict(island) for island in self.islands]}


def to_half(model: ir.Model, dtype: ir.DataType, ranges: Mapping[str, Range]) -> HalfReport:
    """Turn a float32 graph into a strongly typed half one, in place. Its inputs and outputs keep their types.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        ranges: of every float value that a node makes; see ``measure_ranges``.

    Raises:
        KeyError: a value without a range.
    """
    half = TYPES[dtype]
    islands = find_islands(model, dtype, ranges)
    writer = _Writer(model, dtype, half, {island.node for island in islands})
    writer.rewrite()
    drop_unread(model.graph)
    return HalfReport(half.name, islands, writer.casts)


def find_islands(model: ir.Model, dtype: ir.DataType, ranges: Mapping[str, Range]) -> tuple[Island, ...]:
    """Nodes that have to stay in float32, each with the first reason that holds, in the graph's order."""
    half, found = TYPES[dtype], {}

    def add(node: ir.Node | None, why: str, measured: float | None = None) -> None:
        if node is not None and node not in found:
            found[node] = Island(name_of(node), node.op_type, why, measured)

    for node in model.graph:
        if not _computes(node):
            continue
        if not _has_half(node, dtype, model.opset_imports.get("", 0)):
            add(node, f"the operator has no {half.name} form in this operator set")
        for value in node.outputs:
            if value.dtype != FLOAT:
                continue
            most = ranges[name_of(value)].absmax
            if most > half.largest:
                add(node, f"values reach {most:.3g}, the type holds {4 * half.largest:.3g}", most)
                for use in value.uses():
                    if _computes(use.node):
                        add(use.node, f"reads values that reach {most:.3g}", most)
        if node.op_type in NORMS and node.inputs[0] is not None:
            _judge_norm(node, half, ranges.get(name_of(node.inputs[0])), add)
        if node.op_type == "Softmax" and node.inputs[0] is not None:
            most = ranges[name_of(node.inputs[0])].absmax
            if most * half.step / 2 > SCORE_ERROR:
                add(node.inputs[0].producer(), f"scores reach {most:.3g}", most)
                add(node, f"scores reach {most:.3g}", most)
        for read in node.inputs:
            if read is not None and read.is_initializer() and read.dtype == FLOAT:
                _judge_weights(node, read, half, add)
    return tuple(found[node] for node in model.graph if node in found)


Add = Callable[..., None]


def _judge_norm(node: ir.Node, half: HalfType, measured: Range | None, add: Add) -> None:
    if measured is None:  # of a graph input
        return
    if measured.absmax**2 > 4 * half.largest:
        add(node, f"squares reach {measured.absmax**2:.3g}", measured.absmax)
    elif measured.offset is not None and measured.offset * half.step * OFFSET_STEPS > 1:
        add(node, f"a mean is {measured.offset:.3g} deviations from 0", measured.offset)


def _judge_weights(node: ir.Node, value: ir.Value, half: HalfType, add: Add) -> None:
    assert value.const_value is not None
    weights = value.const_value.numpy()
    if not weights.size:
        return
    most = float(np.abs(weights).max())
    if most > 4 * half.largest:
        add(node, f"weights reach {most:.3g}", most)
    elif half.numpy is np.float16 and weights.size > 1:
        share = float(np.count_nonzero(np.abs(weights) < 2.0**-25) - np.count_nonzero(weights == 0)) / weights.size
        if share > VANISHING:
            add(node, f"{share:.1%} of the weights would round to 0", share)


def _computes(node: ir.Node) -> bool:
    """It makes floats, or reads them."""
    values = (*node.outputs, *(value for value in node.inputs if value is not None))
    return any(value.dtype == FLOAT for value in values)


@cache
def _schema(kind: str, domain: str, opset: int) -> Any:
    return onnx.defs.get_schema(kind, opset, domain)


def _input_types(node: ir.Node, index: int, opset: int) -> frozenset[str]:
    """What the operator takes as its ``index``-th input: "tensor(float)", ..."""
    schema = _schema(node.op_type, node.domain, opset)
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]
    return frozenset(formal.types)


def _takes(node: ir.Node, index: int, name: str, opset: int) -> bool:
    return f"tensor({name})" in _input_types(node, index, opset)


def _has_half(node: ir.Node, dtype: ir.DataType, opset: int) -> bool:
    """Whether the operator knows the type where its first float input or, without one, its output is."""
    name = TYPES[dtype].name
    schema = _schema(node.op_type, node.domain, opset)
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == FLOAT:
            return _takes(node, index, name, opset)
    return any(f"tensor({name})" in formal.types for formal in schema.outputs)


class _Writer:
    def __init__(self, model: ir.Model, dtype: ir.DataType, half: HalfType, islands: set[str]) -> None:
        self.graph, self.dtype, self.half, self.islands = model.graph, dtype, half, islands
        self.opset = model.opset_imports.get("", 0)
        self.casts = 0
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._narrow: dict[ir.Value, ir.Value] = {}

    def rewrite(self) -> None:
        """Types first, for all values; then every reader gets the type that it takes."""
        nodes = [node for node in self.graph if _computes(node)]
        types = {node: FLOAT if name_of(node) in self.islands else self.dtype for node in nodes}
        wanted = {
            (node, index): self._wanted(node, index, types[node])
            for node in nodes for index, value in enumerate(node.inputs)
            if value is not None and value.dtype == FLOAT
        }  # fmt: skip
        outputs = [value for value in self.graph.outputs if value.dtype == FLOAT]
        for node in nodes:
            self._make(node, types[node])
        for (node, index), dtype in wanted.items():
            value = node.inputs[index]
            assert value is not None
            if value.is_initializer():
                if dtype != FLOAT:
                    node.replace_input_with(index, self._narrowed(value))
            elif value.dtype != dtype:
                node.replace_input_with(index, self._casted(value, dtype))
        for value in outputs:
            if value.dtype != FLOAT:
                self._widen_output(value)

    def _wanted(self, node: ir.Node, index: int, dtype: ir.DataType) -> ir.DataType:
        """Some inputs are float32 by the operator's definition, whatever it computes in."""
        return dtype if dtype == FLOAT or _takes(node, index, self.half.name, self.opset) else FLOAT

    def _make(self, node: ir.Node, dtype: ir.DataType) -> None:
        if dtype == FLOAT:
            return
        if node.op_type == "Cast" and node.attributes["to"].value == int(FLOAT):
            node.attributes["to"] = ir.AttrInt64("to", int(dtype))
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == FLOAT:
                array = attribute.value.numpy().astype(self.half.numpy)
                node.attributes[name] = ir.AttrTensor(name, ir.tensor(array, dtype=dtype))
        for value in node.outputs:
            if value.dtype == FLOAT:
                value.dtype = dtype

    def _narrowed(self, value: ir.Value) -> ir.Value:
        """The same weights in the half type, converted when they are written."""
        if value not in self._narrow:
            tensor = value.const_value
            assert tensor is not None
            name, kind, dtype = f"{value.name}_{self.half.name}", self.half.numpy, self.dtype

            def convert() -> ir.TensorProtocol:
                return ir.tensor(tensor.numpy().astype(kind), dtype=dtype, name=name)

            lazy = ir.LazyTensor(convert, dtype=dtype, shape=value.shape, name=name)  # type: ignore[arg-type]
            made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=lazy)
            self.graph.register_initializer(made)
            self._narrow[value] = made
        return self._narrow[value]

    def _casted(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        key = (value, dtype)
        if key not in self._cast:
            node = self._new_cast(value, dtype, f"{value.name}_as_{'float32' if dtype == FLOAT else self.half.name}")
            producer = value.producer()
            if producer is None:
                self.graph.insert_before(self.graph[0], node)
            else:
                self.graph.insert_after(producer, node)
            self._cast[key] = node.outputs[0]
        return self._cast[key]

    def _widen_output(self, value: ir.Value) -> None:
        """A graph's output keeps its name and is float32; inside, the half goes by another name."""
        name = value.name
        value.name = f"{name}_{self.half.name}"
        node = self._new_cast(value, FLOAT, str(name))
        self.graph.append(node)
        position = list(self.graph.outputs).index(value)
        self.graph.outputs[position] = node.outputs[0]

    def _new_cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
        self.casts += 1
        node = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}_cast")
        made = node.outputs[0]
        made.name, made.type, made.shape = name, ir.TensorType(dtype), value.shape
        return node
