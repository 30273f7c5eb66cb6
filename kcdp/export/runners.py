"""The runtimes of the parity gate by name: which there are, which of them work here, and a graph opened on one.

A runtime that would compute elsewhere, or in another type, than it was asked to is an error, never a fallback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from kcdp.errors import KcdpError, nearest
from kcdp.export.running.compiled import CompiledGraph, HalvedGraph
from kcdp.export.running.runner import Runner
from kcdp.export.running.sessions import CudaSession, RoundingSession, Session, UnfusedSession


class Runtime(Protocol):
    """A class of runners."""

    def __call__(self, path: Path, precision: str, threads: int | None = None) -> Runner:
        """Open a graph."""

    def absent(self) -> KcdpError | None:
        """Why it cannot be used here; None: it can."""

    def has_bfloat16(self) -> bool:
        """Whether products run in bfloat16, or as if; asked only where it is not absent."""


#: name -> class. The last two are no runtimes of a device, but ONNX Runtime on a processor with a rewritten copy:
#: operators fused for CUDA written out, and half precision rounded as a GPU does.
RUNTIMES: Mapping[str, Runtime] = MappingProxyType({
    "onnxruntime": Session, "openvino": CompiledGraph, "openvino-bf16": HalvedGraph, "onnxruntime-cuda": CudaSession,
    "unfused": UnfusedSession, "rounding": RoundingSession,
})  # fmt: skip


def available() -> tuple[str, ...]:
    """Names of the runtimes that work on this machine."""
    return tuple(name for name, runtime in RUNTIMES.items() if runtime.absent() is None)


def check_runtime(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        KcdpError: there is none, or it does not work here; the message says what is missing.
    """
    if name not in RUNTIMES:
        raise KcdpError(f"runtime {name!r}{nearest(name, RUNTIMES)}", f"one of {', '.join(RUNTIMES)}")
    reason = RUNTIMES[name].absent()
    if reason is not None:
        raise reason
    return RUNTIMES[name]


def usable(names: Sequence[str], precision: str) -> tuple[str, ...]:
    """Those of the runtimes that work on this machine and have arithmetic of a precision there.

    ONNX Runtime's processor kernels know no bfloat16 convolution or product.
    """
    found = []
    for name in names:
        known = name in RUNTIMES and RUNTIMES[name].absent() is None
        if known and (precision != "bfloat16" or RUNTIMES[name].has_bfloat16()):
            found.append(name)
    return tuple(found)


def open_runner(name: str, path: str | Path, precision: str = "float32", threads: int | None = None) -> Runner:
    """Open a graph on a runtime.

    Args:
        name: a key of ``RUNTIMES``.
        path: the .onnx file; its weights file, if any, beside it.
        precision: what the graph is to be run in, as in the tolerance table.
        threads: None: all cores.

    Raises:
        KcdpError: see ``check_runtime``; or the machine has no arithmetic of this precision.
        DoesNotRun: the runtime refuses the graph, or takes another place than asked for.
    """
    return check_runtime(name)(Path(path), precision, threads)
