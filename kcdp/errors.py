"""One exception for everything a user can mend, and the check for optional packages."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Iterable
from types import ModuleType

#: Read by packages when they are imported; a value that is set already stays. From 1.29 on, ONNX Runtime sends names
#: and hashes of the graphs it opens to its maker unless told not to, and Ray what it runs on: pictures and models are
#: the user's own business.
QUIET = {"onnxruntime": ("ORT_DISABLE_TELEMETRY", "1"), "ray": ("RAY_USAGE_STATS_ENABLED", "0")}


class KcdpError(Exception):
    """A mistake the user can mend. The commands print it as one line and exit with status 2.

    Args:
        received: what was found, with the name or path it was found under.
        expected: what would have been right (may be empty).
        fix: what to do about it, in the imperative (may be empty).
    """

    def __init__(self, received: str, expected: str = "", fix: str = "") -> None:
        self.received, self.expected, self.fix = received, expected, fix
        parts = [received, f"expected {expected}" if expected else "", fix]
        super().__init__("; ".join(" ".join(part.split()) for part in parts if part))


def nearest(word: str, valid: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` for the closest valid word, or an empty string."""
    match = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {match[0]!r}?)" if match else ""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it. It is told to report nothing home: see ``QUIET``.

    Raises:
        KcdpError: the package is not installed; the message holds the exact install line.
    """
    if module in QUIET:
        os.environ.setdefault(*QUIET[module])
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        raise KcdpError(
            f"the package {module.split('.')[0]!r} is not installed",
            fix=f'run: pip install "kcdp[{extra}]"',
        ) from None
