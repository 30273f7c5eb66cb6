"""ONNX Runtime: on the processor, on a CUDA GPU, and with half precision rounded where a processor would not."""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from kcdp.errors import KcdpError, require
from kcdp.export.fusions.unfusing import expand_for_cpu
from kcdp.export.precision.layers import weight_bytes
from kcdp.export.running.rounding import WEIGHTS, round_in_float32
from kcdp.export.running.runner import DoesNotRun, Executed, Feed, Port, Runner, executed, first_line, threads_or_all
from kcdp.files import room_in
from kcdp.graph import PRODUCTS, SESSION_ENTRIES

MORE_ROOM = "free some space, or set TMPDIR to a folder that has it"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
#: ONNX Runtime's names of types -> numpy's.
_DTYPES = {"float": "float32", "double": "float64", "string": "str"}


class Session(Runner):
    """A graph on one execution provider.

    Args:
        path: the .onnx file; its weights file, if any, beside it.
        precision: of the graph, as in the tolerance table.
        threads: None: all cores.

    Raises:
        KcdpError: the package or its provider is not there.
        DoesNotRun: the graph cannot be opened, or another provider was taken.
    """

    name = "onnxruntime"
    provider = CPU

    def __init__(self, path: Path, precision: str, threads: int | None = None) -> None:
        reason = self.absent()
        if reason is not None:
            raise reason
        self.path, self.precision, self.threads = Path(path), precision, threads_or_all(threads)
        self._library = require("onnxruntime", "runtime")
        self._executed: Executed | None = None
        with room_in(Path(tempfile.gettempdir()), MORE_ROOM):
            self._traces = tempfile.TemporaryDirectory(prefix="kcdp-")
        try:
            self._session: Any = self._open()
            taken = self._session.get_providers()
            if taken[:1] != [self.provider]:
                raise DoesNotRun(f"ONNX Runtime took {', '.join(taken) or 'no provider'}", self.provider)
        except BaseException:
            self.close()
            raise
        self.inputs = tuple(map(_port, self._session.get_inputs()))
        self.outputs = tuple(map(_port, self._session.get_outputs()))

    @classmethod
    def absent(cls) -> KcdpError | None:
        """Why it cannot be used here; None: it can."""
        try:
            library = require("onnxruntime", "runtime" if cls.provider == CPU else "gpu")
        except KcdpError as error:
            return error
        providers = library.get_available_providers()
        if cls.provider in providers:
            return None
        return KcdpError(
            f"the runtime {cls.name!r}: this ONNX Runtime {library.__version__} has {', '.join(providers)}",
            cls.provider, 'on a machine with a CUDA GPU run: pip uninstall onnxruntime; pip install "kcdp[gpu]"',
        )  # fmt: skip

    @classmethod
    def has_bfloat16(cls) -> bool:
        """Whether products run in bfloat16."""
        return cls.provider != CPU

    def executed(self) -> Executed | None:
        return self._executed

    def close(self) -> None:
        self._session = None
        self._traces.cleanup()

    def _graph(self) -> Path:
        """The file that is opened."""
        return self.path

    def _open(self) -> Any:
        options = self._library.SessionOptions()
        options.log_severity_level = 4  # errors arrive as exceptions
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.enable_profiling = True  # of the first run: the only account of what was executed
        options.profile_file_prefix = str(Path(self._traces.name) / "trace")
        for key, value in SESSION_ENTRIES.get(self.precision, {}).items():
            options.add_session_config_entry(key, value)
        providers = [self.provider] if self.provider == CPU else [self.provider, CPU]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of, the caller asserts
                session = self._library.InferenceSession(str(self._graph()), options, providers=providers)
        except KcdpError:
            raise
        except Exception as error:  # the library's exceptions share no base class
            raise DoesNotRun(f"ONNX Runtime cannot open {self.path.name} ({first_line(error)})") from error
        session.disable_fallback()
        return session

    def _run(self, feed: Feed) -> dict[str, np.ndarray]:
        names = [port.name for port in self.outputs]
        try:
            values = self._session.run(names, dict(feed))
        except Exception as error:
            count = max(len(array) for array in feed.values())
            raise DoesNotRun(f"ONNX Runtime fails on a batch of {count} ({first_line(error)})") from error
        if self._executed is None:
            self._executed = _read_trace(Path(self._session.end_profiling()), self.provider)
        return dict(zip(names, values, strict=True))

    def _describe(self) -> dict[str, Any]:
        return {"version": self._library.__version__, "place": self.provider, "threads": self.threads}


class CudaSession(Session):
    """The same on a GPU. Shapes may be computed on the processor; a product there is a failure."""

    name = "onnxruntime-cuda"
    provider = CUDA


class UnfusedSession(Session):
    """A graph made for CUDA on a processor, which lacks most of its fused operators: they are written out first."""

    name = "unfused"

    def _graph(self) -> Path:
        target = Path(self._traces.name) / "rewritten.onnx"
        model = ir.load(self.path)  # what goes wrong here, _open reports
        self._rewrite(model)
        with room_in(target.parent.parent, MORE_ROOM, weight_bytes(model.graph)):
            ir.save(model, target, external_data=WEIGHTS)
        return target

    def _rewrite(self, model: ir.Model) -> None:
        """What is opened, in place."""
        self.written_out = expand_for_cpu(model)

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "written_out": self.written_out}


class RoundingSession(UnfusedSession):
    """A typed half-precision graph on a processor, every result rounded to the type that the graph gives it.

    ONNX Runtime and OpenVINO widen float16 to float32 and leave out the roundings between, so that a graph that
    overflows on a GPU looks well there.
    """

    name = "rounding"

    @classmethod
    def has_bfloat16(cls) -> bool:
        """As if."""
        return True

    def failures(self) -> list[str]:
        return [] if self.rounded else ["nothing is rounded: the graph holds no half precision"]

    def _rewrite(self, model: ir.Model) -> None:
        super()._rewrite(model)
        self.rounded = round_in_float32(model)

    def _describe(self) -> dict[str, Any]:
        return {**super()._describe(), "rounded": self.rounded}


def _port(value: Any) -> Port:
    name = value.type.removeprefix("tensor(").removesuffix(")")
    return Port(value.name, _DTYPES.get(name, name), tuple(n if isinstance(n, int) else None for n in value.shape))


def _read_trace(path: Path, provider: str) -> Executed:
    """One row for each node of the first run, from the events that ONNX Runtime writes.

    Raises:
        KcdpError: they are not whole; ONNX Runtime says nothing where the disk is full.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        received = f"what ONNX Runtime wrote to {path.parent.parent} of its run is cut off"
        raise KcdpError(received, "room for it", MORE_ROOM) from error
    rows = []
    for event in events:
        facts = event.get("args", {})
        if event.get("cat") == "Node" and "op_name" in facts and event.get("name", "").endswith("_kernel_time"):
            types = [next(iter(entry)) for entry in facts.get("input_type_shape", []) if entry]
            dtype = types[0] if types else ""
            rows.append((facts["op_name"], _DTYPES.get(dtype, dtype), facts.get("provider", "")))
    path.unlink(missing_ok=True)
    return executed(rows, "" if provider == CPU else provider, PRODUCTS)
