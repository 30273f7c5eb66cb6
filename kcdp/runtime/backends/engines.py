"""Engines of TensorRT and TensorRT-RTX, run by the package that built them, without PyTorch.

Never run: no GPU was at hand. What needs none is tested: which engine is taken and refused, the calls in their order
with a package and a driver that stand in, and every name that is called against the installed tensorrt-rtx and the
driver's header.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from kcdp.bundle import Bundle
from kcdp.engine_file import MODULES, Place, model_digest, open_engine_description, system_name
from kcdp.errors import KcdpError, require
from kcdp.gpu import find_gpu
from kcdp.runtime.backends.base import ABSENT, UNUSABLE, USABLE, Backend, Status, broken
from kcdp.runtime.backends.device_memory import Card
from kcdp.runtime.backends.engine_choice import EngineBundle, find_engine_file
from kcdp.runtime.backends.options import DEFAULTS, SessionOptions
from kcdp.runtime.session import Session, Tensor, compare_signature

#: An object of either package.
Native: TypeAlias = Any

RTX = "tensorrt-rtx"
#: Types of the packages -> numpy's.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "UINT8": "uint8", "INT8": "int8", "INT32": "int32",
           "INT64": "int64", "BF16": "bfloat16", "BOOL": "bool"}  # fmt: skip


class EngineSession(Session):
    """An engine on one card. Runs of several threads follow one another.

    Args:
        bundle: the bundle that it was built from, or ``bundle_of_engine``.
        options: see ``EngineBackend.options`` for those that count.
        package: a key of ``kcdp.engine_file.MODULES``.
        card: stands in for the card in tests.

    Raises:
        KcdpError: no engine, or one that was changed or built for another place; the package is not installed or
            refuses it; it is not what the manifest describes.
    """

    def __init__(
        self, bundle: Bundle, options: SessionOptions = DEFAULTS, package: str = RTX, card: Card | None = None
    ) -> None:
        super().__init__(bundle)
        self.options, self.package = options, package
        self._trt = require(MODULES[package], package)
        here = place(package, options)
        self.path, _ = find_engine_file(bundle, package, options, here)
        model = None if isinstance(bundle, EngineBundle) else model_digest(bundle.manifest.files)
        self.description = open_engine_description(self.path, model_sha256=model, here=here)
        self._lock, self._errors = threading.Lock(), list[str]()
        self._card = Card(options.device) if card is None else card
        try:
            with self._card.current():
                self._native = load_engine(self._trt, self.path, options.cuda_graph, self._errors)
                inputs, outputs = signature(self._trt, self._native[1])
            compare_signature(bundle.model_path, inputs, bundle.manifest.graph.inputs, "input")
            compare_signature(bundle.model_path, outputs, bundle.manifest.graph.outputs, "output")
        except BaseException:
            self.close()
            raise

    _native: tuple[Native, ...] = ()

    def _run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """A batch of at most the engine's largest at once, a smaller one than its least filled up."""
        count = len(feed["images"])
        profile = self.description.key.profile
        if profile is None:
            return self._batch(feed)
        least, _, largest = profile
        parts = []
        for start in range(0, count, largest):
            part = {name: array[start : start + largest] for name, array in feed.items()}
            short = least - len(part["images"])
            if short > 0:
                part = {name: np.concatenate([a, np.repeat(a[-1:], short, axis=0)]) for name, a in part.items()}
            parts.append(self._batch(part)[: min(largest, count - start)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _batch(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        logits = np.empty((len(feed["images"]), len(self.bundle.manifest.labels)), np.float32)
        context: Native = self._native[2]
        with self._lock, self._card.current():
            for name, array in feed.items():
                address = self._card.reserve(name, array.nbytes)
                if not context.set_input_shape(name, array.shape) or not context.set_tensor_address(name, address):
                    raise self._failed(f"{name} {list(array.shape)}")
                self._card.upload(address, array)
            address = self._card.reserve(self._output.name, logits.nbytes)
            if not context.set_tensor_address(self._output.name, address):
                raise self._failed(self._output.name)
            if not context.execute_async_v3(self._card.stream):
                raise self._failed(f"{len(logits)} pictures")
            self._card.download(logits, address)
            self._card.wait()
        return logits

    def _failed(self, what: str) -> KcdpError:
        return KcdpError(
            f"{self.package} failed on {self.path} with {what} ({_reason(self._errors)})",
            fix="build the engine again: python -m kcdp.export engine BUNDLE",
        )

    def _describe(self) -> dict[str, Any]:
        key = self.description.key
        return {
            "backend": self.package, "version": key.package_version, "provider": f"GPU {self.options.device}",
            "threads": None, "engine": str(self.path), "built_for": key.gpu or ", ".join(key.capabilities) or "any",
        }  # fmt: skip

    def _close(self) -> None:
        with self._card.current():
            self._native = ()  # its tuple holds runtime, engine and context; the last goes first
        self._card.close()


def load_engine(trt: Native, path: Path, cuda_graph: bool, errors: list[str]) -> tuple[Native, ...]:
    """Runtime, engine and execution context, on the calling thread's card.

    Args:
        errors: gets what the package says is wrong, now and in later runs.

    Raises:
        KcdpError: the package refuses the engine, with what it says.
    """
    runtime = trt.Runtime(make_logger(trt, errors))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    context = None
    if engine is not None and cuda_graph:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    elif engine is not None:
        context = engine.create_execution_context()
    if context is None:
        raise KcdpError(
            f"{path} cannot be loaded by {trt.__name__} {trt.__version__} ({_reason(errors)})", "an engine that fits",
            "build it again: python -m kcdp.export engine BUNDLE",
        )  # fmt: skip
    return runtime, engine, context


def signature(trt: Native, engine: Native) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs and outputs of an engine, in its order."""
    sides: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        kind = engine.get_tensor_dtype(name).name
        shape = tuple(None if n < 0 else int(n) for n in engine.get_tensor_shape(name))
        is_output = engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT
        sides[is_output].append((name, _DTYPES.get(kind, kind), shape))
    return sides


def make_logger(trt: Native, errors: list[str]) -> Native:
    """A logger that keeps errors, each on one line, and says nothing."""

    class Errors(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Native, text: str) -> None:
            if severity.name in ("ERROR", "INTERNAL_ERROR"):
                errors.append(" ".join(text.split()))

    return Errors()


def _reason(errors: list[str]) -> str:
    return errors[-1] if errors else "no reason was given"


def place(package: str, options: SessionOptions) -> Place:
    """Where the engine is to run. Raises KcdpError where the package is not installed."""
    return Place(str(require(MODULES[package], package).__version__), find_gpu(options.device), system_name())


class EngineBackend(Backend):
    """One of NVIDIA's two packages."""

    verified = "never run: no GPU was at hand"

    def __init__(self, package: str) -> None:
        self.name, self.package = package, package
        self.what = "an engine of TensorRT-RTX" if package == RTX else "an engine of TensorRT"
        graph = {"cuda_graph"} if package == RTX else set()
        self.options = frozenset({"device", "cache", "engine", *graph})

    def status(self, options: SessionOptions) -> Status:
        install = f'run: pip install "kcdp[{self.package}]"'
        try:
            here = place(self.package, options)
        except KcdpError as error:
            return Status(ABSENT, "", error.received, install)
        except Exception as error:
            return Status(UNUSABLE, "", broken(error), install)
        if here.gpu is None:
            return Status(UNUSABLE, here.package_version, f"no NVIDIA GPU {options.device} was found",
                          "install NVIDIA's driver")  # fmt: skip
        return Status(USABLE, here.package_version)

    def unfit(self, bundle: Bundle, options: SessionOptions) -> KcdpError | None:
        try:
            find_engine_file(bundle, self.package, options, place(self.package, options))
        except KcdpError as error:
            return error
        return None

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        return EngineSession(bundle, options, self.package)
