"""ONNX Runtime's execution providers: what each is called, comes from, may be told, and is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from kcdp.bundle import Bundle
from kcdp.cache import COMPILED, cache_folder
from kcdp.errors import KcdpError
from kcdp.runtime.backends.options import SessionOptions

CPU = "CPUExecutionProvider"
Settings = dict[str, str]


def _nothing(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    return {}


@dataclass(frozen=True)
class Provider:
    """One row.

    Attributes:
        name: of the backend.
        provider: ONNX Runtime's name.
        what: one line.
        fix: where the provider is missing.
        settings: what the provider is told, from bundle, options and the folder for what it compiles.
        options: fields of ``SessionOptions`` that it takes.
        plugin: module of the package that holds it, where it is not built into ONNX Runtime.
        nvidia: needs a card of NVIDIA.
        context: a context file can hold what it has compiled.
        fixed_batch: takes no graph whose batch is free.
        alone: one run at a time.
        partial: leaves to the processor what it has no kernel for, products included.
        device: ONNX Runtime's name of its memory.
        graph_key: its run option that holds the number of a CUDA graph.
        verified: where this code has run.
    """

    name: str
    provider: str
    what: str
    fix: str
    settings: Callable[[Bundle, SessionOptions, Path], Settings] = _nothing
    options: frozenset[str] = frozenset({"threads"})
    plugin: str = ""
    nvidia: bool = False
    context: bool = False
    fixed_batch: bool = False
    alone: bool = False
    partial: bool = False
    device: str = "cpu"
    graph_key: str = "gpu_graph_id"
    verified: str = "never run: no such device was at hand"


def compiled_folder(options: SessionOptions) -> Path:
    """Where a library keeps what it compiles."""
    return cache_folder(options.cache, COMPILED)


def _cuda(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    # by itself it rounds float32 to 10 bits (TF32), which the gate of such a bundle does not allow
    exact = bundle.manifest.precision.get("default") == "float32"
    return {"device_id": str(options.device), "use_tf32": "0" if exact else "1",
            "enable_cuda_graph": "1" if options.cuda_graph else "0"}  # fmt: skip


def _tensorrt(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    return {
        "device_id": str(options.device), "trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder), **_profile(bundle, "trt"),
    }  # fmt: skip


def _rtx(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    return {
        "device_id": str(options.device), "enable_cuda_graph": "1" if options.cuda_graph else "0",
        "nv_runtime_cache_path": str(folder), **_profile(bundle, "nv"),
    }  # fmt: skip


def _profile(bundle: Bundle, prefix: str) -> Settings:
    """The batches that the bundle was exported for, as "images:1x96x96x3"; nothing where it says none."""
    sizes = bundle.manifest.export.get("profile") or ()
    shapes = [
        ",".join(f"{t.name}:{'x'.join(str(n or size) for n in t.shape)}" for t in bundle.manifest.graph.inputs)
        for size in sizes
    ]
    names = (f"{prefix}_profile_{kind}_shapes" for kind in ("min", "opt", "max"))
    return dict(zip(names, shapes, strict=True)) if shapes else {}


def _coreml(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    # an ML program computes in the graph's own types; the older format computes in float16
    return {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "ModelCacheDirectory": str(folder)}


def _directml(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    return {"device_id": str(options.device)}


def _qnn(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    # by itself it computes float32 in float16
    return {"backend_type": "htp", "enable_htp_fp16_precision": "1" if options.precision == "f16" else "0"}


def _xnnpack(bundle: Bundle, options: SessionOptions, folder: Path) -> Settings:
    return {} if options.threads is None else {"intra_op_num_threads": str(options.threads)}


_GPU = 'on a machine with a CUDA GPU run: pip uninstall onnxruntime; pip install "kcdp[gpu]"'
_ROWS = (
    Provider(
        "onnxruntime", CPU, "ONNX Runtime on the processor", 'run: pip install "kcdp[runtime]"',
        options=frozenset({"threads", "streams"}), verified="ONNX Runtime 1.32 on x86-64",
    ),
    Provider(
        "onnxruntime-cuda", "CUDAExecutionProvider", "ONNX Runtime on a GPU of NVIDIA", _GPU, _cuda,
        frozenset({"threads", "device", "cuda_graph"}), nvidia=True, device="cuda",
    ),
    Provider(
        "onnxruntime-tensorrt", "TensorrtExecutionProvider", "ONNX Runtime, compiled by TensorRT", _GPU,
        _tensorrt, frozenset({"threads", "device", "cache"}), nvidia=True, device="cuda",
    ),
    Provider(
        "onnxruntime-tensorrt-rtx", "NvTensorRTRTXExecutionProvider", "ONNX Runtime, compiled by TensorRT-RTX",
        'run: pip install "kcdp[rtx-provider]"', _rtx, frozenset({"threads", "device", "cuda_graph", "cache"}),
        "onnxruntime_ep_nv_tensorrt_rtx", nvidia=True, context=True, device="cuda",
        graph_key="cuda_graph_annotation_id",
    ),
    Provider(
        "onnxruntime-coreml", "CoreMLExecutionProvider", "ONNX Runtime on GPU and neural engine of Apple",
        'on a Mac run: pip install "kcdp[runtime]"', _coreml, frozenset({"threads", "cache"}),
    ),
    Provider(
        "onnxruntime-directml", "DmlExecutionProvider", "ONNX Runtime on any GPU of Windows",
        'on Windows run: pip uninstall onnxruntime; pip install "kcdp[directml]"', _directml,
        frozenset({"threads", "device"}), alone=True,
    ),
    Provider(
        "onnxruntime-qnn", "QNNExecutionProvider", "ONNX Runtime on the neural engine of Qualcomm",
        'on an ARM64 machine of Qualcomm run: pip install "kcdp[qnn]"', _qnn,
        frozenset({"threads", "precision", "cache"}), "onnxruntime_qnn", context=True, fixed_batch=True,
        verified="never run on a device: Qualcomm's emulator on x86-64 opened, cached and ran it, with wrong logits",
    ),
    Provider(
        "onnxruntime-xnnpack", "XnnpackExecutionProvider", "ONNX Runtime with XNNPACK on the processor",
        "no package holds it: build ONNX Runtime with --use_xnnpack", _xnnpack, partial=True,
    ),
)  # fmt: skip
#: backend -> provider.
PROVIDERS: Mapping[str, Provider] = MappingProxyType({row.name: row for row in _ROWS})


def plugin_devices(library: Any, row: Provider, plugin: Any, options: SessionOptions) -> list[Any]:
    """The device that is meant, of a provider that comes as a package of its own; empty where there is none.

    The package is registered once for the process.
    """
    if not (devices := _devices(library, row)):
        library.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
        devices = _devices(library, row)
    if row.nvidia:
        return devices[options.device : options.device + 1]
    return [device for device in devices if "NPU" in str(device.device.type)][:1]


def _devices(library: Any, row: Provider) -> list[Any]:
    return [device for device in library.get_ep_devices() if device.ep_name == row.provider]


def unfit(row: Provider, bundle: Bundle, options: SessionOptions) -> KcdpError | None:
    """Why a provider cannot run a bundle; None: it can."""
    manifest = bundle.manifest
    if "operators-cuda" in manifest.needs and row.provider != "CUDAExecutionProvider":
        return KcdpError(
            f"{bundle.path} is made of operators that ONNX Runtime has on CUDA GPUs alone",
            f"a bundle for {row.name}, or the backend onnxruntime-cuda", "export it with --target cpu or portable",
        )  # fmt: skip
    typed = manifest.target == "tensorrt" and manifest.precision.get("default") == "bfloat16"
    if typed and not row.nvidia:
        return KcdpError(
            f"{bundle.path} computes in bfloat16, which {row.provider} has no kernels for", "a GPU of NVIDIA",
            "export it with --precision fp16 or fp32",
        )  # fmt: skip
    if row.fixed_batch and manifest.graph.inputs[0].shape[0] is None:
        return KcdpError(
            f"{bundle.path} takes any number of pictures at once", f"a fixed number for {row.name}",
            "export it with --batch 1",
        )  # fmt: skip
    if row.provider == "QNNExecutionProvider" and options.precision == "bf16":
        return KcdpError("precision is 'bf16'", f"auto, f32 or f16 for {row.name}")
    return None
