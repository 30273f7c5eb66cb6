"""Channels last, throughout the convolutions: ``com.microsoft.NhwcConv``, and as few Transposes as that leaves.

GroupNorm's CUDA kernel takes channels last, and so do the tensor cores' convolutions. Convolutions become NhwcConv (its
weights stay [out, in, height, width]), elementwise operators and joins of channels between them follow, and the tokens
of a transformer are read from the pictures without a Transpose. Nothing but the order of axes changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from kcdp.export.fusions.group_norm import TO_FIRST, TO_LAST
from kcdp.export.fusions.parts import (
    DOMAIN,
    FLOAT,
    HALF,
    Remaining,
    Writer,
    attribute,
    known,
    made_by,
    number,
    perm,
    replace,
)
from kcdp.export.precision.layers import name_of

NAME = "channels last"
OPERATOR = "NhwcConv"
#: Operators that work on each number alone.
ELEMENTWISE = ("Add", "Cast", "Gelu", "Mul", "QuickGelu", "Relu", "Sigmoid", "Sub")
TOKENS = (0, 2, 1)


def fuse(model: ir.Model) -> int:
    """Rewrite in place; the number of convolutions."""
    turner, count = _Turner(model), 0
    for node in list(model.graph):
        if _is_convolution(node):
            turner.convolution(node)
            count += 1
        elif node.op_type == "Transpose" and perm(node) == TO_LAST:
            turner.meet(node)
        elif node.op_type == "Transpose" and perm(node) == TOKENS:
            turner.tokens(node)
        elif node.op_type in ELEMENTWISE or node.op_type == "Concat":
            turner.follow(node)
    return count


def remaining(graph: ir.Graph) -> list[Remaining]:
    """Convolutions that are left."""
    return [
        Remaining(NAME, name_of(node), "" if _is_convolution(node) else "no plain convolution of pictures")
        for node in graph if node.op_type == "Conv"
    ]  # fmt: skip


def _is_convolution(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain or node.outputs[0].dtype not in (FLOAT, HALF):
        return False
    weights = node.inputs[1]
    plain = weights is not None and weights.is_initializer() and len(known(weights)) == 4
    return plain and attribute(node, "group", 1) == 1 and attribute(node, "auto_pad", "NOTSET") == "NOTSET"


class _Turner:
    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self._last: dict[ir.Value, ir.Value] = {}

    def convolution(self, node: ir.Node) -> None:
        """With channels last inside."""
        assert node.inputs[0] is not None
        attributes = {name: value.value for name, value in node.attributes.items() if name != "auto_pad"}
        inputs = [self.last(node.inputs[0], node), *node.inputs[1:]]
        self._answer(node, inputs, OPERATOR, DOMAIN, attributes)

    def meet(self, node: ir.Node) -> None:
        """A Transpose to channels last, of something that is there with channels last."""
        assert node.inputs[0] is not None
        other = self.last(node.inputs[0], node)
        if other is not node.outputs[0]:
            ir.convenience.replace_all_uses_with(node.outputs[0], other)

    def follow(self, node: ir.Node) -> None:
        """An operator one of whose inputs comes from channels last, the others too, from tokens, or of one number."""
        sources = [_standing(value) for value in node.inputs]
        if None in sources or "picture" not in sources:
            return
        attributes = {name: value.value for name, value in node.attributes.items()}
        if node.op_type == "Concat":
            if attributes["axis"] not in (1, -3) or "number" in sources:
                return
            attributes["axis"] = 3
        values = [(value, source) for value, source in zip(node.inputs, sources, strict=True) if value is not None]
        if len({(*known(value)[2:], len(known(value))) for value, source in values if source != "number"}) != 1:
            return
        inputs = [value if source == "number" else self.last(value, node) for value, source in values]
        self._answer(node, inputs, node.op_type, node.domain, attributes)

    def tokens(self, node: ir.Node) -> None:
        """[N, C, P] to [N, P, C]: of what was [N, P, C] before, or of a picture that is there with channels last."""
        twice = made_by(node.inputs[0], "Transpose")
        if twice is not None and perm(twice) == TOKENS and twice.inputs[0] is not None:
            if not node.outputs[0].is_graph_output():
                ir.convenience.replace_all_uses_with(node.outputs[0], twice.inputs[0])
            return
        flat = made_by(node.inputs[0], "Reshape")
        picture = None if flat is None else made_by(flat.inputs[0], "Transpose")
        if flat is None or picture is None or perm(picture) != TO_FIRST or picture.inputs[0] is None:
            return
        before, after = known(picture.inputs[0]), known(flat.outputs[0])
        if len(before) != 4 or len(after) != 3 or after[1] != before[3] or None in before[1:] + after[1:]:
            return
        answer = node.outputs[0]
        lengths = [0, int(after[2] or 0), int(after[1] or 0)]
        shape = answer.shape if answer.shape is not None else [None, *lengths[1:]]
        writer = Writer(self.model, node)
        replace(answer, writer.reshape(picture.inputs[0], lengths, list(shape), f"{answer.name}_tokens"))

    def last(self, value: ir.Value, place: ir.Node) -> ir.Value:
        """The value with channels last, for readers from ``place`` on."""
        source = made_by(value, "Transpose")
        if source is not None and perm(source) == TO_FIRST and source.inputs[0] is not None:
            return source.inputs[0]
        if value not in self._last:
            writer, name, tokens = Writer(self.model, place), f"{value.name}_last", _tokens_of(value)
            if tokens is None:
                self._last[value] = writer.transpose(value, TO_LAST, name)
            else:
                lengths = [0, *(int(known(value)[axis] or 0) for axis in TO_LAST[1:])]
                count = None if value.shape is None else value.shape[0]
                self._last[value] = writer.reshape(tokens, lengths, [count, *lengths[1:]], name)
        return self._last[value]

    def _answer(
        self, node: ir.Node, inputs: Sequence[ir.Value | None], kind: str, domain: str, attributes: dict[str, Any]
    ) -> None:
        answer = node.outputs[0]
        assert answer.dtype is not None
        shape = None if answer.shape is None or len(answer.shape) != 4 else [answer.shape[axis] for axis in TO_LAST]
        writer = Writer(self.model, node)
        made = writer.node(
            kind, inputs, shape, answer.dtype, name=f"{answer.name}_channels_last", domain=domain, **attributes
        )
        heir = made.producer()
        assert heir is not None
        heir.name, node.name = node.name, heir.name  # float32 islands are known by their names
        replace(answer, writer.transpose(made, TO_FIRST, f"{answer.name}_first"))


def _standing(value: ir.Value | None) -> str | None:
    """What stands for an input once channels are last: "picture", "tokens" or "number"; None: nothing."""
    source = made_by(value, "Transpose")
    if source is not None and perm(source) == TO_FIRST:
        return "picture"
    if number(value) is not None:
        return "number"
    return "tokens" if value is not None and _tokens_of(value) is not None else None


def _tokens_of(value: ir.Value) -> ir.Value | None:
    """Tokens [N, H * W, C] that were transposed and made the picture ``value``, [N, C, H, W]."""
    flat = made_by(value, "Reshape")
    turn = None if flat is None else made_by(flat.inputs[0], "Transpose")
    if turn is None or perm(turn) != TOKENS or turn.inputs[0] is None:
        return None
    before, after = known(turn.inputs[0]), known(value)
    fixed = len(before) == 3 and len(after) == 4 and None not in before[1:] + after[1:]
    return turn.inputs[0] if fixed and before[2] == after[1] else None
