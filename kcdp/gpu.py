"""Which NVIDIA GPU this machine has, asked of the driver itself: no CUDA toolkit and no other package is needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

#: CUdevice_attribute of the CUDA driver API: major and minor compute capability.
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_NAME_BYTES = 256


@dataclass(frozen=True)
class Gpu:
    """One card.

    Attributes:
        name: as the driver spells it ("NVIDIA GeForce RTX 4090").
        capability: compute capability (8, 9).
    """

    name: str
    capability: tuple[int, int]

    @property
    def architecture(self) -> str:
        """ "SM89", "SM120": the compute capability without its dot."""
        return f"SM{self.capability[0]}{self.capability[1]}"


def find_gpu(index: int = 0, driver: Any = None) -> Gpu | None:
    """The card that CUDA would use, or None where there is no driver or no card.

    Args:
        index: among the cards that CUDA_VISIBLE_DEVICES leaves visible.
        driver: stands in for the driver's library in tests.
    """
    driver = load_driver() if driver is None else driver
    count, device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)
    if driver is None or driver.cuInit(0) != 0:
        return None
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or index >= count.value:
        return None
    answers = (
        driver.cuDeviceGet(ctypes.byref(device), index),
        driver.cuDeviceGetName(name, _NAME_BYTES, device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device),
    )
    if any(answers):
        return None
    return Gpu(name.value.decode("utf-8", "replace"), (major.value, minor.value))


def load_driver() -> Any:
    """The CUDA driver's library; None where there is none."""
    try:
        if sys.platform == "win32":
            return ctypes.WinDLL("nvcuda.dll")
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
