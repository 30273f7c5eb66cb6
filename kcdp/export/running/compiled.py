"""OpenVINO on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from kcdp.errors import KcdpError, require
from kcdp.export.running.runner import DoesNotRun, Executed, Feed, Port, Runner, executed, first_line, threads_or_all

PRODUCTS = frozenset({
    "Convolution", "GroupConvolution", "Deconvolution", "FullyConnected", "MatMul", "MHA", "ScaledDotProductAttention",
    "LLMMLP", "QKVProjection",
})  # fmt: skip
_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8",
    "u16": "uint16", "i16": "int16", "i32": "int32", "i64": "int64", "u4": "uint4", "i4": "int4", "boolean": "bool",
}  # fmt: skip


class CompiledGraph(Runner):
    """A graph compiled for the processor, in the type that its precision promises and no other.

    OpenVINO's own default is bfloat16 wherever the processor has it, whatever the graph says; so the type is always
    given: bfloat16 for a float32 graph that is to run in it, even if its weights are stored so; float32 else. A graph
    whose own nodes give bfloat16 keeps them, and its float32 islands with them, under float32.

    Args:
        path: the .onnx file; its weights file, if any, beside it.
        precision: as in the tolerance table.
        threads: None: all cores.

    Raises:
        KcdpError: the package is not there, or the processor has no arithmetic of this type.
        DoesNotRun: the graph cannot be opened.
    """

    name = "openvino"

    def __init__(self, path: Path, precision: str, threads: int | None = None) -> None:
        reason = self.absent()
        if reason is not None:
            raise reason
        self.path, self.precision, self.threads = Path(path), precision, threads_or_all(threads)
        self._library = require("openvino", "openvino")
        core = self._library.Core()
        try:
            graph = ir.load(self.path).graph
        except Exception as error:
            raise DoesNotRun(f"OpenVINO cannot open {self.path.name} ({first_line(error)})") from error
        asked = self._asked(any(v.dtype == ir.DataType.BFLOAT16 for node in graph for v in node.outputs))
        settings = {"INFERENCE_NUM_THREADS": self.threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": asked}
        try:
            self._compiled: Any = core.compile_model(core.read_model(str(self.path)), "CPU", settings)
        except Exception as error:
            raise DoesNotRun(f"OpenVINO cannot open {self.path.name} ({first_line(error)})") from error
        self.hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if self.hint != asked:
            raise KcdpError(
                f"OpenVINO took {_DTYPES.get(self.hint, self.hint)} instead of {_DTYPES[asked]}",
                "a processor that computes in it", "check this precision on another machine",
            )  # fmt: skip
        self.inputs = _ports(self._compiled.inputs, graph.inputs)
        self.outputs = _ports(self._compiled.outputs, graph.outputs)
        self._executed = _executed(self._compiled)

    @classmethod
    def absent(cls) -> KcdpError | None:
        """Why it cannot be used here; None: it can."""
        try:
            require("openvino", "openvino")
        except KcdpError as error:
            return error
        return None

    @classmethod
    def has_bfloat16(cls) -> bool:
        """Whether the processor has it."""
        capabilities = require("openvino", "openvino").Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return "BF16" in capabilities

    def executed(self) -> Executed | None:
        return self._executed

    def close(self) -> None:
        self._compiled = None

    def _asked(self, typed: bool) -> str:
        if self.precision != "bfloat16" or typed:
            return "f32"
        if not self.has_bfloat16():
            raise KcdpError("this processor has no bfloat16", fix="check this precision on a machine that has it")
        return "bf16"

    def _run(self, feed: Feed) -> dict[str, np.ndarray]:
        try:
            found = self._compiled(dict(feed))
        except Exception as error:
            count = max(len(array) for array in feed.values())
            raise DoesNotRun(f"OpenVINO fails on a batch of {count} ({first_line(error)})") from error
        # copied: the arrays are the library's own memory, which the next run overwrites
        return {port.name: np.array(found[i]) for i, port in enumerate(self.outputs)}

    def _describe(self) -> dict[str, Any]:
        version = self._library.__version__.split("-")[0]
        return {"version": version, "place": "CPU", "threads": self.threads, "type": _DTYPES[self.hint]}


class HalvedGraph(CompiledGraph):
    """The same with bfloat16 for whatever the graph computes in float32: OpenVINO's own default where the processor has
    it, so that it is what an app gets that opens an int8 graph and says nothing."""

    name = "openvino-bf16"

    @classmethod
    def absent(cls) -> KcdpError | None:
        reason = super().absent()
        if reason is None and not cls.has_bfloat16():
            reason = KcdpError(f"the runtime {cls.name!r}: this processor has no bfloat16", "AVX-512 bf16 or AMX")
        return reason

    def _asked(self, typed: bool) -> str:
        return "f32" if typed else "bf16"


def _ports(values: Sequence[Any], named: Sequence[ir.Value]) -> tuple[Port, ...]:
    """A value may have several names here, the one of the file and that of a node that was merged into it."""
    ports = []
    for value, original in zip(values, named, strict=True):
        name = str(original.name) if original.name in value.names else value.any_name
        dtype = value.element_type.get_type_name()
        shape = tuple(None if n.is_dynamic else n.get_length() for n in value.partial_shape)
        ports.append(Port(name, _DTYPES.get(dtype, dtype), shape))
    return tuple(ports)


def _executed(compiled: Any) -> Executed:
    rows = []
    for operation in compiled.get_runtime_model().get_ordered_ops():
        facts = operation.get_rt_info()
        kind, dtype = (str(facts[key].value) if key in facts else "" for key in ("layerType", "runtimePrecision"))
        rows.append((kind, _DTYPES.get(dtype, dtype), ""))
    return executed(rows, "", PRODUCTS)
