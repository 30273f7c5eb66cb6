"""Which backend runs a bundle, and why the others do not: a rule that can be read, and never a silent fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.runtime.backends.base import Backend, Status
from kcdp.runtime.backends.engine_choice import BUILD, EngineBundle
from kcdp.runtime.backends.options import SessionOptions

#: target -> backends that may be chosen for it, the best first. The others are taken only by name: where an engine is
#: built while the user waits, or where no parity gate has ever run.
ORDER: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "portable": ("onnxruntime-cuda", "onnxruntime", "openvino"),
    "cpu": ("openvino", "onnxruntime"),
    "cuda": ("onnxruntime-cuda", "onnxruntime", "openvino"),
    "tensorrt": ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime", "openvino"),
    "web": ("onnxruntime", "openvino"),
})  # fmt: skip
_BY_NAME = "taken only by name for a bundle of this target"


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        backend: its name.
        why: one line, with the reasons against each that would have been better.
        rejected: every other backend -> why not it.
    """

    backend: str
    why: str
    rejected: Mapping[str, str]


def pick(bundle: Bundle, backends: Mapping[str, Backend], options: SessionOptions) -> Choice:
    """The best backend that is installed, works here, takes the options and runs the bundle.

    Raises:
        KcdpError: there is none; the message holds the reason against each that may be chosen.
    """
    target, precision = bundle.manifest.target, str(bundle.manifest.precision.get("default"))
    order = ("tensorrt", "tensorrt-rtx") if isinstance(bundle, EngineBundle) else ORDER[target]
    rejected = {name: _BY_NAME for name in backends if name not in order}
    before: list[str] = []
    chosen = ""
    for name in order:
        if chosen:
            rejected[name] = f"comes after {chosen}"
            continue
        status = backends[name].status(options)
        reason = against(bundle, backends[name], options, status) or misgiving(bundle, name, options)
        if reason:
            rejected[name] = reason
            before.append(f"{name}: {reason if status.usable else status.state}")
        else:
            chosen = name
    if not chosen:
        facts = "; ".join(f"{name}: {rejected[name]}" for name in order)
        fix = f"on a machine with an NVIDIA GPU {BUILD} {bundle.path}" if order[0] == "tensorrt" else ""
        raise KcdpError(f"nothing here runs {bundle.path} ({target}, {precision}): {facts}", fix=fix)
    why = f"of {', '.join(order)} the first that runs this {target} bundle of {precision} here"
    why += f" ({'; '.join(before)})" if before else ""
    return Choice(chosen, why, {name: rejected[name] for name in backends if name != chosen})


def against(bundle: Bundle, backend: Backend, options: SessionOptions, status: Status) -> str:
    """Why a backend cannot run a bundle, here and with these options, and what to do; empty where it can."""
    if not status.usable:
        return f"{status.state}: {status.reason}" + (f"; {status.fix}" if status.fix else "")
    foreign = [name for name in options.given() if name not in backend.options]
    if foreign:
        return f"has no option {', '.join(foreign)}"
    unfit = backend.unfit(bundle, options)
    return "" if unfit is None else str(unfit)


def misgiving(bundle: Bundle, name: str, options: SessionOptions) -> str:
    """Why a backend that can run a bundle is not taken unless it is named; empty where nothing speaks against it."""
    manifest, default = bundle.manifest, bundle.manifest.precision.get("default")
    gated = {runtime.get("runtime") for runtime in manifest.parity.get("runtimes", ())}
    if name == "onnxruntime" and manifest.target == "cpu" and default == "bfloat16":
        return "ONNX Runtime's processor kernels multiply in float32, the bundle was made and gated for bfloat16"
    if name == "onnxruntime-cuda" and default == "int8":
        return "8-bit layers are multiplied in float32 there"
    if name == "openvino" and default == "int8-weights" and "openvino" not in gated:
        return "OpenVINO cannot open every graph of 8-bit weights, and this one's parity gate has not run there"
    return ""
