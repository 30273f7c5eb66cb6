"""What goes into a graph and what comes out: declared once, used by export, parity gate, runtime and tests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from kcdp.errors import KcdpError
from kcdp.labels import NUM_CLASSES


@dataclass(frozen=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: as in the graph.
        dtype: a numpy dtype name ("uint8", "float32").
        axes: what each axis means, in order.
        shape: the length of each axis; None where it is free (the batch).
    """

    name: str
    dtype: str
    axes: tuple[str, ...]
    shape: tuple[int | None, ...]

    def describe(self) -> str:
        """``images uint8 [batch, 96, 96, 3]``."""
        dims = (axis if n is None else str(n) for axis, n in zip(self.axes, self.shape, strict=True))
        return f"{self.name} {self.dtype} [{', '.join(dims)}]"

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TensorSpec:
        """Raises TypeError or KeyError where ``data`` is not what ``dataclasses.asdict`` gave."""
        spec = cls(**{**data, "axes": tuple(data["axes"]), "shape": tuple(data["shape"])})
        lengths_are_whole = all(n is None or (isinstance(n, int) and n > 0) for n in spec.shape)
        names_are_text = all(isinstance(name, str) for name in (spec.name, spec.dtype, *spec.axes))
        if len(spec.axes) != len(spec.shape) or not lengths_are_whole or not names_are_text:
            raise TypeError(f"name {spec.name}, dtype {spec.dtype}, axes {spec.axes}, shape {spec.shape}")
        return spec


@dataclass(frozen=True)
class GraphSpec:
    """The signature of a bundle's graph, in the order of its inputs and outputs."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` is the inverse."""
        return {
            side: [{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(t).items()} for t in tensors]
            for side, tensors in (("inputs", self.inputs), ("outputs", self.outputs))
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GraphSpec:
        try:
            sides = {side: tuple(TensorSpec.from_dict(t) for t in data[side]) for side in data}
            return cls(**sides)
        except (KeyError, TypeError) as error:
            raise KcdpError(f"the graph's description is damaged ({error!r})", fix="export the bundle again") from None


def tagging_graph(
    size: int, *, batch: int | None = None, knowledge: tuple[int, int] | None = None, scaled: bool = False
) -> GraphSpec:
    """uint8 NHWC RGB pictures in, six logits out.

    Args:
        size: side of the pictures.
        batch: a fixed number of pictures; None: free.
        knowledge: number and width of the knowledge tokens, where the graph takes them as a second input.
        scaled: the pictures come as float32 NCHW, scaled already, as in a plain export.
    """
    images = TensorSpec("images", "uint8", ("batch", "height", "width", "channel"), (batch, size, size, 3))
    if scaled:
        images = TensorSpec("images", "float32", ("batch", "channel", "height", "width"), (batch, 3, size, size))
    inputs = [images]
    if knowledge is not None:
        inputs.append(TensorSpec("knowledge", "float32", ("batch", "token", "width"), (batch, *knowledge)))
    logits = TensorSpec("logits", "float32", ("batch", "class"), (batch, NUM_CLASSES))
    return GraphSpec(tuple(inputs), (logits,))


#: Kinds of nodes of ONNX Runtime that multiply, fused ones included.
PRODUCTS = frozenset({
    "Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv", "GroupedConv", "ConvInteger", "QLinearConv",
    "QLinearConvTranspose", "MatMul", "FusedMatMul", "FusedMatMulActivation", "GemmFastGelu", "Gemm", "FusedGemm",
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm", "MatMulNBits",
    "TransposeMatMul", "Einsum", "Attention", "QAttention", "MultiHeadAttention", "PackedMultiHeadAttention",
    "GroupQueryAttention",
})  # fmt: skip

#: precision -> what an ONNX Runtime session of such a graph is told beside the usual. 8-bit weights are widened once,
#: when the graph is opened; left to itself it widens them anew in every run.
SESSION_ENTRIES: MappingProxyType[str, MappingProxyType[str, str]] = MappingProxyType({
    "int8-weights": MappingProxyType({"session.disable_quant_qdq": "1"}),
})  # fmt: skip


@dataclass(frozen=True)
class Tolerance:
    """How far an exported graph may be from the PyTorch model.

    Attributes:
        rtol, atol: element-wise on logits: ``|got - want| <= atol + rtol * |want|``; None where single numbers are left
            free.
        logits_error: greatest root mean square of the logits' differences over that of the reference's logits, all
            pictures together.
        level_cosine: least cosine between a picture's features (of any level, and v) and the reference's. A cosine
            does not see a factor, so the length may differ by as much as the cosine allows across it:
            ``sqrt(2 (1 - level_cosine))``.
        map_cosine: the same for attention maps.
        probability: greatest mean over the pictures of how far any of their six probabilities moves.
        decisions: least share of pictures, 0..1, whose strongest class is the same. Near ties count like all others.
    """

    rtol: float | None
    atol: float | None
    logits_error: float
    level_cosine: float
    map_cosine: float
    probability: float
    decisions: float


#: precision -> tolerance of the parity gate. Shares in the comments: a trained model of the preset edge on 200 faces.
TOLERANCES: MappingProxyType[str, Tolerance] = MappingProxyType({
    # Only the order of summation differs.
    "float32": Tolerance(
        rtol=1e-4, atol=1e-4, logits_error=1e-4, level_cosine=0.99999, map_cosine=0.99999, probability=1e-4,
        decisions=1.0,
    ),
    # Rounding to 11 and to 8 bits after every node; logits are differences of large features, so theirs is the largest
    # error: 0.2 % and 1.5 %.
    "float16": Tolerance(
        rtol=None, atol=None, logits_error=0.01, level_cosine=0.9995, map_cosine=0.9995, probability=0.005,
        decisions=0.995,
    ),
    "bfloat16": Tolerance(
        rtol=None, atol=None, logits_error=0.03, level_cosine=0.9995, map_cosine=0.9995, probability=0.01,
        decisions=0.995,
    ),
    # Weights and activations of 8 bits, sensitive layers left out: a model whose two best classes are often close
    # changes some answers (2 %; logits off by 2.3 %). The floors keep it the same model; what it is worth, the accuracy
    # before and after and the list of changed answers say.
    "int8": Tolerance(
        rtol=None, atol=None, logits_error=0.1, level_cosine=0.99, map_cosine=0.99, probability=0.03, decisions=0.95,
    ),
    # Weights of 8 bits, a scale for each output channel: features are nearer, but nothing is left out (3 % changed,
    # logits off by 3.3 %).
    "int8-weights": Tolerance(
        rtol=None, atol=None, logits_error=0.06, level_cosine=0.999, map_cosine=0.999, probability=0.03,
        decisions=0.95,
    ),
})  # fmt: skip
