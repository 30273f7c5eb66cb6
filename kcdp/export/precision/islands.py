"""Which nodes of a graph have to stay in float32 when the rest becomes half precision, and by which measured number.

Runtimes add up products and the statistics of normalisations in float32 themselves. What has to be avoided is a number
that the type cannot hold, or holds too coarsely for what is done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from kcdp.errors import KcdpError
from kcdp.export.precision.layers import name_of
from kcdp.export.precision.operators import FLOAT, computes, has_type, made_floats
from kcdp.export.precision.ranges import NORMS, Range, range_of
from kcdp.export.running.rounding import MOVES


@dataclass(frozen=True)
class HalfType:
    """What a half type can hold.

    Attributes:
        name: in manifests.
        numpy: its numpy dtype.
        largest: largest number.
        smallest: smallest positive one with all its digits.
        step: spacing of its numbers between 1 and 2.
    """

    name: str
    numpy: Any
    largest: float
    smallest: float
    step: float

    @property
    def error(self) -> float:
        """Largest relative error of a rounded number."""
        return self.step / 2


TYPES: Mapping[ir.DataType, HalfType] = {
    ir.DataType.FLOAT16: HalfType("float16", np.float16, 65504.0, 2.0**-14, 2.0**-10),
    ir.DataType.BFLOAT16: HalfType("bfloat16", ml_dtypes.bfloat16, 3.3895e38, 2.0**-126, 2.0**-7),
}
#: Values on the pictures measured may reach one part in so many of the largest number: others have larger ones.
HEAD_ROOM = 8
#: Share of the deviation by which a number that is normalised, or the difference of two, may be off.
DEVIATION_ERROR = 1 / 64
#: Scores of an attention rounded by more than this move its probabilities by as many parts.
SCORE_ERROR = 0.05
#: Share of their length by which a node's weights may be off, beyond ordinary rounding.
WEIGHT_ERROR = 0.01
#: Operators that add up many numbers, and those of them that divide afterwards; others that square inside.
SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceL2", "ReduceSumSquare", "GlobalAveragePool")
MEANS = ("ReduceMean", "GlobalAveragePool")
SQUARES = (*NORMS, "ReduceL2", "ReduceSumSquare")
#: The end of a graph, whose errors nothing averages out, is float32 in a coarse type, as it is as good as free: as far
#: back from the answer as each product has at most this share of all multiplications ...
END_WORK = 1e-3
#: ... and each value at most this share of the numbers of the largest one. Measured with a trained edge on 500 faces:
#: it takes a quarter off the logits' error in bfloat16 (1.20 % to 0.90 %); in float16 it would be 0.02 %.
END_SIZE = 1 / 16
#: A type that cannot tell so many levels apart leaves the scaling of pixels, which moves them away from 0 and back, in
#: float32. With the same edge on 1,000 faces: 0.92 % to 0.64 % in bfloat16, nothing in float16.
PIXEL_LEVELS = 255
PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm")


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


def find_islands(model: ir.Model, dtype: ir.DataType, ranges: Mapping[str, Range]) -> tuple[Island, ...]:
    """Nodes that have to stay in float32, each with the first reason that holds, in the graph's order.

    Raises:
        KcdpError: a value was not finite.
        KeyError: a value without a range.
    """
    finder = _Finder(model, TYPES[dtype], ranges)
    for node in finder.nodes:
        for rule in (_definition, _weights, _values, _squares, _sums, _normalisation, _scores, _differences):
            rule(finder, node)
    if finder.half.step * PIXEL_LEVELS > 1:
        _pixels(finder)
        _end(finder)  # float16 is fine enough there, and engines are to have no product in float32 without need
    _between(finder)
    return tuple(finder.found[node] for node in finder.nodes if node in finder.found)


@dataclass
class _Finder:
    model: ir.Model
    half: HalfType
    ranges: Mapping[str, Range]
    found: dict[ir.Node, Island] = field(default_factory=dict)
    kept: dict[ir.Value, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = [node for node in self.model.graph if computes(node)]
        for node in self.nodes:
            for value in made_floats(node):
                if not self.ranges[name_of(value)].finite:
                    raise KcdpError(
                        f"{value.name!r} is not finite in float32 on the pictures measured",
                        fix="check the model and the pictures",
                    )  # fmt: skip

    def add(self, node: ir.Node | None, why: str, measured: float | None = None) -> None:
        if node is not None and node not in self.found:
            self.found[node] = Island(name_of(node), node.op_type, why, measured)

    def range(self, value: ir.Value | None) -> Range | None:
        return range_of(self.ranges, value)

    def keep(self, value: ir.Value | None, error: float, why: str, measured: float) -> bool:
        """Make in float32 what has to be known to a relative error, where the half type rounds more coarsely.

        What a value is only a rearrangement, a multiple or a sum of has to be known as well; a product ends it.
        """
        if value is None or self.half.error <= error:
            return False
        if self.kept.get(value, np.inf) <= error:
            return True
        self.kept[value] = error
        maker, found = value.producer(), self.range(value)
        if maker is None or found is None:
            return True
        self.add(maker, why, measured)
        for read in maker.inputs:
            other = self.range(read)
            if other is None:
                continue
            if maker.op_type in (*MOVES, "Mul", "Div"):
                self.keep(read, error, why, measured)
            elif maker.op_type in ("Add", "Sub"):
                self.keep(read, error * found.rms / max(other.rms, 1e-30), why, measured)
        return True


Rule = Callable[[_Finder, ir.Node], None]


def _definition(finder: _Finder, node: ir.Node) -> None:
    if not has_type(node, finder.half.name, finder.model.opset_imports):
        finder.add(node, f"the operator has no {finder.half.name} form in this operator set")


def _values(finder: _Finder, node: ir.Node) -> None:
    """Numbers that the type cannot hold: who makes them, and who reads them."""
    half = finder.half
    for value in made_floats(node):
        most = finder.ranges[name_of(value)].absmax
        if most > half.largest / HEAD_ROOM:
            what = f"values that reach {most:.3g} (the type holds {half.largest:.3g})"
        elif 0 < most < half.smallest:
            what = f"values below {most:.3g} (the type has all digits from {half.smallest:.3g})"
        else:
            continue
        finder.add(node, f"makes {what}", most)
        for use in value.uses():
            if computes(use.node):
                finder.add(use.node, f"reads {what}", most)


def _weights(finder: _Finder, node: ir.Node) -> None:
    """Constants that are infinite in the type, or have lost digits or vanished."""
    for value in node.inputs:
        if value is None or not value.is_initializer() or value.dtype != FLOAT or value.const_value is None:
            continue
        weights = value.const_value.numpy()
        if not weights.size:
            continue
        most = float(np.abs(weights).max())
        if finder.half.largest < most < np.inf:
            finder.add(node, f"a weight is {most:.3g} (the type holds {finder.half.largest:.3g})", most)
            continue
        error = _rounding_error(weights, finder.half)
        if error > finder.half.error + WEIGHT_ERROR:
            finder.add(node, f"the type leaves {error:.1%} of its weights' length behind", error)


def _rounding_error(weights: np.ndarray, half: HalfType) -> float:
    """Length of what rounding takes away, over the length of the weights; infinite ones are left out."""
    given = weights[np.isfinite(weights)] if not np.isfinite(weights).all() else weights.reshape(-1)
    most = np.abs(given).max(initial=0.0)
    if most == 0:
        return 0.0
    lost = given.astype(half.numpy).astype(np.float32) - given
    return float(np.linalg.norm(lost / most) / np.linalg.norm(given / most))


def _squares(finder: _Finder, node: ir.Node) -> None:
    read = finder.range(node.inputs[0]) if node.op_type in SQUARES else None
    if read is not None and read.absmax**2 > finder.half.largest:
        finder.add(node, f"squares inside reach {read.absmax**2:.3g}", read.absmax**2)


def _sums(finder: _Finder, node: ir.Node) -> None:
    """A sum of equal numbers, one by one in the type, stands still when it is 2 / step times as large as they are."""
    read = finder.range(node.inputs[0]) if node.op_type in SUMS else None
    if read is None:
        return
    made = finder.ranges[name_of(node.outputs[0])]
    count = read.size / max(made.size, 1)
    most = made.absmax * count if node.op_type in MEANS else 0.0
    if count > 2 / finder.half.step:
        finder.add(node, f"adds {count:.0f} numbers (the type stands still at {2 / finder.half.step:.0f})", count)
    elif most > finder.half.largest / HEAD_ROOM:
        finder.add(node, f"a sum inside reaches {most:.3g}", most)


def _normalisation(finder: _Finder, node: ir.Node) -> None:
    read = finder.range(node.inputs[0]) if node.op_type in NORMS else None
    if read is not None and read.offset:
        why = f"a mean that is taken off is {read.offset:.3g} deviations from 0"
        if finder.keep(node.inputs[0], DEVIATION_ERROR / read.offset, why, read.offset):
            finder.add(node, why, read.offset)


def _scores(finder: _Finder, node: ir.Node) -> None:
    read = finder.range(node.inputs[0]) if node.op_type in ("Softmax", "LogSoftmax") else None
    if read is not None and read.absmax:
        why = f"scores reach {read.absmax:.3g}"
        if finder.keep(node.inputs[0], SCORE_ERROR / read.absmax, why, read.absmax):
            finder.add(node, why, read.absmax)


def _differences(finder: _Finder, node: ir.Node) -> None:
    """A sum or difference in which most cancels: its parts have to be known so much better."""
    if node.op_type not in ("Add", "Sub"):
        return
    made = finder.ranges[name_of(node.outputs[0])]
    for read in node.inputs:
        part = finder.range(read)
        if part is None or not made.rms:
            continue
        ratio = part.rms / made.rms
        why = f"a difference {ratio:.3g} times smaller than what it is taken of"
        if ratio > 1 and finder.keep(read, DEVIATION_ERROR / ratio, why, ratio):
            finder.add(node, why, ratio)


def _end(finder: _Finder) -> None:
    """The end of the graph in front of its first output, as far as it costs next to nothing; see ``END_WORK``."""
    largest = max((found.size for found in finder.ranges.values()), default=1)
    total = sum(_multiplications(finder, node) for node in finder.nodes)
    if not total:
        return
    inside: set[ir.Node] = set()
    needed = set(_ancestors(finder.model.graph.outputs[0]))
    for node in reversed(list(finder.model.graph)):
        if node not in needed:
            continue
        readers = {use.node for value in node.outputs for use in value.uses() if use.node in needed}
        size = max((finder.ranges[name_of(value)].size for value in made_floats(node)), default=0)
        share = _multiplications(finder, node) / total
        if readers <= inside and share <= END_WORK and size <= largest * END_SIZE:
            inside.add(node)
            if computes(node):
                finder.add(node, f"at the end of the graph, with {share:.3%} of the multiplications", share)


def _multiplications(finder: _Finder, node: ir.Node) -> float:
    """In one run; of products alone."""
    made, read = finder.range(node.outputs[0]), node.inputs[0] if node.inputs else None
    if node.op_type not in PRODUCTS or made is None or read is None:
        return 0.0
    if node.op_type in ("MatMul", "Gemm"):
        return float(made.size * _length(read, -1))
    weight, given = node.inputs[1], finder.range(read)
    assert weight is not None
    each = float(np.prod([_length(weight, i) for i in range(1, len(weight.shape or ()))]))
    return each * (given.size if node.op_type == "ConvTranspose" and given is not None else made.size)


def _length(value: ir.Value, axis: int) -> int:
    length = value.shape[axis] if value.shape is not None and len(value.shape) else 1
    return length if isinstance(length, int) else 1


def _ancestors(value: ir.Value) -> Iterator[ir.Node]:
    seen: set[ir.Node] = set()
    waiting = [value.producer()]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        yield node
        waiting += [read.producer() for read in node.inputs if read is not None]


def _pixels(finder: _Finder) -> None:
    """What integers that go into the graph become before a product reads them."""
    inside = {value for value in finder.model.graph.inputs if value.dtype is not None and value.dtype.is_integer()}
    for node in finder.nodes:
        reads = {value for value in node.inputs if value is not None and not value.is_initializer()}
        if reads and reads <= inside and node.op_type not in PRODUCTS:
            inside.update(node.outputs)
            finder.add(node, "scales pixels")


def _between(finder: _Finder) -> None:
    """A node without weights between islands alone would round only to be widened again."""
    for node in finder.nodes:
        reads = [value for value in node.inputs if value is not None and value.dtype == FLOAT]
        readers = [use.node for value in made_floats(node) for use in value.uses()]
        makers = [value.producer() for value in reads]
        if node.op_type not in PRODUCTS and makers and readers and {*makers, *readers} <= finder.found.keys():
            finder.add(node, "between islands")
