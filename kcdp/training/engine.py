"""Accelerate, as this project uses it: device, precision, and processes that act as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from kcdp.data.sampler import Share
from kcdp.errors import KcdpError
from kcdp.settings import TrainingConfig
from kcdp.torch_device import autocast_dtype, resolve_device

T = TypeVar("T")

#: What torch and Accelerate say of several processes that work as they should.
_HARMLESS = ("Grad strides do not match bucket view strides", ".*broadcast_buffers.*")
_PRECISION = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Engine:
    """What runs a training: one process or several, started by ``accelerate launch``.

    Args:
        training: device and mixed precision.
        find_unused: whether a step may leave trained parameters out; looking for them costs several processes time.

    Attributes:
        accelerator: Accelerate's own object.
        device: where this process computes.
        dtype: 16-bit type of mixed precision; None: float32.
        share: this process among all.

    Raises:
        KcdpError: a device that is not there, or one that is named for several processes.
    """

    def __init__(self, training: TrainingConfig, find_unused: bool = True) -> None:
        device = resolve_device(training.device)
        # Accelerate keeps its state for the process: what an earlier run in it had asked for must not stay.
        AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
        if device.index:
            torch.cuda.set_device(device)
        self.dtype = autocast_dtype(training.mixed_precision, device)
        for harmless in _HARMLESS:
            warnings.filterwarnings("ignore", message=harmless)
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=_PRECISION[self.dtype],
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=find_unused, broadcast_buffers=False)
            ],
        )  # fmt: skip
        self.share = Share(self.accelerator.process_index, self.accelerator.num_processes)
        if self.share.world > 1 and device.index is not None:
            raise KcdpError(
                f"training.device is {training.device!r} for {self.share.world} processes", "auto, cpu or cuda",
                "each process gets a device of its own",
            )  # fmt: skip
        self.device = device if self.share.world == 1 else self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.share.rank == 0

    def any(self, here: bool) -> bool:
        """Whether something is so in at least one process; every process must ask."""
        if self.share.world == 1:
            return here
        flag = torch.tensor([float(here)], device=self.device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    def together(self, action: Callable[[], T]) -> T:
        """What ``action`` returns here; every process must ask.

        Raises:
            KcdpError: it failed here, or in another process: then as there, so that all of them end in the same way.
        """
        if self.share.world == 1:
            return action()
        found: list[T] = []
        mistakes: list[tuple[str, str, str]] = []
        try:
            found.append(action())
        except KcdpError as error:
            mistakes.append((error.received, error.expected, error.fix))
        if self.any(bool(mistakes)):
            raise KcdpError(*self.collect(mistakes)[0])
        return found[0]

    def collect(self, here: list[Any]) -> list[Any]:
        """The lists of all processes as one, in the order of their ranks; every process must ask."""
        return here if self.share.world == 1 else gather_object(here)
