"""Copies of a network that share its tensors: rewritten freely, at no cost in memory, the original untouched."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def share(module: M, device: str | None = None) -> M:
    """The same modules anew, around the very same parameters and buffers.

    Who rewrites the copy replaces tensors and never writes into them: they belong to the original too.

    Args:
        device: "meta" gives a copy of shapes only, for counting.
    """
    memo: dict[int, object] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if device is None:
            memo[id(tensor)] = tensor
        else:
            moved = tensor.detach().to(device)
            memo[id(tensor)] = nn.Parameter(moved, False) if isinstance(tensor, nn.Parameter) else moved
    return copy.deepcopy(module, memo)


def parameter(tensor: torch.Tensor) -> nn.Parameter:
    """A computed weight, detached and frozen."""
    return nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer around given tensors: [out, in] and [out]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = parameter(weight)
    if bias is not None:
        made.bias = parameter(bias)
    return made


def convolution(like: nn.Conv2d, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Conv2d:
    """A convolution of the same stride and padding around other tensors: [out, in, kh, kw] and [out]."""
    made = nn.Conv2d(
        weight.shape[1] * like.groups, weight.shape[0], (weight.shape[2], weight.shape[3]),
        stride=like.stride, padding=like.padding, dilation=like.dilation, groups=like.groups,  # type: ignore[arg-type]
        bias=bias is not None, device="meta",
    )  # fmt: skip
    made.weight = parameter(weight)
    if bias is not None:
        made.bias = parameter(bias)
    return made
