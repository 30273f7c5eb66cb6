"""CLIP's text tower as a graph, written node by node.

Nothing is traced: no size is computed at run time, and a tower of any size takes no longer than its weights take to
be copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

import kcdp
from kcdp.errors import KcdpError
from kcdp.knowledge.tower import TextTower, TowerShape

OPSET, IR_VERSION = 20, 10
#: Of quick GELU: x * sigmoid(1.702 x).
_QUICK = 1.702


def tower_graph(tower: TextTower, shape: TowerShape, *, half: bool = False) -> ir.Model:
    """ "ids" int64 [texts, tokens] to "states" float32 [texts, tokens, width], as ``TextTower.forward``.

    Args:
        tower: its weights are not copied before the graph is written.
        shape: its sizes.
        half: store matrices in float16, widened as the graph runs; vectors and arithmetic stay in float32.

    Raises:
        KcdpError: weights that half precision cannot hold.
    """
    ids = ir.val("ids", ir.DataType.INT64, ["texts", shape.tokens])
    writer = _Writer(tower, shape, half)
    states = writer.write(ids)
    states.name, states.dtype = "states", ir.DataType.FLOAT
    states.shape = ir.Shape(["texts", shape.tokens, shape.width])
    tape = writer.tape
    graph = ir.Graph(
        [ids], [states], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": OPSET}, name="text"
    )
    return ir.Model(graph, ir_version=IR_VERSION, producer_name="kcdp", producer_version=kcdp.__version__)


class _Writer:
    """Writes the nodes of one tower; values are [N, tokens, width] where nothing else is said."""

    def __init__(self, tower: TextTower, shape: TowerShape, half: bool) -> None:
        self.tape = Tape()
        self._uses: Counter[str] = Counter()  # of a node's name: a second one gets a number
        self._weights = {name: value.detach().cpu().numpy() for name, value in tower.state_dict().items()}
        self._shape, self._half, self._epsilon = shape, half, float(tower.ln_final.eps)
        self._mask = self._constant("causal_mask", np.triu(np.full((shape.tokens,) * 2, -np.inf, np.float32), 1))
        head = shape.width // shape.heads
        self._scale = self._constant("scale", np.float32(head**-0.5))
        self._apart = self._constant("heads_apart", np.array([0, shape.tokens, shape.heads, head]))
        self._joined = self._constant("heads_joined", np.array([0, shape.tokens, shape.width]))
        self._quick = self._constant("quick", np.float32(_QUICK)) if shape.quick_gelu else None

    def write(self, ids: ir.Value) -> ir.Value:
        words = self._op("Gather", [self._stored("token_embedding.weight"), ids], "words")
        hidden = self._op("Add", [self._widened(words, "words"), self._vector("positional_embedding")], "embedding")
        for layer in range(self._shape.layers):
            block = f"transformer.resblocks.{layer}"
            hidden = self._op("Add", [hidden, self._attention(self._norm(hidden, f"{block}.ln_1"), block)], block)
            hidden = self._op("Add", [hidden, self._feed_forward(self._norm(hidden, f"{block}.ln_2"), block)], block)
        return self._norm(hidden, "ln_final")

    def _attention(self, hidden: ir.Value, block: str) -> ir.Value:
        name = f"{block}.attn"
        stacked = self._linear(hidden, f"{name}.in_proj_weight", f"{name}.in_proj_bias")
        parts = self.tape.op_multi_out(
            "Split", [stacked], {"axis": 2, "num_outputs": 3}, num_outputs=3, name=f"{name}/Split"
        )
        query, key, value = (self._op("Reshape", [part, self._apart], name) for part in parts)
        query = self._op("Mul", [self._transposed(query, [0, 2, 1, 3], name), self._scale], name)
        scores = self._op("MatMul", [query, self._transposed(key, [0, 2, 3, 1], name)], f"{name}.scores")
        weights = self._op("Softmax", [self._op("Add", [scores, self._mask], name)], name, {"axis": -1})
        mixed = self._op("MatMul", [weights, self._transposed(value, [0, 2, 1, 3], name)], f"{name}.mixed")
        mixed = self._op("Reshape", [self._transposed(mixed, [0, 2, 1, 3], name), self._joined], f"{name}.mixed")
        return self._linear(mixed, f"{name}.out_proj.weight", f"{name}.out_proj.bias")

    def _feed_forward(self, hidden: ir.Value, block: str) -> ir.Value:
        name = f"{block}.mlp"
        hidden = self._linear(hidden, f"{name}.c_fc.weight", f"{name}.c_fc.bias")
        if self._quick is None:
            hidden = self._op("Gelu", [hidden], name)
        else:
            gate = self._op("Sigmoid", [self._op("Mul", [hidden, self._quick], name)], name)
            hidden = self._op("Mul", [hidden, gate], f"{name}.gated")
        return self._linear(hidden, f"{name}.c_proj.weight", f"{name}.c_proj.bias")

    def _norm(self, hidden: ir.Value, name: str) -> ir.Value:
        inputs = [hidden, self._vector(f"{name}.weight"), self._vector(f"{name}.bias")]
        return self._op("LayerNormalization", inputs, name, {"axis": -1, "epsilon": self._epsilon})

    def _linear(self, hidden: ir.Value, weight: str, bias: str) -> ir.Value:
        name = weight.removesuffix("weight").rstrip("._")
        matrix = self._widened(self._stored(weight, transposed=True), name)
        return self._op("Add", [self._op("MatMul", [hidden, matrix], name), self._vector(bias)], name)

    def _transposed(self, value: ir.Value, order: Sequence[int], name: str) -> ir.Value:
        return self._op("Transpose", [value], name, {"perm": list(order)})

    def _stored(self, name: str, *, transposed: bool = False) -> ir.Value:
        """A matrix as it lies in the file."""
        matrix = self._weights[name].T if transposed else self._weights[name]
        if self._half:
            with np.errstate(over="ignore"):
                matrix = matrix.astype(np.float16)
            if not np.isfinite(matrix).all():
                raise KcdpError(f"{name} holds weights above 65504", "weights that float16 can hold",
                                "export the text side in float32")  # fmt: skip
        return self._constant(name, np.ascontiguousarray(matrix))

    def _widened(self, value: ir.Value, name: str) -> ir.Value:
        return self._op("Cast", [value], name, {"to": ir.DataType.FLOAT.value}) if self._half else value

    def _vector(self, name: str) -> ir.Value:
        return self._constant(name, self._weights[name])

    def _constant(self, name: str, array: np.ndarray | np.generic) -> ir.Value:
        return self.tape.initializer(ir.tensor(np.asarray(array), name=name), name)

    def _op(
        self,
        kind: str,
        inputs: Sequence[ir.Value],
        name: str,
        attributes: dict[str, int | float | list[int]] | None = None,
    ) -> ir.Value:
        name = f"{name}/{kind}"
        self._uses[name] += 1
        return self.tape.op(
            kind, inputs, attributes, name=name if self._uses[name] == 1 else f"{name}_{self._uses[name]}"
        )
