"""From an ONNX file to the package's network, and what stands in that network."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kcdp.errors import KcdpError
from kcdp.export.engine.messages import Messages, make_logger, one_line
from kcdp.export.engine.package import Native, Package

_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
#: Layers that hand their only input on: a weight that was dequantised before them still counts as quantised.
TRANSPARENT = frozenset({"SHUFFLE", "SQUEEZE", "UNSQUEEZE", "IDENTITY"})
#: Layers whose output is a number that was rounded to eight bits.
QUANTISED = "DEQUANTIZE"


@dataclass(frozen=True)
class Layer:
    """One layer of the parsed network, before anything was fused.

    Attributes:
        name: the ONNX node's where the parser kept it.
        kind: "CONVOLUTION", "MATRIX_MULTIPLY", ...
        dtype: of its first output ("HALF"); "INT8" for a layer whose inputs are all dequantised, which runs in int8.
        nodes: names of the ONNX nodes that it stands for.
    """

    name: str
    kind: str
    dtype: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class ParsedNetwork:
    """A network and all that must live as long as it does.

    Attributes:
        package: that it belongs to.
        builder, network: the package's objects.
        messages: of parsing and, later, of building.
        keep: parser and logger.
    """

    package: Package
    builder: Native
    network: Native
    messages: Messages
    keep: tuple[Native, ...]

    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every input; -1 where an axis is free."""
        network = self.network
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        return {tensor.name: tuple(tensor.shape) for tensor in inputs}

    def largest_tensor(self) -> tuple[str, int]:
        """The layer of the largest output, and how many numbers that has: for a picture, where the batch is free."""
        network = self.network
        found = ("", 0)
        for i in range(network.num_layers):
            layer: Native = network.get_layer(i)
            for j in range(layer.num_outputs):
                shape = tuple(layer.get_output(j).shape)
                numbers = math.prod(n for n in shape if n >= 0)
                if numbers > found[1]:
                    found = (str(layer.name), numbers)
        return found

    def layers(self) -> list[Layer]:
        """All layers in order."""
        network = self.network
        found: list[Layer] = []
        dequantised: set[str] = set()
        for i in range(network.num_layers):
            layer: Native = network.get_layer(i)
            inputs = [tensor.name for j in range(layer.num_inputs) if (tensor := layer.get_input(j)) is not None]
            output = layer.get_output(0)
            kind = str(layer.type.name)
            quantised = bool(inputs) and all(name in dequantised for name in inputs[:2])
            if kind == QUANTISED or (kind in TRANSPARENT and inputs[:1] and inputs[0] in dequantised):
                dequantised.add(output.name)
            dtype = "INT8" if quantised and len(inputs) > 1 and kind not in TRANSPARENT else str(output.dtype.name)
            nodes = tuple(_NODE.findall(layer.metadata or ""))
            found.append(Layer(str(layer.name), kind, dtype, nodes))
        return found


def parse_graph(package: Package, path: Path) -> ParsedNetwork:
    """Read an ONNX file; weights in a file beside it are found there.

    Raises:
        KcdpError: the package cannot take the graph; the node, its operator and the reason are named.
    """
    trt: Native = package.module
    messages = Messages()
    logger = make_logger(trt, messages)
    builder = trt.Builder(logger)
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        errors = [_describe(parser.get_error(i)) for i in range(parser.num_errors)] or [messages.reason()]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise KcdpError(
            f"{package.label} cannot take {path.name}: {errors[0]}{more}",
            fix="export for it: python -m kcdp.export RUN --target tensorrt --precision fp16 --out NAME.kcdp",
        )
    return ParsedNetwork(package, builder, network, messages, (parser, logger))


def strongly_typed(trt: Native) -> int:
    """Flags of a network whose types are the graph's: a must on 10, the only kind from 11 on."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def count_layers(layers: list[Layer]) -> Mapping[str, int]:
    """{"CONVOLUTION HALF": 70, ...}, most frequent first."""
    return dict(Counter(f"{layer.kind} {layer.dtype}" for layer in layers).most_common())


def _describe(error: Native) -> str:
    operator, name = error.node_operator(), error.node_name()
    kind = str(error.code().name).lower().replace("_", " ")  # "unsupported node", which may be all there is to say
    reason = one_line(error.desc()) if error.desc() != "false" else ""
    said = ": ".join(filter(None, (kind if kind.startswith("unsupported") else "", reason))) or kind
    return f"node {name!r} ({operator}): {said}" if operator else said
