"""A sum and the layer norm of it: ``com.microsoft.SkipLayerNormalization``, the bias of the last layer included.

The CUDA kernel adds up in the type of the states unless the session is opened with the provider's option
``enable_skip_layer_norm_strict_mode``; a norm that stands in a float32 island is therefore left where it is.
"""

from __future__ import annotations

import onnx_ir as ir

from kcdp.export.fusions.parts import (
    DOMAIN,
    FLOAT,
    Remaining,
    Writer,
    attribute,
    known,
    made_by,
    other_input,
    replace,
    uncast,
)
from kcdp.export.precision.layers import name_of

NAME = "skip layer norm"
OPERATOR = "SkipLayerNormalization"
#: Number of outputs; the last is the sum.
OUTPUTS = 4


def fuse(model: ir.Model) -> int:
    """Fuse what matches, in place; how many."""
    count = 0
    for norm in [node for node in model.graph if node.op_type == "LayerNormalization"]:
        total = _sum(norm)
        if total is not None and _excluded(norm, total) == "":
            _write(model, norm, total)
            count += 1
    return count


def remaining(graph: ir.Graph) -> list[Remaining]:
    """Layer norms of a sum of two states that are left."""
    found = []
    for norm in graph:
        if norm.op_type == "LayerNormalization" and not norm.domain:
            total = _sum(norm)
            if total is not None:
                found.append(Remaining(NAME, name_of(norm), _excluded(norm, total)))
    return found


def _sum(norm: ir.Node) -> ir.Node | None:
    """The Add in front of it, of two states of the same shape."""
    if norm.inputs[0] is None:
        return None
    node = made_by(uncast(norm.inputs[0]), "Add")
    if node is None or any(value is None or value.is_initializer() for value in node.inputs):
        return None
    shapes = [known(value) for value in (*node.inputs, *node.outputs) if value is not None]
    return node if len(shapes[0]) == 3 and shapes[0] == shapes[1] == shapes[2] else None


def _excluded(norm: ir.Node, total: ir.Node) -> str:
    if norm.inputs[0] is not total.outputs[0]:
        return "a float32 island: the kernel would add up in float16"
    if attribute(norm, "axis", -1) not in (-1, 2) or len(norm.inputs) < 3 or norm.inputs[2] is None:
        return "not over the last axis, or without a bias"
    if any(value.uses() or value.is_graph_output() for value in norm.outputs[1:]):
        return "its mean or deviation is read"
    if attribute(norm, "stash_type", 1) != int(FLOAT):
        return "its statistics are not float32"
    return ""


def _write(model: ir.Model, norm: ir.Node, total: ir.Node) -> None:
    first, second = total.inputs
    value, answer = total.outputs[0], norm.outputs[0]
    assert first is not None and second is not None and answer.dtype is not None
    bias = None
    for last, other in ((second, first), (first, second)):
        biased = _biased(last)
        if biased is not None:
            (first, bias), second = biased, other
            break
    name = name_of(answer)
    fused = Writer(model, total).node(
        OPERATOR, [first, second, norm.inputs[1], norm.inputs[2], *([bias] if bias is not None else [])],
        answer.shape, answer.dtype, name=f"{name}_fused", domain=DOMAIN, outputs=OUTPUTS,
        epsilon=float(attribute(norm, "epsilon", 1e-5)),
    )  # fmt: skip
    node = fused.producer()
    assert node is not None
    for unused in node.outputs[1:3]:
        unused.name = ""
    summed = node.outputs[3]
    summed.type, summed.shape = value.type, value.shape
    replace(answer, fused)
    replace(value, summed)


def _biased(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """States and the constant [D] added to them, if nothing else reads the sum."""
    node = made_by(value, "Add")
    if node is None or len(list(value.uses())) != 1 or value.is_graph_output():
        return None
    for bias in node.inputs:
        if bias is not None and bias.is_initializer() and known(bias) == known(value)[-1:]:
            before = other_input(node, bias)
            return None if before is None or known(before) != known(value) else (before, bias)
    return None
