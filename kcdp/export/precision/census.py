"""Which operators of a graph compute in which type: counted, told, and compared with what was promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from kcdp.export.precision.layers import find_layers

#: Operators whose type decides what a graph costs.
PRODUCTS = ("Conv", "ConvTranspose", "MatMul", "Gemm", "Attention", "MultiHeadAttention", "NhwcConv")
_INTEGERS = {
    ir.DataType.INT8: "int8", ir.DataType.UINT8: "int8", ir.DataType.INT16: "int16", ir.DataType.UINT16: "int16",
}  # fmt: skip


@dataclass(frozen=True)
class Census:
    """Operators by kind and type.

    Attributes:
        counts: kind -> type -> how many. "int8" computes with integers, or would where a runtime fuses it, and
            "int8 int16-activations" with 16 bits of its input; "int8-weights" unpacks integers before it computes in
            the type that follows.
        products: node name -> type, of operators that multiply.
        weighted: names of those that have weights of float32, not packed.
    """

    counts: Mapping[str, Mapping[str, int]]
    products: Mapping[str, str]
    weighted: frozenset[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {kind: dict(types) for kind, types in self.counts.items()}

    def text(self) -> str:
        """Products by type, and how much else there is."""
        kinds = [kind for kind in PRODUCTS if kind in self.counts]
        parts = [f"{kind} {', '.join(f'{n} {t}' for t, n in sorted(self.counts[kind].items()))}" for kind in kinds]
        rest = Counter[str]()
        for kind, types in self.counts.items():
            if kind not in PRODUCTS:
                rest.update(types)
        others = ", ".join(f"{n} {t}" for t, n in sorted(rest.items()))
        return f"  {'; '.join(parts)}; other operators {others}"


def census(model: ir.Model) -> Census:
    """Count. The type of an operator is that of its first float output or, without one, of its first float input."""
    counts: dict[str, Counter[str]] = {}
    products = {}
    for node in model.graph:
        kind = _type(node)
        if kind is None:
            continue
        counts.setdefault(node.op_type, Counter())[kind] += 1
        if node.op_type in PRODUCTS:
            products[str(node.name)] = kind
    return Census(counts, products, frozenset(layer.name for layer in find_layers(model.graph)))


def check_census(found: Census, precision: str, islands: Mapping[str, str]) -> list[str]:
    """What is not as promised, one line each.

    Args:
        precision: "float32", "float16", "bfloat16", "int8" or "int8-weights".
        islands: node name -> type, of nodes that may differ.
    """
    failures = []
    if precision in ("float16", "bfloat16"):
        for name, kind in found.products.items():
            if kind not in (precision, f"int8-weights {precision}") and islands.get(name) != kind:
                failures.append(f"the product {name} computes in {kind} and is no declared island")
    kinds = Counter(kind.split()[0] for kind in found.products.values())  # without the type that follows
    if precision in ("int8", "int8-weights", "bfloat16-weights"):
        if not kinds[precision]:
            failures.append(f"no product is {precision}")
        undeclared = [name for name in found.weighted if found.products[name] == "float32" != islands.get(name)]
        failures += [f"the layer {name} computes in float32 and is not declared" for name in sorted(undeclared)]
    if precision == "float32":
        failures += [f"the product {name} computes in {kind}" for name, kind in found.products.items()
                     if kind != "float32"]  # fmt: skip
    return failures


def _type(node: ir.Node) -> str | None:
    floats = [value.dtype for value in (*node.outputs, *node.inputs) if value is not None and value.dtype is not None
              and value.dtype.is_floating_point()]  # fmt: skip
    if not floats:
        return None
    name = {"FLOAT": "float32", "DOUBLE": "float64"}.get(floats[0].name, floats[0].name.lower())
    if node.op_type not in PRODUCTS:
        return name
    stored = [_stored(value) for value in node.inputs[:2] if value is not None]
    if all(stored) and len(stored) > 1 and "bfloat16" not in stored:
        return stored[1] if stored[0] == "int8" else f"{stored[1]} {stored[0]}-activations"
    return f"{stored[1]}-weights {name}" if len(stored) > 1 and stored[1] else name


def _stored(value: ir.Value) -> str:
    """What a value was unpacked from: "int8", "int16" by DequantizeLinear; "bfloat16" by a Cast of weights; else ""."""
    producer = value.producer()
    if producer is None or producer.inputs[0] is None:
        return ""
    dtype = producer.inputs[0].dtype
    if producer.op_type == "DequantizeLinear" and dtype in _INTEGERS:
        return _INTEGERS[dtype]
    packed = producer.op_type == "Cast" and producer.inputs[0].is_initializer() and dtype == ir.DataType.BFLOAT16
    return "bfloat16" if packed else ""
