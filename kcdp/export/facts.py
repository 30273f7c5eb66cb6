"""What a bundle says of where it came from."""

from __future__ import annotations

import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import kcdp

PACKAGES = ("torch", "diffusers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "numpy", "Pillow")


#: The folders of an absolute path, at the start of a text, after "kind:" or "name=", or in a list.
_FOLDERS = re.compile(r"(?<![^:=,;])(?:~|[A-Za-z]:)?[/\\](?:[^/\\?,;]*[/\\])*")


def without_folders(value: Any) -> Any:
    """JSON in which texts hold no folders of absolute paths: a bundle travels, and they name somebody's machine.

    "fer2013:/data/faces/fer2013.zip?split=val" becomes "fer2013:fer2013.zip?split=val"; addresses and relative paths
    stay.
    """
    if isinstance(value, str):
        return value if "://" in value else _FOLDERS.sub("", value)
    if isinstance(value, dict):
        return {key: without_folders(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_folders(item) for item in value]
    return value


def producers() -> dict[str, str]:
    """Versions of everything that had a hand in the graph; what is not installed is left out."""
    found = {"kcdp": kcdp.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_revision() -> str:
    """The git commit of the kcdp in use, with "-dirty" where files differ; empty for an installed package."""
    folder = Path(kcdp.__file__).parent.parent
    if not (folder / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", "kcdp") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
