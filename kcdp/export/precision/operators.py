"""What ONNX defines of an operator's types, and which nodes compute with float32 numbers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

FLOAT = ir.DataType.FLOAT


def made_floats(node: ir.Node) -> list[ir.Value]:
    """The float32 values that a node makes."""
    return [value for value in node.outputs if value.dtype == FLOAT]


def computes(node: ir.Node) -> bool:
    """It makes float32 numbers, or reads them."""
    values = (*node.outputs, *(value for value in node.inputs if value is not None))
    return any(value.dtype == FLOAT for value in values)


@cache
def _schema(kind: str, domain: str, opset: int) -> Any:
    try:
        return onnx.defs.get_schema(kind, opset, domain)
    except onnx.defs.SchemaError:
        return None


def takes_type(node: ir.Node, index: int, name: str, opsets: Mapping[str, int]) -> bool:
    """Whether the operator's definition takes a type ("float16") as its ``index``-th input."""
    schema = _schema(node.op_type, node.domain, opsets.get(node.domain, 1))
    return schema is not None and f"tensor({name})" in schema.inputs[min(index, len(schema.inputs) - 1)].types


def has_type(node: ir.Node, name: str, opsets: Mapping[str, int]) -> bool:
    """Whether the operator knows the type where its first float input or, without one, its output is."""
    for index, value in enumerate(node.inputs):
        if value is not None and value.dtype == FLOAT:
            return takes_type(node, index, name, opsets)
    schema = _schema(node.op_type, node.domain, opsets.get(node.domain, 1))
    return schema is not None and any(f"tensor({name})" in formal.types for formal in schema.outputs)
