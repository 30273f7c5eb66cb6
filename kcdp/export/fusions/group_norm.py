"""The exporter's group normalisation, with the SiLU behind it: ``com.microsoft.GroupNorm``.

torch's exporter writes a group norm as Reshape, InstanceNormalization with scale 1 and bias 0, Reshape, Mul, Add. The
CUDA kernel takes the channels last, an even number of channels in each group and at most 512, weights of float32, and
works in float32 inside whatever the type of the pictures (``group_norm_impl.cu`` and ``group_norm_common_base.cc`` of
ONNX Runtime; releases before 1.17 took only certain widths, 32 groups and 32 pictures). It has the variance from the
mean of squares: 2^-24 of a squared mean is lost, which matters where a mean is hundreds of deviations from 0.
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
    constant,
    fuse_matches,
    known,
    made_by,
    other_input,
    past_cast,
    reader,
    replace,
    uncast,
)
from kcdp.export.precision.layers import name_of

NAME = "group norm"
OPERATOR = "GroupNorm"
TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
LARGEST_GROUP = 512


@dataclass(frozen=True)
class _GroupNorm:
    """A match.

    Attributes:
        source: [N, C, H, W] or [N, C, P].
        gamma, beta: [C].
        answer: what is replaced; behind the SiLU where ``silu``.
    """

    source: ir.Value
    groups: int
    gamma: np.ndarray
    beta: np.ndarray
    epsilon: float
    silu: bool
    answer: ir.Value


def fuse(model: ir.Model) -> int:
    """Fuse what matches, in place; how many."""
    return fuse_matches(model, "InstanceNormalization", _match, _write)


def remaining(graph: ir.Graph) -> list[Remaining]:
    """Instance normalisations that are left."""
    found = []
    for node in graph:
        if node.op_type == "InstanceNormalization":
            match = _match(node)
            why = match if isinstance(match, str) else ""
            found.append(Remaining(NAME, name_of(node), why))
    return found


def _match(norm: ir.Node) -> _GroupNorm | str | None:
    """The match; why the kernel excludes it; or None where it is something else."""
    scale, bias = constant(norm.inputs[1]), constant(norm.inputs[2])
    if scale is None or bias is None or norm.inputs[0] is None:
        return None
    if (scale != 1).any() or bias.any():
        return "an instance normalisation with weights of its own"
    groups = int(scale.size)
    source = uncast(norm.inputs[0])
    split = made_by(source, "Reshape")
    answer = past_cast(norm.outputs[0])
    joined = reader(answer, "Reshape")
    if split is not None and split.inputs[0] is not None and joined is not None:
        source, answer = uncast(split.inputs[0]), past_cast(joined.outputs[0])
    elif known(source)[1:2] != [groups]:
        return "the normalised values are read before they are scaled"
    shape = known(source)
    if len(shape) not in (3, 4) or None in shape[1:]:
        return None
    channels = int(shape[1] or 0)
    gamma, answer = _operand(answer, "Mul", channels)
    beta, answer = _operand(answer, "Add", channels)
    if gamma is None or beta is None:
        return "no weights for each channel behind it"
    if channels % groups or channels // groups % 2 or channels // groups > LARGEST_GROUP:
        return f"{channels / groups:g} channels in a group: the kernel takes even numbers up to {LARGEST_GROUP}"
    silu = _silu(answer)
    epsilon = float(norm.attributes["epsilon"].value)
    return _GroupNorm(source, groups, gamma, beta, epsilon, silu is not None, answer if silu is None else silu)


def _operand(value: ir.Value, kind: str, channels: int) -> tuple[np.ndarray | None, ir.Value]:
    """The constant [C, 1, ..] that ``value`` is multiplied by or added to, and the result."""
    node = reader(value, kind)
    if node is None:
        return None, value
    array = constant(other_input(node, value))
    if array is None or array.size != channels or array.shape[:1] != (channels,):
        return None, value
    return array.reshape(-1).astype(np.float32), past_cast(node.outputs[0])


def _silu(value: ir.Value) -> ir.Value | None:
    """What x * sigmoid(x) is, if nothing else reads x."""
    nodes = [use.node for use in value.uses()]
    kinds = sorted(node.op_type for node in nodes)
    if value.is_graph_output() or kinds != ["Mul", "Sigmoid"]:
        return None
    gate, product = sorted(nodes, key=lambda node: node.op_type, reverse=True)
    if reader(gate.outputs[0], "Mul") is not product:
        return None
    return product.outputs[0]


def _write(model: ir.Model, match: _GroupNorm) -> None:
    place = match.answer.producer()
    assert place is not None and match.answer.name is not None and match.answer.dtype is not None
    writer, base, shape = Writer(model, place), match.answer.name, list(match.source.shape or ())
    # a norm that starts and ends in float16 is one whatever lies between: the kernel's own statistics are float32
    dtype = HALF if match.source.dtype == match.answer.dtype == HALF else FLOAT
    source = writer.cast(match.source, dtype, f"{base}_source")
    if len(shape) == 4:
        turned = writer.transpose(source, TO_LAST, f"{base}_last")
    else:
        flat = writer.transpose(source, (0, 2, 1), f"{base}_last")
        turned = writer.reshape(flat, (0, 0, 1, -1), [shape[0], shape[2], 1, shape[1]], f"{base}_cells")
    gamma = writer.constant(match.gamma, f"{base}_gamma")
    beta = writer.constant(match.beta, f"{base}_beta")
    fused = writer.node(
        OPERATOR, [turned, gamma, beta], turned.shape, dtype, name=f"{base}_fused", domain=DOMAIN,
        groups=match.groups, epsilon=match.epsilon, activation=int(match.silu), channels_last=1,
    )  # fmt: skip
    if len(shape) == 4:
        back = writer.transpose(fused, TO_FIRST, f"{base}_first")
    else:
        flat = writer.reshape(fused, (0, 0, -1), [shape[0], shape[2], shape[1]], f"{base}_flat")
        back = writer.transpose(flat, (0, 2, 1), f"{base}_first")
    replace(match.answer, writer.cast(back, match.answer.dtype, f"{base}_cast"))
