"""Fusions for ONNX Runtime's CUDA provider, in the order in which they are applied, and the check of what they did.

ONNX Runtime's own Stable Diffusion fusions were written for graphs of torch's older exporter and find nothing in those
of the present one, so the operators are written here. Which of them have CUDA kernels, and for which types, is listed
in ``docs/OperatorKernels.md`` of its repository ("CUDAExecutionProvider", domain com.microsoft): MultiHeadAttention,
GroupNorm, BiasSplitGelu, BiasGelu, SkipLayerNormalization, QuickGelu and NhwcConv, all for float and float16. What they
compute is in ``docs/ContribOperators.md``; their limits, read from its sources as of the releases that the extra "gpu"
takes (1.20 and above), are in the modules beside this one. None of it has run on a GPU yet: what the nodes stand for
was compared on a processor. There, ONNX Runtime has kernels for MultiHeadAttention, BiasGelu, SkipLayerNormalization
and QuickGelu in float32, and none for the others: ``kcdp.export.fusions.unfusing`` writes all of them out again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from kcdp.export.fusions import attention, gelu, group_norm, layer_norm, layout, silu
from kcdp.export.fusions.casts import drop_round_trips
from kcdp.export.fusions.parts import DOMAIN, Remaining, drop_unused


@dataclass(frozen=True)
class Fusion:
    """A kind of fused node.

    Attributes:
        operator: of the domain com.microsoft.
        what: one line.
        fuse: rewrites a graph in place; how many.
        remaining: places of a graph that look like this fusion's and are not fused, and why.
    """

    operator: str
    what: str
    fuse: Callable[[ir.Model], int]
    remaining: Callable[[ir.Graph], list[Remaining]]


FUSIONS: tuple[Fusion, ...] = (
    Fusion(group_norm.OPERATOR, "group norm and SiLU", group_norm.fuse, group_norm.remaining),
    Fusion(attention.OPERATOR, "attention without maps", attention.fuse, attention.remaining),
    Fusion(gelu.SPLIT_OPERATOR, "bias, split and gate", gelu.fuse_split, gelu.remaining_split),
    Fusion(gelu.BIAS_OPERATOR, "bias and GELU", gelu.fuse_bias, gelu.remaining_bias),
    Fusion(layer_norm.OPERATOR, "sum and layer norm", layer_norm.fuse, layer_norm.remaining),
    Fusion(silu.OPERATOR, "SiLU elsewhere", silu.fuse, silu.remaining),
    Fusion(layout.OPERATOR, "convolution, channels last", layout.fuse, layout.remaining),
)
OPERATORS = tuple(fusion.operator for fusion in FUSIONS)


def fuse_for_cuda(model: ir.Model) -> dict[str, int]:
    """Fuse a float32 graph, or a strongly typed float16 one, in place.

    Values keep their names where they still exist; those inside a fused node are gone.

    Returns:
        fused nodes by operator, 0 included.
    """
    counts = {}
    for fusion in FUSIONS:
        counts[fusion.operator] = fusion.fuse(model)
        drop_round_trips(model.graph)
        drop_unused(model.graph)
    return counts


def left_unfused(model: ir.Model) -> list[Remaining]:
    """Places that look like a fusion's, with the reason why each is as it is; "" where there is none."""
    return [place for fusion in FUSIONS for place in fusion.remaining(model.graph)]


def check_fused(counts: Mapping[str, int], model: ir.Model) -> list[str]:
    """What is not as ``fuse_for_cuda`` says, or not as it should be; one line each.

    Args:
        counts: what ``fuse_for_cuda`` gave for this graph.
    """
    found = Counter(node.op_type for node in model.graph if node.domain == DOMAIN)
    failures = [
        f"{counts.get(operator, 0)} {operator} were fused, the graph has {found[operator]}"
        for operator in OPERATORS if found[operator] != counts.get(operator, 0)
    ]  # fmt: skip
    for fusion in FUSIONS:
        missed = [place.node for place in fusion.remaining(model.graph) if not place.why]
        if missed:
            none = "no" if not counts.get(fusion.operator) else "not every"
            failures.append(
                f"{none} {fusion.operator} ({fusion.what}): {len(missed)} could have been fused, {missed[0]} first"
            )
    return failures


def describe(counts: Mapping[str, int], model: ir.Model) -> str:
    """One line for the terminal: what was fused, and what was left for which reason."""
    fused = ", ".join(f"{count} {operator}" for operator, count in counts.items() if count)
    left = Counter((place.fusion, place.why) for place in left_unfused(model))
    parts = [f"{count} {name} ({why})" for (name, why), count in left.items()]
    return f"  fused: {fused or 'nothing'}" + (f"; left: {', '.join(parts)}" if parts else "")
