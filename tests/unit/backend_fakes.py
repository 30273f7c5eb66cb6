"""Stand-ins for what is not here: providers of ONNX Runtime, a CUDA card, TensorRT."""

from __future__ import annotations

import ctypes
import hashlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

from kcdp.engine_file import EngineDescription, EngineKey, model_digest, system_name, write_engine
from kcdp.gpu import Gpu

ADA = Gpu("NVIDIA GeForce RTX 4090", (8, 9))


class FakeRuntime:
    """onnxruntime with providers that it has not: a graph runs on the processor and is said to be elsewhere.

    Args:
        offered: providers that are said to be there.
        taken: what a session says it took; None: what was asked for.
        assigned: kind of node -> provider that is said to have it; None: the version does not tell.
        fails: what opening raises.
        devices: of plugins.
    """

    def __init__(self, *offered, taken=None, assigned=None, fails=None, devices=()):
        self.real, self.offered, self.taken = onnxruntime, offered, taken
        self.assigned, self.fails, self.devices = assigned, fails, list(devices)
        self.opened, self.registered = [], []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def get_available_providers(self):
        return [*self.offered, "CPUExecutionProvider"]

    def preload_dlls(self):
        print("Failed to load libcudart.so.13")  # as the real one does

    def get_ep_devices(self):
        return self.devices if self.registered else []

    def register_execution_provider_library(self, name, path):
        self.registered.append((name, path))

    class SessionOptions:
        """Records what it is told; gives the real one nothing but the entries."""

        def __init__(self):
            self.entries, self.devices, self.settings = {}, [], {}

        def add_session_config_entry(self, key, value):
            self.entries[key] = value

        def add_provider_for_devices(self, devices, settings):
            self.devices, self.settings = list(devices), dict(settings)

    def InferenceSession(self, path, options, providers=None, enable_fallback=1):
        self.opened.append(SimpleNamespace(path=path, options=options, providers=providers, fallback=enable_fallback))
        if self.fails:
            raise self.fails
        asked = [p if isinstance(p, str) else p[0] for p in providers or ()] or [options.devices[0].ep_name]
        context = options.entries.get("ep.context_file_path")
        if context:
            Path(context).write_bytes(Path(path).read_bytes())
        real = self.real.SessionOptions()
        nodes = onnx.load(path).graph.node  # the real one tells them from version 1.24 on
        session = self.real.InferenceSession(path, real, providers=["CPUExecutionProvider"])
        return FakeSession(session, nodes, asked if self.taken is None else self.taken, self.assigned)


class FakeSession:
    def __init__(self, real, nodes, taken, assigned):
        self._real, self._nodes, self.taken, self.assigned = real, nodes, list(taken), assigned
        self.fallback_disabled = False

    def __getattr__(self, name):
        return getattr(self._real, name)

    def get_providers(self):
        return self.taken

    def disable_fallback(self):
        self.fallback_disabled = True

    def get_provider_graph_assignment_info(self):
        if self.assigned is None:
            raise AttributeError("not in this version")
        found = []
        for node in self._nodes:
            place = self.assigned.get(node.op_type, self.assigned.get("*"))
            found.append(SimpleNamespace(ep_name=place, get_nodes=lambda node=node: [node]))
        return found


class FakeDriver:
    """A card whose memory is this process's. ``calls`` counts functions, ``held`` has what was not given back."""

    def __init__(self, fails=""):
        self.fails, self.calls, self.held, self.depth, self.copied = fails, Counter(), {}, 0, 0
        self.contexts = self.streams = 0

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*arguments):
            self.calls[name] += 1
            if name == self.fails:
                return 700
            getattr(self, f"_{name.removesuffix('_v2')}", lambda *_: None)(*arguments)
            return 0

        return call

    def _cuDeviceGet(self, device, index):
        device._obj.value = index

    def _cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 0xC0
        self.contexts += 1

    def _cuDevicePrimaryCtxRelease(self, device):
        self.contexts -= 1

    def _cuCtxPushCurrent(self, context):
        assert context.value == 0xC0
        self.depth += 1

    def _cuCtxPopCurrent(self, context):
        self.depth -= 1

    def _cuStreamCreate(self, stream, flags):
        assert self.depth > 0 and flags == 1
        stream._obj.value = 0x57
        self.streams += 1

    def _cuStreamDestroy(self, stream):
        self.streams -= 1

    def _cuMemAlloc(self, address, size):
        buffer = ctypes.create_string_buffer(size)
        address._obj.value = ctypes.addressof(buffer)
        self.held[address._obj.value] = buffer

    def _cuMemFree(self, address):
        del self.held[address]

    def _cuMemcpyHtoDAsync(self, address, source, size, stream):
        self._copy(address, source, size, stream, len(self.held[address]))

    def _cuMemcpyDtoHAsync(self, target, address, size, stream):
        self._copy(target, address, size, stream, len(self.held[address]))

    def _copy(self, target, source, size, stream, room):
        assert self.depth > 0 and stream == 0x57 and size <= room
        ctypes.memmove(target, source, size)
        self.copied += size


