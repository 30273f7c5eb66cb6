"""OpenVINO on processors, GPUs and neural engines of Intel (and, on processors, of others)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from kcdp.bundle import Bundle, Manifest
from kcdp.errors import KcdpError, require
from kcdp.files import make_folder
from kcdp.graph import TensorSpec
from kcdp.runtime.backends.base import ABSENT, UNUSABLE, USABLE, Backend, Status, broken
from kcdp.runtime.backends.options import AUTO, DEFAULTS, PRECISIONS, SessionOptions
from kcdp.runtime.backends.providers import compiled_folder
from kcdp.runtime.processor import multiplies_bfloat16
from kcdp.runtime.session import Session, Tensor, compare_signature, first_line

CPU, GPU, NPU = "CPU", "GPU", "NPU"
_INSTALL = 'run: pip install "kcdp[openvino]"'
_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16", "u8": "uint8", "i8": "int8",
    "i32": "int32", "i64": "int64", "boolean": "bool",
}  # fmt: skip


class CompiledSession(Session):
    """A graph compiled for one device, in the arithmetic that its bundle was gated in.

    Args:
        bundle: an opened bundle.
        options: see ``OpenVinoBackend.options`` for those that count.
        device: "CPU", "GPU" or "NPU".

    Attributes:
        precision: what float32 arithmetic runs in: "f32", "bf16" or "f16".

    Raises:
        KcdpError: openvino is not installed, the graph is damaged or not what the manifest describes, or the device
            would compute in another type.
    """

    def __init__(self, bundle: Bundle, options: SessionOptions = DEFAULTS, device: str = CPU) -> None:
        super().__init__(bundle)
        self.options, self.device = options, device
        self._library = require("openvino", "openvino")
        core = shared_core(self._library)
        if (reason := unfit(bundle, options, device, native_bfloat16(core))) is not None:
            raise reason
        self.precision = chosen_precision(bundle.manifest, options, native_bfloat16(core))
        self._compiled: Any = self._open(core)
        self._requests: list[Any] = []
        try:
            self._check_type()
            path, specs = bundle.model_path, bundle.manifest.graph
            compare_signature(path, _tensors(self._compiled.inputs, specs.inputs), specs.inputs, "input")
            compare_signature(path, _tensors(self._compiled.outputs, specs.outputs), specs.outputs, "output")
        except KcdpError:
            self.close()
            raise

    def _open(self, core: Any) -> Any:
        options, path = self.options, self.bundle.model_path
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": self.precision}
        if self.device == CPU:
            settings["NUM_STREAMS"] = self.streams = options.streams or 1
            if options.threads is not None:
                settings["INFERENCE_NUM_THREADS"] = options.threads
        if options.cache is not None or self.device != CPU:  # for a processor it takes seconds, and gives a copy
            make_folder(compiled_folder(options))
            settings["CACHE_DIR"] = str(compiled_folder(options))
        name = f"{GPU}.{options.device}" if self.device == GPU else self.device
        try:
            return core.compile_model(core.read_model(str(path)), name, settings)
        except Exception as error:
            raise KcdpError(
                f"OpenVINO {self._version} cannot open {path} on {name} ({first_line(error)})", "a graph that it takes",
                "choose the backend onnxruntime, or export the bundle again",
            ) from error  # fmt: skip

    def _check_type(self) -> None:
        if self.device == NPU:  # always float16; ``unfit`` asks for it by name
            return
        taken = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if taken != self.precision:
            self.close()
            raise KcdpError(
                f"OpenVINO computes {self.bundle.path} in {_DTYPES.get(taken, taken)} on this {self.device}",
                PRECISIONS[self.precision], "choose another precision or backend",
            )  # fmt: skip

    def _run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        compiled = self._compiled
        try:  # requests are kept: one is made for each run that goes on at the same time
            request = self._requests.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            for name, array in feed.items():
                shared = array if array.flags.writeable else array.copy()  # OpenVINO shares no other
                request.set_tensor(name, self._library.Tensor(shared, shared_memory=True))
            request.infer()
            return np.array(request.get_output_tensor(0).data)  # copied: the next run overwrites the library's memory
        except Exception as error:
            raise self._library_failed("OpenVINO", feed, error) from error
        finally:
            self._requests.append(request)

    def _describe(self) -> dict[str, Any]:
        return {
            "backend": _name(self.device), "version": self._version, "provider": self.device,
            "threads": self.options.threads, "type": PRECISIONS[self.precision],
        }  # fmt: skip

    @property
    def _version(self) -> str:
        return str(self._library.__version__).split("-")[0]

    def _close(self) -> None:
        self._compiled = None
        self._requests = []


class OpenVinoBackend(Backend):
    """One kind of device."""

    def __init__(self, device: str) -> None:
        self.device, self.name = device, _name(device)
        self.what = {CPU: "OpenVINO on the processor", GPU: "OpenVINO on a GPU of Intel",
                     NPU: "OpenVINO on the neural engine of Intel"}[device]  # fmt: skip
        special = {CPU: {"threads", "streams"}, GPU: {"device"}, NPU: set()}[device]
        self.options = frozenset({"precision", "cache", *special})
        verified = "OpenVINO 2026.4 on x86-64 with AVX-512 bf16 and AMX"
        self.verified = verified if device == CPU else "never run: no such device was at hand"

    def status(self, options: SessionOptions) -> Status:
        version = ""
        try:
            library = require("openvino", "openvino")
            version = str(library.__version__).split("-")[0]
            devices = list(shared_core(library).available_devices)
        except KcdpError as error:
            return Status(ABSENT, "", error.received, _INSTALL)
        except Exception as error:
            return Status(UNUSABLE, version, broken(error), f"{_INSTALL} (again)")
        if not _has(devices, self.device, options.device):
            found = ", ".join(devices) or "none"
            return Status(UNUSABLE, version, f"OpenVINO finds no {self.device} here, only {found}",
                          f"install the driver of the {self.device}")  # fmt: skip
        return Status(USABLE, version)

    def unfit(self, bundle: Bundle, options: SessionOptions) -> KcdpError | None:
        core = shared_core(require("openvino", "openvino"))
        return unfit(bundle, options, self.device, native_bfloat16(core))

    def open(self, bundle: Bundle, options: SessionOptions) -> Session:
        return CompiledSession(bundle, options, self.device)


def chosen_precision(manifest: Manifest, options: SessionOptions, native: bool) -> str:
    """What float32 arithmetic runs in; OpenVINO left to itself takes bfloat16 wherever the processor has it.

    Args:
        native: the processor multiplies in bfloat16.

    Returns:
        "bf16" for a bundle of bfloat16, and for an int8 one whose parity gate has run so, where it is native; "f32"
        for every other, unless the options name one. A graph whose own nodes give bfloat16 keeps them under "f32".
    """
    if options.precision != AUTO:
        return options.precision
    default, typed = manifest.precision.get("default"), manifest.target == "tensorrt"
    gated = any(runtime.get("runtime") == "openvino-bf16" and runtime.get("passed")
                for runtime in manifest.parity.get("runtimes", ()))  # fmt: skip
    wants = (default == "bfloat16" and not typed) or (default == "int8" and gated)
    return "bf16" if wants and native else "f32"


def unfit(bundle: Bundle, options: SessionOptions, device: str, native: bool) -> KcdpError | None:
    """Why OpenVINO cannot run a bundle on a device; None: it can."""
    manifest, default = bundle.manifest, bundle.manifest.precision.get("default")
    if "operators-cuda" in manifest.needs:
        return KcdpError(
            f"{bundle.path} is made of operators that ONNX Runtime has on CUDA GPUs alone", "a bundle for processors",
            "export it with --target cpu or portable",
        )  # fmt: skip
    asked = options.precision == "bf16" or (options.precision == AUTO and default == "bfloat16")
    if device == CPU and asked and not native and manifest.target != "tensorrt":
        return KcdpError(
            f"{bundle.path} is to be computed in bfloat16, which this processor has no instructions for",
            "AVX-512 bf16, AMX or ARM's bf16", "export it with --precision fp32, or name the precision f32",
        )  # fmt: skip
    if device == NPU and manifest.graph.inputs[0].shape[0] is None:
        return KcdpError(f"{bundle.path} takes any number of pictures at once", f"a fixed number for {_name(device)}",
                         "export it with --batch 1")  # fmt: skip
    if device == NPU and options.precision != "f16":
        return KcdpError(f"precision is {options.precision!r}", f"f16, which {_name(device)} always computes in")
    return None


@lru_cache(maxsize=1)
def shared_core(library: Any) -> Any:
    """OpenVINO's core, one for the process: each loads its plugins anew, which takes longer than a small graph."""
    return library.Core()


