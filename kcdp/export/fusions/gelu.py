"""A bias and a GELU behind a product: ``com.microsoft.BiasSplitGelu`` and ``com.microsoft.BiasGelu``.

The feed-forward layers of Stable Diffusion multiply one half of the widened states by the GELU of the other.
BiasSplitGelu does that, the bias included, in one kernel that exists for the widths of Stable Diffusion only: 2560,
5120 and 10240, both halves together. Elsewhere BiasGelu takes the gate's half of the bias. Both are the exact GELU, by
erf.
"""

from __future__ import annotations

import onnx_ir as ir

from kcdp.export.fusions.parts import (
    DOMAIN,
    Remaining,
    Writer,
    attribute,
    constant,
    known,
    made_by,
    other_input,
    reader,
    replace,
)
from kcdp.export.precision.layers import name_of

SPLIT_NAME, BIAS_NAME = "bias-split-gelu", "bias-gelu"
SPLIT_OPERATOR, BIAS_OPERATOR = "BiasSplitGelu", "BiasGelu"
SPLIT_WIDTHS = (2560, 5120, 10240)


def fuse_split(model: ir.Model) -> int:
    """Bias, split, gate: fuse those of the kernel's widths, in place; how many."""
    count = 0
    for gelu in _gelus(model.graph):
        found = _gated(gelu)
        if found is not None and _excluded(found[0]) == "":
            _write_split(model, *found)
            count += 1
    return count


def fuse_bias(model: ir.Model) -> int:
    """Bias and GELU, with or without a split between them: fuse, in place; how many."""
    count = 0
    for gelu in _gelus(model.graph):
        found = _gated(gelu)
        biased = None if found is not None else _biased(gelu.inputs[0])
        if found is not None:
            _write_halves(model, gelu, *found)
        elif biased is not None:
            writer, name, answer = Writer(model, gelu), name_of(gelu.outputs[0]), gelu.outputs[0]
            assert answer.dtype is not None
            replace(answer, writer.node(
                BIAS_OPERATOR, list(biased), answer.shape, answer.dtype, name=f"{name}_fused", domain=DOMAIN,
            ))  # fmt: skip
        else:
            continue
        count += 1
    return count


def remaining_split(graph: ir.Graph) -> list[Remaining]:
    """Gates that are left, BiasGelu's included."""
    found = []
    for node in graph:
        if node.op_type in ("Gelu", BIAS_OPERATOR):
            cut = made_by(node.inputs[0], "Split")
            product = reader(node.outputs[0], "Mul")
            if cut is not None and product is not None and other_input(product, node.outputs[0]) is not None:
                found.append(Remaining(SPLIT_NAME, name_of(node), _excluded(cut.inputs[0])))
    return found


def remaining_bias(graph: ir.Graph) -> list[Remaining]:
    """GELUs that are left: behind a bias or a split bias they should not be."""
    found = []
    for gelu in _gelus(graph):
        biased = _gated(gelu) is not None or _biased(gelu.inputs[0]) is not None
        found.append(Remaining(BIAS_NAME, name_of(gelu), "" if biased else "no bias of its own in front of it"))
    return found


def _gelus(graph: ir.Graph) -> list[ir.Node]:
    return [
        node for node in graph
        if node.op_type == "Gelu" and not node.domain and attribute(node, "approximate", "none") == "none"
    ]  # fmt: skip


def _excluded(value: ir.Value | None) -> str:
    width = known(value)[-1:] if value is not None else []
    if width and width[0] in SPLIT_WIDTHS:
        return ""
    return f"{width[0] if width else 'unknown'} channels: the kernel has {', '.join(map(str, SPLIT_WIDTHS))}"


def _biased(value: ir.Value | None) -> tuple[ir.Value, ir.Value] | None:
    """A product and the constant [D] added to it, if nothing else reads the sum."""
    node = made_by(value, "Add")
    if node is None or value is None or len(list(value.uses())) != 1 or value.is_graph_output():
        return None
    for bias in node.inputs:
        if bias is not None and bias.is_initializer() and known(bias) == known(value)[-1:]:
            before = other_input(node, bias)
            if before is not None and known(before)[-1:] == known(bias) and made_by(before, "MatMul") is not None:
                return before, bias
    return None


def _gated(gelu: ir.Node) -> tuple[ir.Value, ir.Value, ir.Node, ir.Node] | None:
    """The product, the bias, the Split and the gate's Mul of: split(x + bias), first half * gelu(second half)."""
    cut = made_by(gelu.inputs[0], "Split")
    gate = reader(gelu.outputs[0], "Mul")
    if cut is None or gate is None or len(cut.outputs) != 2 or gelu.inputs[0] is not cut.outputs[1]:
        return None
    rank = len(known(cut.outputs[0]))
    halves = known(cut.outputs[0])[-1:] == known(cut.outputs[1])[-1:]
    alone = reader(cut.outputs[0], "Mul") is gate and reader(cut.outputs[1], "Gelu") is gelu
    if rank != 3 or attribute(cut, "axis", 0) not in (-1, rank - 1) or not halves or not alone:
        return None
    biased = _biased(cut.inputs[0])
    return None if biased is None else (*biased, cut, gate)


def _write_split(model: ir.Model, before: ir.Value, bias: ir.Value, cut: ir.Node, gate: ir.Node) -> None:
    answer = gate.outputs[0]
    assert answer.dtype is not None
    replace(answer, Writer(model, gate).node(
        SPLIT_OPERATOR, [before, bias], answer.shape, answer.dtype, name=f"{answer.name}_fused", domain=DOMAIN,
    ))  # fmt: skip


def _write_halves(
    model: ir.Model, gelu: ir.Node, before: ir.Value, bias: ir.Value, cut: ir.Node, gate: ir.Node
) -> None:
    """The split moves in front of the bias, and the bias is cut in two."""
    array = constant(bias)
    base, dtype = name_of(gate.outputs[0]), before.dtype
    assert array is not None and dtype is not None
    half = array.shape[0] // 2
    writer, shape = Writer(model, cut), cut.outputs[0].shape
    states = writer.node("Split", [before], shape, dtype, name=f"{base}_states", outputs=2, axis=-1, num_outputs=2)
    node = states.producer()
    assert node is not None
    gated = node.outputs[1]
    gated.name, gated.type, gated.shape = f"{base}_gate", ir.TensorType(dtype), shape
    writer = Writer(model, gelu)
    moved = writer.node(
        "Add", [states, writer.constant(array[:half], f"{base}_states_bias")], shape, dtype, name=f"{base}_moved"
    )
    fused = writer.node(
        BIAS_OPERATOR, [gated, writer.constant(array[half:], f"{base}_gate_bias")], shape, dtype,
        name=f"{base}_gelu", domain=DOMAIN,
    )  # fmt: skip
    replace(gelu.outputs[0], fused)
    replace(cut.outputs[0], moved)
