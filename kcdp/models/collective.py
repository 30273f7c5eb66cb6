"""Several processes as one: rows of a tensor from all of them, so that what looks at a batch sees the whole batch.

With the loss computed from gathered rows in every process, and gradients averaged over processes as
``DistributedDataParallel`` does, N processes with a batch of B do what one does with N x B, batch statistics included.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def processes() -> int:
    """How many processes train together; 1 where there is only this one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in the order of their ranks.

    Args:
        rows: [N, ...], of the same shape and type in every process.

    Returns:
        [processes * N, ...]. On the way back each process gets the sum of what all of them say of its rows.
    """
    return rows if processes() == 1 else _GatherRows.apply(rows)


def own_rows(rows: torch.Tensor) -> torch.Tensor:
    """Of rows that were gathered, this process's own: [processes * N, ...] to [N, ...]."""
    return rows if processes() == 1 else rows.chunk(processes())[dist.get_rank()]


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return own_rows(gradient)


class BatchNorm(torch.nn.BatchNorm1d):
    """Batch normalisation over the rows of all processes; [N, C] to [N, C]."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or processes() == 1:
            return super().forward(input)
        return own_rows(super().forward(gather_rows(input)))
