"""A graph's file as ONNX Runtime opens it: what every session is told, and what a session says of itself.

The pictures' graph is opened on any provider (``provider_session``), that of captions on the processor
(``kcdp.runtime.text``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kcdp.errors import KcdpError
from kcdp.runtime.session import Tensor, first_line

AGAIN = 'export the bundle again, or run: pip install -U "kcdp[runtime]"'
#: ONNX Runtime's type names -> numpy's.
_DTYPES = {
    "tensor(uint8)": "uint8", "tensor(int8)": "int8", "tensor(int32)": "int32", "tensor(int64)": "int64",
    "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16", "tensor(float)": "float32",
    "tensor(double)": "float64", "tensor(bool)": "bool", "tensor(string)": "str",
}  # fmt: skip


def session_options(library: Any, threads: int | None, entries: Mapping[str, str]) -> Any:
    """ONNX Runtime's own ``SessionOptions``.

    Args:
        library: the module.
        threads: how many threads one ``run`` may use; None: all cores.
        entries: session configuration, key -> value.
    """
    options = library.SessionOptions()
    options.log_severity_level = 4  # errors arrive as exceptions; ONNX Runtime would print them as well
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    return options


def cannot_open(library: Any, path: Path, error: Exception, fix: str = AGAIN) -> KcdpError:
    """What is said where a session cannot be made of a file."""
    return KcdpError(
        f"ONNX Runtime {library.__version__} cannot open {path} ({first_line(error)})", "a sound ONNX graph", fix
    )


def tensors(values: Any) -> list[Tensor]:
    """A session's inputs or outputs: name, numpy's name of the type, lengths (None where free)."""
    return [
        (value.name, _DTYPES.get(value.type, value.type), tuple(n if isinstance(n, int) else None for n in value.shape))
        for value in values
    ]
