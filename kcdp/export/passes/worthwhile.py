"""The layers of a network for which a rewriting pays at a given size of pictures, found without computing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import share

M = TypeVar("M", bound=nn.Module)


def find_modules(
    model: DeviceModel, size: int, kind: type[M], fits: Callable[[M, torch.Size], bool]
) -> list[tuple[str, M]]:
    """Names and modules of one kind, in the order in which they compute.

    Args:
        size: side of the pictures.
        fits: decides by the module and the shape of what comes in.
    """
    shapes = share(model, "meta")
    found: list[str] = []

    def look(name: str, module: M) -> None:
        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            if fits(module, arguments[0].shape):
                found.append(name)

        module.register_forward_pre_hook(hook)

    for name, module in list(shapes.named_modules()):
        if isinstance(module, kind):
            look(name, module)
    shapes.run_shapes(size)
    return [(name, model.get_submodule(name)) for name in dict.fromkeys(found)]  # type: ignore[misc]