class FakeTensorRT:
    """A package that runs "engines" by a function from uint8 [N, s, s, 3] to float32 [N, 6], in the card's memory."""

    __name__ = "tensorrt_rtx"
    TensorIOMode = SimpleNamespace(INPUT=1, OUTPUT=2)
    CudaGraphStrategy = SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole")

    def __init__(self, function, size, version="1.7.1.116", refuses="", shape=None, fails=False):
        self.__version__, self.function, self.refuses, self.fails = version, function, refuses, fails
        self.shape = shape or (-1, size, size, 3)
        self.batches, self.strategies = [], []

    class ILogger:
        def __init__(self):
            pass

    def Runtime(self, logger):
        def deserialize(data):
            assert bytes(data[:4]) == b"vtrt"
            if self.refuses:
                logger.log(SimpleNamespace(name="WARNING"), "nothing of interest")
                logger.log(SimpleNamespace(name="ERROR"), self.refuses)
                return None
            return FakeEngine(self)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, trt):
        self.trt = trt

    def get_tensor_name(self, index):
        return ("images", "logits")[index]

    def get_tensor_dtype(self, name):
        return SimpleNamespace(name={"images": "UINT8", "logits": "FLOAT"}[name])

    def get_tensor_shape(self, name):
        return {"images": self.trt.shape, "logits": (self.trt.shape[0], 6)}[name]

    def get_tensor_mode(self, name):
        return {"images": 1, "logits": 2}[name]

    def create_runtime_config(self):
        return SimpleNamespace(cuda_graph_strategy=None)

    def create_execution_context(self, config=None):
        self.trt.strategies.append(None if config is None else config.cuda_graph_strategy)
        return FakeContext(self.trt)


class FakeContext:
    def __init__(self, trt):
        self.trt, self.shapes, self.addresses = trt, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream):
        assert stream == 0x57
        if self.trt.fails:
            return False
        shape = self.shapes["images"]
        size = int(np.prod(shape))
        images = np.frombuffer((ctypes.c_uint8 * size).from_address(self.addresses["images"]), np.uint8).reshape(shape)
        logits = np.ascontiguousarray(self.trt.function(images.copy()))
        ctypes.memmove(self.addresses["logits"], logits.ctypes.data, logits.nbytes)
        self.trt.batches.append(len(images))
        return True


def write_fake_engine(
    path, bundle, *, gpu="", capabilities=(), version="1.7.1.116", profile=(1, 2, 4), package="tensorrt-rtx"
):
    """An engine file with its description, as of a bundle."""
    manifest, data = bundle.manifest, b"vtrt" + path.name.encode()
    key = EngineKey(model_digest(manifest.files), package, version, gpu, capabilities, system_name(), profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_engine(path, memoryview(data), EngineDescription(
        key=key, sha256=hashlib.sha256(data).hexdigest(), bytes=len(data), bundle=bundle.path.name,
        precision=manifest.precision["default"], labels=manifest.labels, preprocess=manifest.preprocess.to_dict(),
        graph=manifest.graph.to_dict(), knowledge=manifest.knowledge, calibration=manifest.calibration,
        tolerances=None, layers={}, kernels=None, memory={}, build_seconds=0.0, command="", producer="0",
    ))  # fmt: skip
    return path
