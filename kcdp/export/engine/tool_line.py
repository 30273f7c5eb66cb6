"""NVIDIA's own command-line tool building the same engine: for machines without Python, and to compare with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from kcdp.export.engine.builder import BuildOptions
from kcdp.export.engine.package import CLASSIC, RTX

TOOLS: Mapping[str, str] = {CLASSIC: "trtexec", RTX: "tensorrt_rtx"}


def tool_line(
    package: str, model: Path, engine: Path, shapes: Mapping[str, tuple[int, ...]], options: BuildOptions
) -> str:
    """The line to type.

    Args:
        package: a key of ``TOOLS``.
        shapes: of all inputs, -1 where the batch is free.
    """
    words = [TOOLS[package], f"--onnx={model}", f"--saveEngine={engine}"]
    if package == CLASSIC:
        words.append("--stronglyTyped")  # a must on 10; 11 takes it and is so anyway
    elif options.capabilities:
        words.append(f"--computeCapabilities={','.join(name.removeprefix('SM') for name in options.capabilities)}")
    if options.batches is not None:
        free = {name: shape for name, shape in shapes.items() if -1 in shape}
        for place, flag in enumerate(("minShapes", "optShapes", "maxShapes")):
            sizes = {name: options.batches.shapes(shape)[place] for name, shape in free.items()}
            text = ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in sizes.items())
            words.append(f"--{flag}={text}")
    if options.workspace is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace}M")
    return shlex.join([*words, "--skipInference"])


def try_line(package: str, engine: Path) -> str:
    """The same tool measuring a finished engine."""
    return shlex.join([TOOLS[package], f"--loadEngine={engine}"])
