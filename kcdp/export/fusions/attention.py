"""Attention whose probabilities nobody wants: ``com.microsoft.MultiHeadAttention``.

Why not ONNX's own ``Attention``: it is there from operator set 23 on, and ONNX Runtime has had no CUDA kernel for it up
to 1.24 (issue 28025 of its repository: such nodes run on the processor, silently). MultiHeadAttention has one in every
release this project takes.

Its CUDA kernel chooses among several: flash attention (float16, compute capability 8.0 and above, heads of a multiple
of 8 up to 256), memory-efficient attention (heads of a multiple of 8), else plain products. One of them, TensorRT's
fused cross-attention (float16, at most 128 keys, keys and values given as [N, T, width]), takes no scale: it divides by
the root of the head's size whatever the attribute ``scale`` says (``getMHCAParams`` in ``fmha_cross_attention.h``).
Scales are folded into weights here, so at most 128 keys are given as [N, heads, T, d], which that kernel does not read.

Scores and probabilities are float32 inside the first two kernels; an island of float32 around a softmax is joined into
a float16 node only where those take it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from kcdp.export.fusions.parts import (
    DOMAIN,
    FLOAT,
    HALF,
    Remaining,
    Writer,
    attribute,
    constant,
    fuse_matches,
    known,
    made_by,
    number,
    other_input,
    past_cast,
    perm,
    reader,
    replace,
    uncast,
)
from kcdp.export.precision.layers import name_of

NAME = "attention"
OPERATOR = "MultiHeadAttention"
HEADS_FIRST = (0, 2, 1, 3)
KEYS_LAST = (0, 2, 3, 1)
#: Up to so many keys, a kernel without scale might be taken for keys given as [N, T, width].
SCALELESS_KEYS = 128


@dataclass(frozen=True)
class _Attention:
    """A match.

    Attributes:
        query: [N, S, heads * d].
        keys, values: [N, heads, T, d], or a constant [1, heads, T, d]; keys of a constant may be [1, heads, d, T].
        flat_keys, flat_values: the same as [N, T, heads * d], where the graph has them.
        keys_last: ``keys`` is [.., d, T].
        answer: what is replaced, [N, S, heads * d].
    """

    query: ir.Value
    keys: ir.Value
    values: ir.Value
    flat_keys: ir.Value | None
    flat_values: ir.Value | None
    keys_last: bool
    heads: int
    size: int
    count: int
    scale: float
    answer: ir.Value


def fuse(model: ir.Model) -> int:
    """Fuse what matches, in place; how many."""
    return fuse_matches(model, "Softmax", _match, _write)


def remaining(graph: ir.Graph) -> list[Remaining]:
    """Softmax of a product over its last axis, followed by a product, that is left."""
    found = []
    for node in graph:
        if node.op_type != "Softmax" or _scores(node) is None or attribute(node, "axis", -1) not in (-1, 3):
            continue
        value = past_cast(node.outputs[0])
        uses = [use.node.op_type for use in value.uses()]
        if "MatMul" not in uses:
            continue
        match = _match(node)
        if len(uses) > 1 or value.is_graph_output():
            found.append(Remaining(NAME, name_of(node), "its probabilities are wanted"))
        else:
            found.append(Remaining(NAME, name_of(node), match if isinstance(match, str) else ""))
    return found


def _scores(softmax: ir.Node) -> ir.Node | None:
    assert softmax.inputs[0] is not None
    return made_by(uncast(softmax.inputs[0]), "MatMul")


def _match(softmax: ir.Node) -> _Attention | str | None:
    """The match; why a kernel excludes it; or None where it is something else."""
    scores = _scores(softmax)
    mixed = reader(past_cast(softmax.outputs[0]), "MatMul")
    if scores is None or mixed is None or mixed.inputs[0] is not past_cast(softmax.outputs[0]):
        return None
    if attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    if reader(past_cast(scores.outputs[0]), "Softmax") is None:
        return "its scores are wanted"
    turned = reader(past_cast(mixed.outputs[0]), "Transpose")
    joined = None if perm(turned) != HEADS_FIRST or turned is None else reader(turned.outputs[0], "Reshape")
    left, right, values = scores.inputs[0], scores.inputs[1], mixed.inputs[1]
    if joined is None or left is None or right is None or values is None:
        return None
    left, left_scale = _unscaled(uncast(left))
    right, right_scale = _unscaled(uncast(right))
    values = uncast(values)
    query = _flat(left, HEADS_FIRST)
    keys, keys_last = _plain_keys(right)
    shape, length = known(left), known(values)
    if query is None or keys is None or len(shape) != 4 or len(length) != 4 or None in shape[1:] + length[1:]:
        return None
    heads, size = int(shape[1] or 0), int(shape[3] or 0)
    if length[1] != heads or length[3] != size or known(joined.outputs[0])[1:] != [shape[2], heads * size]:
        return None
    if shape[0] == 1 and {known(keys)[0], length[0]} != {1}:  # queries that are the same for all pictures
        return None
    if len({query.dtype, keys.dtype, values.dtype}) != 1 or query.dtype not in (FLOAT, HALF):
        return None
    if query.dtype == HALF and size % 8 and FLOAT in (scores.outputs[0].dtype, softmax.outputs[0].dtype):
        return f"a float32 island, and heads of {size} have no kernel that keeps scores in float32"
    flat_keys = _flat(keys, KEYS_LAST if keys_last else HEADS_FIRST)
    return _Attention(
        query, keys, values, flat_keys, _flat(values, HEADS_FIRST), keys_last, heads, size, int(length[2] or 0),
        left_scale * right_scale, joined.outputs[0],
    )  # fmt: skip


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """Before a product with one constant number, and that number."""
    node = made_by(value, "Mul")
    if node is not None:
        for factor in node.inputs:
            scale = number(factor)
            if factor is not None and scale is not None:
                before = other_input(node, factor)
                assert before is not None
                return uncast(before), scale
    return value, 1.0


def _flat(value: ir.Value, order: tuple[int, ...]) -> ir.Value | None:
    """[N, S, heads * d], where ``value`` is nothing but its heads brought to the front."""
    node = made_by(value, "Transpose")
    split = None if node is None or perm(node) != order else made_by(node.inputs[0], "Reshape")
    if split is None or split.inputs[0] is None:
        return None
    before, after = known(split.inputs[0]), known(split.outputs[0])
    if len(before) != 3 or len(after) != 4 or None in before[1:] + after[1:] or before[1] != after[1]:
        return None
    return split.inputs[0]


def _plain_keys(value: ir.Value) -> tuple[ir.Value | None, bool]:
    """Keys [N, heads, T, d], or [N, heads, d, T] and True, from the transposed keys of a product."""
    if value.is_initializer():
        return (value, True) if len(known(value)) == 4 and known(value)[0] == 1 else (None, False)
    node = made_by(value, "Transpose")
    if node is not None:
        return (node.inputs[0], False) if perm(node) == (0, 1, 3, 2) else (value, perm(node) == KEYS_LAST)
    # the exporter's own way to transpose the last two of four axes, by way of three
    outer = made_by(value, "Reshape")
    turn = None if outer is None else made_by(outer.inputs[0], "Transpose")
    inner = None if turn is None or perm(turn) != (0, 2, 1) else made_by(turn.inputs[0], "Reshape")
    if inner is None or inner.inputs[0] is None or len(known(inner.inputs[0])) != 4:
        return None, False
    return (inner.inputs[0], False) if _swaps_last(outer, inner.inputs[0]) else (None, False)


def _swaps_last(outer: ir.Node | None, keys: ir.Value) -> bool:
    """Whether the outer Reshape's target is the keys' own shape with the last two lengths exchanged."""
    target = None if outer is None else made_by(outer.inputs[1], "Concat")
    if target is None:
        return False
    bounds = []
    for part in target.inputs:
        cut = made_by(part, "Slice")
        whole = None if cut is None else made_by(cut.inputs[0], "Shape")
        if cut is None or whole is None or whole.inputs[0] is not keys:
            return False
        start, stop = constant(cut.inputs[1]), constant(cut.inputs[2])
        if start is None or stop is None:
            return False
        bounds.append(range(4)[slice(int(start[0]), int(stop[0]))])
    return bounds == [range(2), range(3, 4), range(2, 3)]


def _write(model: ir.Model, match: _Attention) -> None:
    place = match.answer.producer()
    assert place is not None and match.answer.name is not None and match.query.dtype is not None
    writer, base, dtype = Writer(model, place), match.answer.name, match.query.dtype
    keys, values = match.flat_keys, match.flat_values
    if keys is None or values is None or match.count <= SCALELESS_KEYS:
        keys, values = _heads_first(writer, match, base), match.values
    keys, values = _for_each(writer, match, keys, f"{base}_keys"), _for_each(writer, match, values, f"{base}_values")
    shape = match.answer.shape if match.answer.shape is not None else match.query.shape
    fused = writer.node(
        OPERATOR, [match.query, keys, values], shape, dtype, name=f"{base}_fused", domain=DOMAIN,
        num_heads=match.heads, scale=float(match.scale),
    )  # fmt: skip
    assert match.answer.dtype is not None
    replace(match.answer, writer.cast(fused, match.answer.dtype, f"{base}_cast"))


def _heads_first(writer: Writer, match: _Attention, base: str) -> ir.Value:
    """Keys as [N or 1, heads, T, d]."""
    keys = match.keys
    if not match.keys_last:
        return keys
    if keys.is_initializer():
        assert keys.const_value is not None
        return writer.constant(np.ascontiguousarray(keys.const_value.numpy().swapaxes(2, 3)), f"{base}_keys_constant")
    split = made_by(keys, "Transpose")
    assert split is not None and split.inputs[0] is not None
    return writer.transpose(split.inputs[0], HEADS_FIRST, f"{base}_keys_turned")


def _for_each(writer: Writer, match: _Attention, value: ir.Value, name: str) -> ir.Value:
    """The operator does not broadcast: keys and values that are the same for all pictures are repeated."""
    count = match.query.shape[0] if match.query.shape is not None else None
    if known(value)[0] != 1 or count == 1 or (value.shape is not None and value.shape[0] == count):
        return value
    assert value.dtype is not None
    first = writer.node("Shape", [match.query], [1], ir.DataType.INT64, name=f"{name}_count", start=0, end=1)
    rest = writer.integers([int(length or 0) for length in known(value)[1:]], f"{name}_lengths")
    target = writer.node("Concat", [first, rest], [len(known(value))], ir.DataType.INT64, name=f"{name}_target", axis=0)
    return writer.node("Expand", [value, target], [count, *known(value)[1:]], value.dtype, name=f"{name}_each")
