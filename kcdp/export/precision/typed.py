"""Half precision that is really there: a strongly typed graph, with float32 islands where pictures ask for them.

Every node computes in one float type, and Casts stand where types meet, so that TensorRT 10 (strongly typed), 11 and
any other runtime compute what is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from kcdp.export.precision.islands import TYPES, HalfType, Island, find_islands
from kcdp.export.precision.layers import drop_unread, name_of
from kcdp.export.precision.operators import FLOAT, computes, made_floats, takes_type
from kcdp.export.precision.ranges import Range

#: Attributes that hold the numbers of a constant.
CONSTANTS = {"Constant": ("value", "value_float", "value_floats"), "ConstantOfShape": ("value",)}


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

    Weights are converted when they are written, one after the other.

    Args:
        dtype: FLOAT16 or BFLOAT16.
        ranges: of every float value; see ``measure_ranges``.

    Raises:
        KcdpError: a value was not finite.
        ValueError: a value whose type is not stored, or a node that holds a graph of its own.
    """
    _check(model.graph)
    half = TYPES[dtype]
    islands = find_islands(model, dtype, ranges)
    casts = retype(model, dtype, {island.node for island in islands})
    return HalfReport(half.name, islands, casts)


def retype(model: ir.Model, dtype: ir.DataType, islands: Collection[str]) -> int:
    """The rewriting alone: every node but the named ones computes in the type.

    Returns:
        how many Casts were put in.
    """
    writer = _Writer(model, dtype, TYPES[dtype], frozenset(islands))
    writer.rewrite()
    drop_unread(model.graph)
    return writer.casts


def _check(graph: ir.Graph) -> None:
    for node in graph:
        for value in node.outputs:
            if value.name and value.dtype is None:
                raise ValueError(f"the type of {value.name} is not stored")
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise ValueError(f"the node {node.name} ({node.op_type}) holds a graph of its own")


class _Writer:
    def __init__(self, model: ir.Model, dtype: ir.DataType, half: HalfType, islands: frozenset[str]) -> None:
        self.graph, self.dtype, self.half, self.islands = model.graph, dtype, half, islands
        self.opsets = model.opset_imports
        self.casts = 0
        self._cast: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self._narrow: dict[ir.Value, ir.Value] = {}

    def rewrite(self) -> None:
        """Types first, for all values; then every reader gets the type that it takes."""
        nodes = [node for node in self.graph if computes(node)]
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
        return dtype if dtype == FLOAT or takes_type(node, index, self.half.name, self.opsets) else FLOAT

    def _make(self, node: ir.Node, dtype: ir.DataType) -> None:
        made = made_floats(node)
        if dtype == FLOAT or not made:
            return
        for name in ("to", "dtype"):  # of Cast; of EyeLike and of those that draw numbers
            if name in node.attributes and node.attributes[name].value == int(FLOAT):
                node.attributes[name] = ir.AttrInt64(name, int(dtype))
        for name in CONSTANTS.get(node.op_type, ()):
            if name in node.attributes:
                number = node.attributes.pop(name).value
                array = number.numpy() if isinstance(number, ir.TensorProtocol) else np.asarray(number, np.float32)
                tensor = ir.tensor(array.astype(self.half.numpy), dtype=dtype)
                node.attributes["value"] = ir.AttrTensor("value", tensor)
        if node.op_type == "ConstantOfShape" and "value" not in node.attributes:
            node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.zeros(1, self.half.numpy), dtype=dtype))
        for value in made:
            value.type = ir.TensorType(dtype)  # a new one: clones of a graph share theirs

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
