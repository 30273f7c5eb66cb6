"""What the values of a graph hold on real pictures: the ground on which precision is decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tqdm import tqdm

from kcdp.export.precision.calibration import Feed, add_outputs, insert_behind, open_session
from kcdp.export.precision.layers import add_constant, name_of

#: Operators that take mean and deviation of their first input.
NORMS = ("InstanceNormalization", "LayerNormalization", "GroupNormalization")


@dataclass(frozen=True)
class Range:
    """Of one value, over all pictures.

    Attributes:
        low, high: smallest and largest number.
        mean: of all numbers.
        rms: root of the mean of their squares.
        size: how many numbers there were in one run; to be compared with other values only.
        finite: no number was NaN or infinite.
        offset: of an input of a normalisation: the largest ratio of a group's mean to its deviation; else None.
    """

    low: float
    high: float
    mean: float = 0.0
    rms: float = 0.0
    size: int = 1
    finite: bool = True
    offset: float | None = None

    @property
    def absmax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


def measure_ranges(model: ir.Model | Path | str, feeds: Sequence[Feed], *, progress: bool = False) -> dict[str, Range]:
    """Run a float32 graph and measure each of its float values, those that go in included.

    Numbers are reduced inside the graph, right where they are made, so that one run takes no more memory than without.

    Args:
        model: is not changed.
        feeds: batches of pictures, and of knowledge where the graph takes it; at least one.
    """
    if not feeds:
        raise ValueError("no pictures to measure on")
    probe = ir.load(model) if isinstance(model, Path | str) else model.clone()
    graph = probe.graph
    made = [value for node in graph for value in node.outputs]
    values = [value for value in (*graph.inputs, *made) if value.dtype == ir.DataType.FLOAT]
    names = [name_of(value) for value in values]
    normed = _Probes(graph).add(values)
    session = open_session(probe)
    rows = []
    for feed in tqdm(feeds, desc="ranges", disable=not progress, leave=False):
        rows.append(np.asarray(session.run(list(COLUMNS), feed), np.float64))  # [6, V]
    low, high, mean, square, size, offset = np.stack(rows, axis=1)  # each [feeds, V]
    weight = size / size.sum(axis=0)
    finite = np.isfinite(low) & np.isfinite(high) & ~np.isnan(mean)
    return {
        name: Range(
            float(low[:, i].min()), float(high[:, i].max()), float((weight * mean)[:, i].sum()),
            float(np.sqrt((weight * square)[:, i].sum())), int(size[:, i].max()), bool(finite[:, i].all()),
            float(offset[:, i].max()) if name in normed else None,
        )
        for i, name in enumerate(names)
    }  # fmt: skip


COLUMNS = ("kcdp.low", "kcdp.high", "kcdp.mean", "kcdp.square", "kcdp.size", "kcdp.offset")


class _Probes:
    """Nodes that reduce values to one number each."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.nodes: list[ir.Node] = []
        self.flat = self.integers("flat", [-1])
        self.last = self.integers("last", [-1])
        self.tiny = add_constant(graph, "kcdp.tiny", np.array(1e-12, np.float32))
        self.nothing = add_constant(graph, "kcdp.nothing", np.zeros(1, np.float32))

    def integers(self, name: str, numbers: list[int]) -> ir.Value:
        return add_constant(self.graph, f"kcdp.{name}", np.array(numbers, np.int64))

    def add(self, values: Sequence[ir.Value]) -> set[str]:
        """Outputs ``COLUMNS``, float32 [V] each; returns the names of inputs of normalisations."""
        norms = {node.inputs[0]: node for node in self.graph if node.op_type in NORMS}
        columns: dict[str, list[ir.Value]] = {name: [] for name in COLUMNS}
        for value in values:
            self.nodes = []
            numbers = self.apply("Reshape", value, self.flat)
            size = self.apply("Cast", self.apply("Size", numbers), to=ir.DataType.FLOAT)
            parts = [self.apply(kind, numbers, keepdims=0) for kind in ("ReduceMin", "ReduceMax", "ReduceMean")]
            parts.append(self.apply("Div", self.apply("ReduceSumSquare", numbers, keepdims=0), size))
            parts = [self.apply("Reshape", part, self.flat) for part in (*parts, size)]
            parts.append(self.offset(value, norms[value]) if value in norms else self.nothing)
            for column, part in zip(columns.values(), parts, strict=True):
                column.append(part)
            insert_behind(self.graph, value, self.nodes)
        add_outputs(self.graph, columns)
        return {name_of(value) for value in values if value in norms}

    def offset(self, value: ir.Value, node: ir.Node) -> ir.Value:
        """Largest |mean| over deviation of the groups that a normalisation sees."""
        numbers = value
        if node.op_type != "LayerNormalization":
            groups = node.attributes["num_groups"].value if "num_groups" in node.attributes else 0
            numbers = self.apply("Reshape", value, self.integers(f"groups.{name_of(node)}", [0, groups, -1]))
        mean = self.apply("ReduceMean", numbers, self.last, keepdims=1)
        centred = self.apply("Sub", numbers, mean)
        variance = self.apply("ReduceMean", self.apply("Mul", centred, centred), self.last, keepdims=1)
        deviation = self.apply("Sqrt", self.apply("Add", variance, self.tiny))
        ratio = self.apply("Div", self.apply("Abs", mean), deviation)
        return self.apply("Reshape", self.apply("ReduceMax", ratio, keepdims=0), self.flat)

    def apply(self, kind: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        self.nodes.append(ir.node(kind, inputs, attributes))
        return self.nodes[-1].outputs[0]


def range_of(ranges: Mapping[str, Range], value: ir.Value | None) -> Range | None:
    """The range of what a node reads; None for constants and what is no float."""
    return None if value is None else ranges.get(str(value.name))