def native_bfloat16(core: Any) -> bool:
    """Whether this processor multiplies in bfloat16. OpenVINO's list holds it for AVX-512 alone, too, where it is
    slow: what the system says goes first, else the type that OpenVINO takes by itself."""
    known = multiplies_bfloat16()
    if known is not None:
        return known and "BF16" in core.get_property(CPU, "OPTIMIZATION_CAPABILITIES")
    return bool(core.get_property(CPU, "INFERENCE_PRECISION_HINT").get_type_name() == "bf16")


def _name(device: str) -> str:
    return "openvino" if device == CPU else f"openvino-{device.lower()}"


def _has(devices: Sequence[str], device: str, number: int) -> bool:
    """Of several cards the names are GPU.0, GPU.1; of one it is GPU, which GPU.0 means as well."""
    if device != GPU:
        return device in devices
    return f"{GPU}.{number}" in devices or (number == 0 and GPU in devices)


def _tensors(values: Sequence[Any], specs: Sequence[TensorSpec]) -> list[Tensor]:
    """A value may have several names here: the file's, and that of a node that was merged into it."""
    found = []
    for place, value in enumerate(values):
        names = value.names
        name = specs[place].name if place < len(specs) and specs[place].name in names else value.any_name
        dtype = value.element_type.get_type_name()
        shape = tuple(None if n.is_dynamic else n.get_length() for n in value.partial_shape)
        found.append((name, _DTYPES.get(dtype, dtype), shape))
    return found
