"""What a bundle can be made for: one table, which the command, the pipeline, the gate and the documentation read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kcdp.errors import KcdpError, nearest

#: ``--precision`` -> name in the manifest and in the tolerance table.
PRECISIONS: Mapping[str, str] = MappingProxyType({
    "fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "w8": "int8-weights",
})  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A kind of runtime.

    Attributes:
        name: as in ``--target`` and in the manifest.
        what: one line.
        opset: ONNX operator set of its graphs.
        precisions: keys of ``PRECISIONS`` that it takes.
        runtimes: runners of the parity gate that can run its graphs, the first by default; see
            ``kcdp.export.runners``.
        kernel: form of attention without maps; see ``kcdp.export.device.attention.Attention``.
        winograd: large 3x3 convolutions by minimal filtering, in these precisions.
        norms: group normalisation as a scaling of channels, in these precisions.
        activations: type of rounded activations in int8.
        typed_bfloat16: its bf16 graphs are strongly typed; else float32 with weights of bfloat16, for a runtime that is
            told to compute in it.
        profile: the batch may be MIN:OPT:MAX.
        fused: its nodes are joined into operators that ONNX Runtime has for CUDA.
        max_bytes: of the whole bundle; None: any.
        verified: precision -> where graphs of this target have run, and where they have not.
    """

    name: str
    what: str
    opset: int
    precisions: tuple[str, ...]
    runtimes: tuple[str, ...]
    verified: Mapping[str, str]
    kernel: str = "products"
    winograd: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    activations: str = "uint8"
    typed_bfloat16: bool = True
    profile: bool = False
    fused: bool = False
    max_bytes: int | None = None

    def opset_for(self, precision: str) -> int:
        """Convolutions know bfloat16 from operator set 22 on."""
        return max(self.opset, 22) if precision == "bf16" and self.typed_bfloat16 else self.opset


#: Pictures at once, of a graph or of an engine.
MAX_BATCH = 4096

_ORT_CPU = "ONNX Runtime 1.32 on a CPU"
_NO_GPU = "no GPU yet"
TARGETS: Mapping[str, Target] = MappingProxyType({
    target.name: target for target in (
        Target(
            "portable", "any ONNX Runtime", 20, ("fp32", "fp16", "int8", "w8"), ("onnxruntime",),
            {"fp32": _ORT_CPU, "fp16": f"{_ORT_CPU} (slowly: half is widened there)", "int8": _ORT_CPU,
             "w8": _ORT_CPU},
        ),
        Target(
            "cpu", "x86 and ARM processors, ONNX Runtime and OpenVINO", 20, ("fp32", "bf16", "int8", "w8"),
            ("openvino", "onnxruntime"),
            {"fp32": f"{_ORT_CPU}, OpenVINO 2026.4", "bf16": "OpenVINO 2026.4 on a CPU with AVX-512 bf16",
             "int8": f"{_ORT_CPU}, OpenVINO 2026.4 with VNNI", "w8": f"{_ORT_CPU}, OpenVINO 2026.4"},
            winograd=("fp32",), norms=("fp32", "bf16"), typed_bfloat16=False,
        ),
        Target(
            "cuda", "ONNX Runtime's CUDA provider", 20, ("fp32", "fp16"), ("onnxruntime-cuda", "unfused"),
            dict.fromkeys(("fp32", "fp16"), f"values by {_ORT_CPU}, fused operators written out; {_NO_GPU}"),
            fused=True,
        ),
        Target(
            "tensorrt", "TensorRT 10 and 11, TensorRT-RTX", 20, ("fp32", "fp16", "bf16", "int8"), ("onnxruntime",),
            dict.fromkeys(("fp32", "fp16", "bf16", "int8"), f"engines built by TensorRT-RTX 1.7; {_NO_GPU}"),
            activations="int8", profile=True,
        ),
        Target(
            "web", "browsers, onnxruntime-web; one file below 128 MB", 20, ("fp32", "fp16", "int8", "w8"),
            ("onnxruntime",),
            dict.fromkeys(("fp32", "fp16", "int8", "w8"), f"{_ORT_CPU}; no browser yet"),
            max_bytes=128_000_000,
        ),
    )
})  # fmt: skip


def choose(target: str, precision: str) -> Target:
    """The target's row, where the combination exists.

    Raises:
        KcdpError: an unknown name, or a precision that the target does not take; the valid ones are named.
    """
    if target not in TARGETS:
        raise KcdpError(f"target {target!r}{nearest(target, TARGETS)}", f"one of {', '.join(TARGETS)}")
    if precision not in PRECISIONS:
        raise KcdpError(f"precision {precision!r}{nearest(precision, PRECISIONS)}", f"one of {', '.join(PRECISIONS)}")
    row = TARGETS[target]
    if precision not in row.precisions:
        elsewhere = [name for name, other in TARGETS.items() if precision in other.precisions]
        raise KcdpError(
            f"target {target} in {precision}", f"{target} in {', '.join(row.precisions)}; {precision} for "
            f"{', '.join(elsewhere)}",
        )  # fmt: skip
    return row


@dataclass(frozen=True)
class Batch:
    """How many pictures a graph takes at once.

    Attributes:
        fixed: exactly so many; None: any number.
        profile: smallest, usual and largest number of a free batch, for engines; None: not limited.
    """

    fixed: int | None = None
    profile: tuple[int, int, int] | None = None

    @classmethod
    def parse(cls, text: str | None, target: Target) -> Batch:
        """``8`` or ``1:8:32``; None leaves it free.

        Raises:
            KcdpError: neither form, more than ``MAX_BATCH``, or a profile for a target that has none.
        """
        if text is None:
            return cls()
        parts = text.split(":")
        numbers = [int(part) for part in parts if part.isdecimal() and len(part) < 7]
        rising = numbers == sorted(numbers)
        counted = len(numbers) == len(parts) in (1, 3) and min(numbers) >= 1 and max(numbers) <= MAX_BATCH
        if not counted or not rising:
            raise KcdpError(
                f"batch {text!r}", f"a number from 1 to {MAX_BATCH}, or three of them, MIN:OPT:MAX, such as 1:8:32"
            )
        if len(numbers) == 1:
            return cls(fixed=numbers[0])
        if not target.profile:
            able = [name for name, other in TARGETS.items() if other.profile]
            raise KcdpError(
                f"batch {text!r} for the target {target.name}",
                f"one number, or none; MIN:OPT:MAX is for {', '.join(able)}",
            )
        return cls(profile=(numbers[0], numbers[1], numbers[2]))


def table() -> str:
    """Targets, precisions and where each has been verified, as text."""
    lines = []
    for target in TARGETS.values():
        lines.append(f"{target.name:<10}{target.what} (opset {target.opset})")
        lines += [f"  {precision:<6}{target.verified[precision]}" for precision in target.precisions]
    return "\n".join(lines)
