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


def tagging_graph(size: int) -> GraphSpec:
    """uint8 NHWC RGB pictures in, six logits out, batch free."""
    images = TensorSpec("images", "uint8", ("batch", "height", "width", "channel"), (None, size, size, 3))
    logits = TensorSpec("logits", "float32", ("batch", "class"), (None, NUM_CLASSES))
    return GraphSpec((images,), (logits,))


@dataclass(frozen=True)
class Tolerance:
    """How far an exported graph may be from the PyTorch model.

    Attributes:
        rtol, atol: element-wise on logits: ``|got - want| <= atol + rtol * |want|``.
        level_cosine: least cosine between a picture's feature level and the reference's.
        decisions: least share of pictures, 0..1, whose strongest class is the same.
    """

    rtol: float
    atol: float
    level_cosine: float
    decisions: float


#: precision -> tolerance of the parity gate.
TOLERANCES: MappingProxyType[str, Tolerance] = MappingProxyType({
    "float32": Tolerance(rtol=1e-4, atol=1e-4, level_cosine=0.99999, decisions=1.0),
})  # fmt: skip
