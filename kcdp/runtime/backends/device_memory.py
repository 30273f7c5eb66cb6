"""Memory of a CUDA card by the driver alone, through ctypes: neither a toolkit nor another package is needed.

Never run on a card: what is called with what is tested with a driver that stands in.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kcdp.errors import KcdpError
from kcdp.gpu import load_driver

#: Every function of the driver that is called, as its library exports it -> the types of its arguments.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (ctypes.c_void_p, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (ctypes.c_void_p, ctypes.c_int),
    "cuDevicePrimaryCtxRelease_v2": (ctypes.c_int,),
    "cuCtxPushCurrent_v2": (ctypes.c_void_p,),
    "cuCtxPopCurrent_v2": (ctypes.c_void_p,),
    "cuStreamCreate": (ctypes.c_void_p, ctypes.c_uint),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuStreamDestroy_v2": (ctypes.c_void_p,),
    "cuMemAlloc_v2": (ctypes.c_void_p, ctypes.c_size_t),
    "cuMemFree_v2": (ctypes.c_uint64,),
    "cuMemcpyHtoDAsync_v2": (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p),
}
#: A stream that does not wait for the card's default stream.
_NON_BLOCKING = 1


class Card:
    """One card: its primary context, which TensorRT shares, one stream, and memory by name.

    Args:
        index: among the cards that CUDA_VISIBLE_DEVICES leaves visible.
        driver: stands in for the driver's library in tests.

    Attributes:
        stream: its handle.

    Raises:
        KcdpError: there is no driver or no such card, or a call fails.
    """

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        self._driver = load_driver() if driver is None else driver
        if self._driver is None:
            raise KcdpError("no NVIDIA driver was found here", fix="install NVIDIA's driver")
        if driver is None:
            for name, types in FUNCTIONS.items():
                getattr(self._driver, name).argtypes = types
        self._memory: dict[str, tuple[int, int]] = {}
        self._device, self._context, self.stream = ctypes.c_int(), ctypes.c_void_p(), 0
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self._device), index)
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device.value)
        try:
            with self.current():
                stream = ctypes.c_void_p()
                self._call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
                self.stream = int(stream.value or 0)
        except KcdpError:
            self._call("cuDevicePrimaryCtxRelease_v2", self._device.value)
            raise

    @contextmanager
    def current(self) -> Iterator[None]:
        """Makes the card the calling thread's own for a while."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            previous = ctypes.c_void_p()
            self._call("cuCtxPopCurrent_v2", ctypes.byref(previous))

    def reserve(self, name: str, size: int) -> int:
        """The address of at least ``size`` bytes, kept under a name; what lay there is lost if they grow."""
        address, held = self._memory.get(name, (0, 0))
        if held < size:
            if held:
                self._call("cuMemFree_v2", self._memory.pop(name)[0])
            found = ctypes.c_uint64()
            self._call("cuMemAlloc_v2", ctypes.byref(found), size)
            address = found.value
            self._memory[name] = (address, size)
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        """Enqueue a copy of a contiguous array to the card."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.stream)

    def download(self, array: np.ndarray, address: int) -> None:
        """Enqueue a copy from the card into a contiguous array; it is there after ``wait``."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream)

    def wait(self) -> None:
        """Until all that was enqueued is done."""
        self._call("cuStreamSynchronize", self.stream)

    def close(self) -> None:
        """Give back memory, stream and context. Closing twice is fine."""
        if self._context.value is None:
            return
        with self.current():
            for address, _ in self._memory.values():
                self._call("cuMemFree_v2", address)
            self._memory.clear()
            self._call("cuStreamDestroy_v2", self.stream)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRelease_v2", self._device.value)

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._driver, name)(*arguments)
        if status != 0:
            raise KcdpError(f"the CUDA driver's {name} failed with error {status}", fix="see the driver's log")
