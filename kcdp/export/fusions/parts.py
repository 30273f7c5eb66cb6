"""What matchers and rewriters of graphs share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir

from kcdp.export.precision.layers import add_constant

#: Domain of ONNX Runtime's own operators.
DOMAIN = "com.microsoft"
FLOAT, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
#: Constants above this many numbers are not read while a graph is searched.
SMALL = 1 << 16


@dataclass(frozen=True)
class Remaining:
    """A place that looks like a fusion's and is not fused.

    Attributes:
        fusion: the fusion's name.
        node: the name of its main node.
        why: what keeps it from being fused; "": nothing, it should have been.
    """

    fusion: str
    node: str
    why: str = ""


Match = TypeVar("Match")


def fuse_matches(
    model: ir.Model, kind: str, match: Callable[[ir.Node], Match | str | None], write: Callable[[ir.Model, Match], None]
) -> int:
    """Rewrite what matches around the nodes of one kind, in place; how many.

    Args:
        match: of a node: the match; why it is excluded; or None where it is something else.
        write: rewrites a match.
    """
    count = 0
    for node in [node for node in model.graph if node.op_type == kind]:
        found = match(node)
        if found is not None and not isinstance(found, str):
            write(model, found)
            count += 1
    return count


def known(value: ir.Value) -> list[int | None]:
    """Its shape, None for lengths that are not fixed; [] where nothing is known."""
    if value.shape is None:
        return []
    return [length if isinstance(length, int) else None for length in value.shape]


def constant(value: ir.Value | None) -> np.ndarray | None:
    """A small constant's array."""
    if value is None or value.const_value is None or value.const_value.size > SMALL:
        return None
    return value.const_value.numpy()


def number(value: ir.Value | None) -> float | None:
    """A constant of one number."""
    array = constant(value)
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node that makes it, if it is of this kind and of the standard operators."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind and not node.domain else None


def uncast(value: ir.Value) -> ir.Value:
    """Before the Casts between float types that made it, as far as they lost nothing."""
    while (node := made_by(value, "Cast")) is not None:
        before = node.inputs[0]
        assert before is not None
        if before.dtype != value.dtype and (before.dtype, value.dtype) != (HALF, FLOAT):
            break
        value = before
    return value


def reader(value: ir.Value, kind: str) -> ir.Node | None:
    """Its only reader, if it is of this kind. A graph's output has one reader more."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != kind or uses[0].node.domain:
        return None
    return uses[0].node


def past_cast(value: ir.Value) -> ir.Value:
    """After a Cast between float types that is its only reader; else itself."""
    node = reader(value, "Cast")
    if node is None or node.outputs[0].dtype not in (FLOAT, HALF):
        return value
    return node.outputs[0]


def perm(node: ir.Node | None) -> tuple[int, ...]:
    """Of a Transpose."""
    return () if node is None else tuple(node.attributes["perm"].value)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value."""
    return node.attributes[name].value if name in node.attributes else default


def other_input(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Of a node with two inputs, the one that is not ``value``."""
    first, second = node.inputs
    return second if first is value else first


class Writer:
    """Puts nodes in front of a place of a graph.

    Args:
        place: the node that they stand in front of.
    """

    def __init__(self, model: ir.Model, place: ir.Node) -> None:
        self.model, self.graph, self.place = model, model.graph, place

    def node(
        self, kind: str, inputs: Sequence[ir.Value | None], shape: Sequence[Any] | ir.Shape | None, dtype: ir.DataType,
        *, name: str, domain: str = "", outputs: int = 1, **attributes: Any,
    ) -> ir.Value:  # fmt: skip
        """A new node; its first output has the name, the shape and the type given."""
        made = ir.node(kind, inputs, attributes or None, domain=domain, num_outputs=outputs, name=f"node_{name}")
        self.graph.insert_before(self.place, made)
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        value = made.outputs[0]
        value.name, value.type = name, ir.TensorType(dtype)
        value.shape = None if shape is None else ir.Shape(list(shape))
        return value

    def transpose(self, value: ir.Value, order: Sequence[int], name: str) -> ir.Value:
        """Its axes in another order."""
        shape = None if value.shape is None else [value.shape[axis] for axis in order]
        assert value.dtype is not None
        return self.node("Transpose", [value], shape, value.dtype, name=name, perm=list(order))

    def reshape(self, value: ir.Value, lengths: Sequence[int], shape: Sequence[Any], name: str) -> ir.Value:
        """``lengths`` as Reshape takes them: 0 keeps, -1 is inferred."""
        target = self.integers(lengths, f"{name}_shape")
        assert value.dtype is not None
        return self.node("Reshape", [value, target], shape, value.dtype, name=name)

    def cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Value:
        """In another type; itself if it is of that type."""
        if value.dtype == dtype:
            return value
        return self.node("Cast", [value], value.shape, dtype, name=name, to=int(dtype))

    def integers(self, numbers: Sequence[int], name: str) -> ir.Value:
        """A constant."""
        return add_constant(self.graph, name, np.asarray(numbers, dtype=np.int64))

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """A constant."""
        return add_constant(self.graph, name, array)


def replace(old: ir.Value, new: ir.Value) -> None:
    """Every reader of ``old`` reads ``new``, which takes over its name and, where it knows none, its shape."""
    assert old.name is not None
    name, old.name = old.name, f"{old.name}_unfused"
    new.name = name
    if new.shape is None:
        new.shape = old.shape
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def drop_unused(graph: ir.Graph) -> None:
    """Remove nodes whose answers nobody reads, and constants without readers."""
    for node in reversed(list(graph)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
