"""Does the engine compute in the type that the bundle promises?

A graph of float32 builds without a word, and the engine is merely slow; so the parsed network and then the builder's
report are searched for matrix products and convolutions of another type.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from kcdp.errors import KcdpError
from kcdp.export.engine.layer_report import Kernel
from kcdp.export.engine.network import Layer

#: Layers of the network that are matrix products: nearly all of the arithmetic.
PRODUCTS = frozenset({"MATRIX_MULTIPLY", "CONVOLUTION", "DECONVOLUTION", "EINSUM"})

#: precision of a bundle -> the types of its products, as the network spells them. Precisions that are not named here
#: (float32, weights alone in int8) promise no type.
PROMISED: Mapping[str, frozenset[str]] = {
    "float16": frozenset({"HALF"}),
    "bfloat16": frozenset({"BF16"}),
    "int8": frozenset({"INT8"}),
}
#: Quantised exports leave sensitive layers as they are, so there only the presence of int8 is asked for.
_PARTLY = frozenset({"int8"})
#: As the builder's report spells them.
_FLOAT32, _INT8 = "Float", "Int8"


class EngineTypeError(KcdpError):
    """The engine would compute in another type than its bundle says; ``layers`` names all of them."""

    def __init__(self, layers: list[str], precision: str) -> None:
        more = f" (and {len(layers) - 1} more)" if len(layers) > 1 else ""
        super().__init__(
            f"{layers[0]}{more} in a bundle of {precision}", fix="no engine was kept; export the bundle again"
        )
        self.layers = layers


@dataclass(frozen=True)
class Promise:
    """What a bundle says of its types.

    Attributes:
        precision: the default ("float16").
        islands: names of the ONNX nodes that stay in float32 on purpose.
    """

    precision: str
    islands: frozenset[str]

    @classmethod
    def of(cls, precision: Mapping[str, str]) -> Promise:
        """From a manifest's ``precision``: {"default": "float16", "node_softmax": "float32"}."""
        islands = {name for name, dtype in precision.items() if name != "default" and dtype == "float32"}
        return cls(precision["default"], frozenset(islands))


def check_network(layers: list[Layer], promise: Promise) -> None:
    """Raises EngineTypeError where a product of the network has another type than promised."""
    products = [layer for layer in layers if layer.kind in PRODUCTS]
    promised = PROMISED.get(promise.precision)
    if promised is None:
        return
    if not any(layer.dtype in promised for layer in products):
        has = ", ".join(sorted({layer.dtype for layer in products})) or "none at all"
        none = f"no matrix product or convolution is {' or '.join(promised)} ({has})"
        raise EngineTypeError([none], promise.precision)
    if promise.precision in _PARTLY:
        return
    wrong = [
        f"layer {layer.name!r} ({layer.kind}) is {layer.dtype}"
        for layer in products
        if layer.dtype not in promised and not _declared((layer.name, *layer.nodes), promise.islands)
    ]
    if wrong:
        raise EngineTypeError(wrong, promise.precision)


def check_kernels(kernels: list[Kernel] | None, promise: Promise) -> None:
    """Raises EngineTypeError where a matrix product or convolution of the engine takes or gives float32.

    Args:
        kernels: None where the builder's report could not be read; then nothing is said.
    """
    if promise.precision not in PROMISED or kernels is None:
        return
    products = [kernel for kernel in kernels if kernel.is_product]
    if promise.precision in _PARTLY:
        if not any(kernel.inputs[:1] == (_INT8,) for kernel in products):
            raise EngineTypeError([f"no kernel of a matrix product or convolution takes {_INT8}"], promise.precision)
        return
    wrong = [
        f"kernel {kernel.name!r} ({kernel.kind}) is {_FLOAT32}"
        for kernel in products
        if _FLOAT32 in (*kernel.inputs[:1], *kernel.dtypes) and not _declared(kernel.nodes, promise.islands)
    ]
    if wrong:
        raise EngineTypeError(wrong, promise.precision)


def products_by_type(layers: list[Layer]) -> dict[str, int]:
    """Matrix products and convolutions of the network: {"HALF": 171}."""
    types = [layer.dtype for layer in layers if layer.kind in PRODUCTS]
    return {dtype: types.count(dtype) for dtype in sorted(set(types))}


def _declared(names: Collection[str], islands: frozenset[str]) -> bool:
    return any(name in islands for name in names)
