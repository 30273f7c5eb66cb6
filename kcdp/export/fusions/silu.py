"""x * sigmoid(x) that is not part of a group norm: ``com.microsoft.QuickGelu`` with alpha 1."""

from __future__ import annotations

import onnx_ir as ir

from kcdp.export.fusions.parts import DOMAIN, Remaining, Writer, reader, replace
from kcdp.export.precision.layers import name_of

NAME = "silu"
OPERATOR = "QuickGelu"


def fuse(model: ir.Model) -> int:
    """Fuse what matches, in place; how many."""
    count = 0
    for sigmoid, product in _found(model.graph):
        answer = product.outputs[0]
        assert answer.dtype is not None
        replace(answer, Writer(model, product).node(
            OPERATOR, [sigmoid.inputs[0]], answer.shape, answer.dtype, name=f"{answer.name}_fused", domain=DOMAIN,
            alpha=1.0,
        ))  # fmt: skip
        count += 1
    return count


def remaining(graph: ir.Graph) -> list[Remaining]:
    """Those that are left."""
    return [Remaining(NAME, name_of(sigmoid)) for sigmoid, _ in _found(graph)]


def _found(graph: ir.Graph) -> list[tuple[ir.Node, ir.Node]]:
    pairs = []
    for node in graph:
        if node.op_type == "Sigmoid" and not node.domain:
            product = reader(node.outputs[0], "Mul")
            if product is not None and set(product.inputs) == {node.inputs[0], node.outputs[0]}:
                pairs.append((node, product))
    return pairs
