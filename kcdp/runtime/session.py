"""Sessions: one graph, opened on one kind of runtime, that turns pictures into logits."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError, require
from kcdp.graph import TensorSpec, tagging_graph


class NonFiniteLogits(KcdpError):
    """The graph gave NaN or infinity for some pictures of a batch.

    Attributes:
        rows: which pictures of the batch.
        logits: float32 [N, 6], all of the batch, the bad rows included.
    """

    def __init__(self, rows: Sequence[int], logits: np.ndarray) -> None:
        self.rows, self.logits = tuple(rows), logits
        super().__init__(
            f"the graph gave logits that are not finite for picture {', '.join(map(str, rows))} of the batch",
            "finite numbers",
            "export the bundle again in float32",
        )


class Session(ABC):
    """Checks what goes in and what comes out; a subclass implements ``_run``, ``_describe`` and ``_close``.

    ``run`` may be called from several threads at once. A session is a context manager.

    Args:
        bundle: an opened bundle.

    Raises:
        KcdpError: the bundle's graph takes or gives something else than pictures and logits.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.size = bundle.manifest.preprocess.size
        want, got = tagging_graph(self.size), bundle.manifest.graph
        if got != want:
            raise KcdpError(
                f"{bundle.path} describes its graph as {_signature(got.inputs)} -> {_signature(got.outputs)}",
                f"{_signature(want.inputs)} -> {_signature(want.outputs)}",
                "export the bundle again",
            )
        self._input, self._output = got.inputs[0], got.outputs[0]
        self._closed = False

    def describe(self) -> dict[str, Any]:
        """What runs where, in plain JSON types: backend, version, provider, threads, precision, input, output."""
        return {
            **self._describe(),
            "precision": str(self.bundle.manifest.precision.get("default", "unknown")),
            "input": self._input.describe(),
            "output": self._output.describe(),
        }

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits of a batch.

        Args:
            images: uint8 [N, size, size, 3], height-width-channel, RGB, 0..255, as ``PreprocessSpec`` makes
                them. N may be 0.

        Returns:
            float32 [N, 6] logits, columns in the order of ``kcdp.labels.LABELS``.

        Raises:
            KcdpError: wrong dtype or shape, a closed session, or a failure inside the runtime library.
            NonFiniteLogits: some logits are NaN or infinite.
        """
        self.check(images)
        if self._closed:
            raise KcdpError(f"the session of {self.bundle.path} is closed", fix="open the bundle again")
        if len(images) == 0:
            return np.empty((0, len(self.bundle.manifest.labels)), np.float32)
        logits = self._run(np.ascontiguousarray(images))
        expected = (len(images), len(self.bundle.manifest.labels))
        if logits.dtype != np.float32 or logits.shape != expected:
            raise KcdpError(
                f"{self.bundle.model_path} gave {logits.dtype} {list(logits.shape)}",
                f"float32 {list(expected)}",
                "export the bundle again",
            )
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise NonFiniteLogits([int(row) for row in np.flatnonzero(~finite)], logits)
        return logits

    def check(self, images: np.ndarray) -> None:
        """Raises KcdpError unless ``images`` is what ``run`` takes."""
        expected = f"uint8 [N, {self.size}, {self.size}, 3]"
        if not isinstance(images, np.ndarray):
            raise KcdpError(f"images: received {type(images).__name__}", f"a numpy array, {expected}")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (self.size, self.size, 3):
            raise KcdpError(f"images: received {images.dtype} {list(images.shape)}", expected)

    def close(self) -> None:
        """Free the graph. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *details: Any) -> None:
        self.close()

    @abstractmethod
    def _run(self, images: np.ndarray) -> np.ndarray:
        """Contiguous uint8 [N >= 1, size, size, 3] in, float32 [N, 6] out."""

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """backend, version, provider, threads."""

    @abstractmethod
    def _close(self) -> None:
        """Called once."""


class OnnxRuntimeSession(Session):
    """ONNX Runtime on the CPU.

    Args:
        bundle: an opened bundle.
        threads: how many threads one ``run`` may use; None leaves it to ONNX Runtime (all cores).

    Raises:
        KcdpError: onnxruntime is not installed, the graph is damaged, or it is not what the manifest describes.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle)
        if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
            raise KcdpError(f"threads is {threads!r}", "a whole number from 1, or None for all cores")
        self.threads = threads
        self._library = require("onnxruntime", "runtime")
        self._session: Any = self._open()
        try:
            self._compare(self._session.get_inputs(), bundle.manifest.graph.inputs, "input")
            self._compare(self._session.get_outputs(), bundle.manifest.graph.outputs, "output")
        except KcdpError:
            self.close()
            raise

    def _open(self) -> Any:
        options = self._library.SessionOptions()
        options.log_severity_level = 4  # errors arrive as exceptions; ONNX Runtime would print them as well
        options.inter_op_num_threads = 1
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        path = self.bundle.model_path
        try:
            return self._library.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library's exceptions share no base class
            raise KcdpError(
                f"ONNX Runtime {self._library.__version__} cannot open {path} ({_first_line(error)})",
                "a sound ONNX graph",
                'export the bundle again, or run: pip install -U "kcdp[runtime]"',
            ) from error

    def _compare(self, actual: Sequence[Any], declared: Sequence[TensorSpec], side: str) -> None:
        """Order: names, dtypes, shapes; the first difference is reported."""
        path, again = self.bundle.model_path, "export the bundle again"
        got_names, want_names = [tensor.name for tensor in actual], [spec.name for spec in declared]
        if got_names != want_names:
            raise KcdpError(f"{path} has the {side}s {got_names}", f"{want_names} as in the manifest", again)
        for tensor, spec in zip(actual, declared, strict=True):
            dtype = _DTYPES.get(tensor.type, tensor.type)
            shape = tuple(n if isinstance(n, int) else None for n in tensor.shape)
            if (dtype, shape) != (spec.dtype, spec.shape):
                dims = ", ".join("?" if n is None else str(n) for n in shape)
                raise KcdpError(
                    f"{path} has the {side} {tensor.name} {dtype} [{dims}]", f"{spec.describe()} as in the manifest",
                    again,
                )  # fmt: skip

    def _run(self, images: np.ndarray) -> np.ndarray:
        session = self._session
        try:
            (logits,) = session.run([self._output.name], {self._input.name: images})
        except Exception as error:
            raise KcdpError(
                f"ONNX Runtime failed on {self.bundle.model_path} with {len(images)} pictures ({_first_line(error)})",
                fix="try a smaller batch, or export the bundle again",
            ) from error
        return np.asarray(logits)

    def _describe(self) -> dict[str, Any]:
        return {
            "backend": "onnxruntime",
            "version": self._library.__version__,
            "provider": "CPUExecutionProvider",
            "threads": self.threads,
        }

    def _close(self) -> None:
        self._session = None


#: ONNX Runtime's type names -> numpy's.
_DTYPES = {
    "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16", "tensor(float)": "float32",
    "tensor(double)": "float64", "tensor(bool)": "bool", "tensor(string)": "str",
}  # fmt: skip


def _signature(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {['N' if n is None else n for n in t.shape]}" for t in tensors) or "nothing"


def _first_line(error: Exception) -> str:
    """The library's message without its error code and its source file."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
