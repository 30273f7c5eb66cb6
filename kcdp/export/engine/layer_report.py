"""The builder's layer report: which kernels an engine consists of.

Reading it from the log is the only way without a GPU, on which the package's own inspector insists. The text is no
stable interface; where it cannot be read, the answer is None and not a guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[\w ]+),")
_INPUTS = re.compile(r", Inputs: \[(?P<inputs>.*?)\], (?:Constants|Outputs): ")
_OUTPUTS = re.compile(r", Outputs: \[(?P<outputs>.*?)\](?=, TacticName|, StreamId|, Metadata|$)")
_DTYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
#: Kinds of kernels that are matrix products or convolutions, in the words of both packages.
_PRODUCT = re.compile(r"gemm|correlation|conv|matmul|matrix", re.IGNORECASE)


@dataclass(frozen=True)
class Kernel:
    """One kernel of the engine.

    Attributes:
        name: the builder's.
        kind: "gemm", "correlation", "kgen", ...
        inputs, dtypes: types of its inputs and outputs ("Half", "Float"). Constants do not count: scalars are float32.
        nodes: names of the ONNX nodes that it stands for.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    dtypes: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def is_product(self) -> bool:
        """A matrix product or convolution."""
        return _PRODUCT.search(self.kind) is not None

    @property
    def label(self) -> str:
        """ "correlation Half", "kgen Half Float"; a product of other inputs says so: "gemm Int8 to Float"."""
        given = self.inputs[:1] if self.is_product and self.inputs[:1] != self.dtypes[:1] else ()
        return " ".join((self.kind, *given, *(("to",) if given else ()), *self.dtypes))


def parse_report(text: str | None) -> list[Kernel] | None:
    """The kernels of a message that begins with "Layers:"; None where there is none or it has another form."""
    kernels = []
    for line in (text or "").splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        inputs, outputs = _INPUTS.search(line), _OUTPUTS.search(line)
        if inputs is None or outputs is None:
            return None
        given, made = _DTYPE.findall(inputs["inputs"]), _DTYPE.findall(outputs["outputs"])
        nodes = tuple(_NODE.findall(line))
        kernels.append(Kernel(found["name"], found["kind"], tuple(given), tuple(made), nodes))
    return kernels or None


def count_kernels(kernels: list[Kernel]) -> Mapping[str, int]:
    """{"correlation Half": 70, "kgen Half Float": 12, ...}, most frequent first."""
    return dict(Counter(kernel.label for kernel in kernels).most_common())
