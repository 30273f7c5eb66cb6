"""What a session may be told. Every backend takes some of these, and refuses the others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any

from kcdp.errors import KcdpError

#: ``SessionOptions.precision`` -> numpy's name. "auto": what the bundle was gated in, see ``compiled_graph``.
PRECISIONS: Mapping[str, str] = MappingProxyType({"f32": "float32", "bf16": "bfloat16", "f16": "float16"})
AUTO = "auto"
#: ONNX Runtime makes as many threads as it is told to, which then wait in turns: 100,000 of them never came to an end.
MOST_THREADS = 1024


@dataclass(frozen=True)
class SessionOptions:
    """Checked when made; what is left alone is decided by the library, or by the bundle.

    Attributes:
        threads: how many threads the graph may use; None: all cores.
        streams: how many runs are computed side by side, each with its part of the threads; None: one.
        precision: what float32 arithmetic runs in: "f32", "bf16", "f16", or "auto", which the bundle decides.
        device: which card of several, from 0.
        cuda_graph: record the kernels of each batch size once and replay them: less work for the processor.
        cache: folder for what the library compiles; None: $KCDP_CACHE or ~/.cache/kcdp, where compiling is slow. A
            path is kept as text.
        engine: the engine file, likewise; None: the one in the cache that was built from the bundle.

    Raises:
        KcdpError: a value makes no sense; all of them are named.
    """

    threads: int | None = None
    streams: int | None = None
    precision: str = AUTO
    device: int = 0
    cuda_graph: bool = False
    cache: str | os.PathLike[str] | None = None
    engine: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("cache", "engine"):
            if isinstance(path := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(path))
        wrong = [
            (f"{name} is {getattr(self, name)!r}", expected) for name, (expected, right) in _CHECKS.items()
            if not right(getattr(self, name))
        ]  # fmt: skip
        if len(wrong) == 1:
            raise KcdpError(*wrong[0])
        if wrong:
            raise KcdpError(" | ".join(f"{received}; expected {expected}" for received, expected in wrong))

    def given(self) -> tuple[str, ...]:
        """Names of the options that are not left alone."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) != f.default)

    def with_threads(self, threads: int | None) -> SessionOptions:
        """The same with so many threads; None leaves them as they are.

        Raises:
            KcdpError: the options name another number already.
        """
        if threads is None:
            return self
        wanted = replace(self, threads=threads)
        if self.threads not in (None, threads):
            raise KcdpError(f"threads is {threads} and options.threads {self.threads}", "one of the two")
        return wanted


def check_options(options: Any) -> SessionOptions:
    """The same. Raises KcdpError where it is something else."""
    if not isinstance(options, SessionOptions):
        raise KcdpError(f"options is {options!r}", "kcdp.runtime.SessionOptions(...)")
    return options


def _whole(least: int, most: float, nothing: bool) -> Callable[[Any], bool]:
    def right(value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (value is None and nothing) or (whole and least <= value <= most)

    return right


def _path(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value != "")


#: option -> (what it must be, how to tell)
_CHECKS: Mapping[str, tuple[str, Callable[[Any], bool]]] = MappingProxyType({
    "threads": (f"a whole number from 1 to {MOST_THREADS}, or None for all cores", _whole(1, MOST_THREADS, True)),
    "streams": (f"a whole number from 1 to {MOST_THREADS}, or None", _whole(1, MOST_THREADS, True)),
    "precision": (f"one of {AUTO}, {', '.join(PRECISIONS)}", lambda value: value in (AUTO, *PRECISIONS)),
    "device": ("a whole number from 0", _whole(0, float("inf"), False)),
    "cuda_graph": ("True or False", lambda value: isinstance(value, bool)),
    "cache": ("a folder's name, or None", _path),
    "engine": ("a file's name, or None", _path),
})  # fmt: skip
#: Everything left alone.
DEFAULTS = SessionOptions()
