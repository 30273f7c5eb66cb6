"""What the values of a graph hold on real pictures: the ground on which precision is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from tqdm import tqdm

from kcdp.export.precision.calibration import Feed, add_outputs, collect, insert_behind, open_session
from kcdp.export.precision.layers import add_constant, name_of

#: Operators that take mean and deviation of their first input.
NORMS = ("InstanceNormalization", "LayerNormalization", "GroupNormalization")


@dataclass(frozen=True)
class Range:
    """Of one value, over all pictures.

    Attributes:
        low, high: smallest and largest number.
        offset: of an input of a normalisation: the largest ratio of a group's mean to its deviation; else None.
    """

    low: float
    high: float
    offset: float | None = None

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


def measure_ranges(model: ir.Model, feeds: Sequence[Feed], *, progress: bool = False) -> dict[str, Range]:
    """Run a float32 graph and measure each of its float values; numbers are reduced inside the graph.

    Args:
        model: is not changed.
        feeds: batches of pictures, and of knowledge where the graph takes it.

    Raises:
        KcdpError: a value was not finite.
    """
    names = [name_of(value) for node in model.graph for value in node.outputs if value.dtype == ir.DataType.FLOAT]
    extremes = collect(model, names, feeds, samples=len(feeds), progress=progress).extremes
    offsets = _offsets(model, feeds, progress)
    return {name: Range(found.low, found.high, offsets.get(name)) for name, found in extremes.items()}


def _offsets(model: ir.Model, feeds: Sequence[Feed], progress: bool) -> Mapping[str, float]:
    """Largest |mean| over deviation of the groups that each normalisation sees, by the name of its input."""
    probe = model.clone()
    graph = probe.graph
    parts: list[ir.Value] = []
    inputs = {node.inputs[0]: node for node in graph if node.op_type in NORMS and node.inputs[0] is not None}
    if not inputs:
        return {}
    tiny = add_constant(graph, "kcdp.tiny", np.array(1e-12, np.float32))
    flat = add_constant(graph, "kcdp.row", np.array([-1], np.int64))
    axes = {name: add_constant(graph, f"kcdp.axes.{name}", np.array(value, np.int64))
            for name, value in (("last", [-1]), ("groups", [-1]))}  # fmt: skip
    for value, node in inputs.items():
        nodes: list[ir.Node] = []

        def apply(kind: str, given: list[ir.Value], into: list[ir.Node] = nodes, **attributes: Any) -> ir.Value:
            into.append(ir.node(kind, given, attributes))
            return into[-1].outputs[0]

        numbers, over = value, axes["last"]
        if node.op_type != "LayerNormalization":
            groups = node.attributes["num_groups"].value if "num_groups" in node.attributes else None
            shape = np.array([0, 0 if groups is None else groups, -1], np.int64)
            numbers = apply("Reshape", [value, add_constant(graph, f"kcdp.shape.{len(parts)}", shape)])
            over = axes["groups"]
        mean = apply("ReduceMean", [numbers, over], keepdims=1)
        centred = apply("Sub", [numbers, mean])
        variance = apply("ReduceMean", [apply("Mul", [centred, centred]), over], keepdims=1)
        deviation = apply("Sqrt", [apply("Add", [variance, tiny])])
        ratio = apply("Div", [apply("Abs", [mean]), deviation])
        parts.append(apply("Reshape", [apply("ReduceMax", [ratio], keepdims=0), flat]))
        insert_behind(graph, value, nodes)
    add_outputs(graph, {"kcdp.offsets": parts})
    session, largest = open_session(probe), np.zeros(len(parts))
    for feed in tqdm(feeds, desc="normalisations", disable=not progress, leave=False):
        largest = np.maximum(largest, session.run(["kcdp.offsets"], feed)[0])
    return {name_of(value): float(most) for value, most in zip(inputs, largest, strict=True)}
