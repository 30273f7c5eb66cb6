"""Which device to train on, and which arithmetic it is good at."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext

import torch

from kcdp.errors import KcdpError


def resolve_device(name: str) -> torch.device:
    """ "auto" is a GPU where there is one. A device that was named and is not there is an error, never a fallback."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("kcdp trains on CPUs and NVIDIA GPUs")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise KcdpError(f"device {name!r} cannot be used ({reason})", "auto, cpu, cuda or cuda:N") from None
    return device


def autocast_dtype(setting: str, device: torch.device) -> torch.dtype | None:
    """The 16-bit type of mixed precision, None for plain float32.

    "auto": bf16 on GPUs that have it, else fp16 on GPUs; on a CPU bf16 where it has bf16 instructions.
    """
    if setting == "no":
        return None
    if setting == "fp16":
        if device.type == "cpu":
            raise KcdpError("training.mixed_precision is 'fp16' on a CPU", "bf16, auto or no")
        return torch.float16
    if setting == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    has_bf16 = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    return torch.bfloat16 if has_bf16 else None


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager:
    """The context in which forward passes run."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def usable_cpus() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
