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
_OUTPUTS = re.compile(r", Outputs: \[(?P<outputs>.*?)\](?=, TacticName|, StreamId|, Metadata|$)")
_DTYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclass(frozen=True)
class Kernel:
    """One kernel of the engine.

    Attributes:
        name: the builder's.
        kind: "gemm", "correlation", "kgen", ...
        dtypes: of its outputs ("Half", "Float"). Its constants do not count: scalars are kept in float32.
        nodes: names of the ONNX nodes that it stands for.
    """

    name: str
    kind: str
    dtypes: tuple[str, ...]
    nodes: tuple[str, ...]


def parse_report(text: str | None) -> list[Kernel] | None:
    """The kernels of a message that begins with "Layers:"; None where there is none or it has another form."""
    kernels = []
    for line in (text or "").splitlines():
        found = _LINE.match(line)
        if found is None:
            continue
        outputs = _OUTPUTS.search(line)
        if outputs is None:
            return None
        dtypes = tuple(_DTYPE.findall(outputs["outputs"]))
        kernels.append(Kernel(found["name"], found["kind"], dtypes, tuple(_NODE.findall(line))))
    return kernels or None


def count_kernels(kernels: list[Kernel]) -> Mapping[str, int]:
    """{"correlation Half": 70, "kgen Half Float": 12, ...}, most frequent first."""
    return dict(Counter(" ".join((k.kind, *k.dtypes)) for k in kernels).most_common())
