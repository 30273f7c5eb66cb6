"""Casts that fusions have left without a purpose."""

from __future__ import annotations

import onnx_ir as ir

from kcdp.export.fusions.parts import FLOAT, HALF, made_by


def drop_round_trips(graph: ir.Graph) -> int:
    """float16 widened to float32 and narrowed again is what it was: readers take it directly; how many Casts."""
    count = 0
    for node in list(graph):
        if node.op_type != "Cast" or node.outputs[0].dtype != HALF or node.outputs[0].is_graph_output():
            continue
        wide = node.inputs[0]
        before = made_by(wide, "Cast")
        if wide is None or wide.dtype != FLOAT or before is None or before.inputs[0] is None:
            continue
        if before.inputs[0].dtype == HALF:
            ir.convenience.replace_all_uses_with(node.outputs[0], before.inputs[0])
            count += 1
    return count
