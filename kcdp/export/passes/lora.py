"""Adapters merged into the weights they adapt: W + (alpha / rank) B A."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from kcdp.errors import KcdpError
from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import linear


def merge_adapters(model: DeviceModel) -> None:
    """Replace every adapted layer by one linear layer; the trained model's own weights stay as they are.

    Raises:
        KcdpError: a merged weight is not finite.
    """
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        assert isinstance(layer, nn.Module)
        made = merged(layer)
        if not torch.isfinite(made.weight).all():
            fix = "take an earlier checkpoint"
            raise KcdpError(f"{name} merged with its LoRA is not finite", "finite weights", fix)
        model.set_submodule(name, made)


def merged(layer: nn.Module) -> nn.Linear:
    """A linear layer, with the adapter that it may have as part of its weight."""
    if not isinstance(layer, LoraLayer):
        assert isinstance(layer, nn.Linear)
        return layer
    base = layer.get_base_layer()
    assert isinstance(base, nn.Linear)
    delta: torch.Tensor = layer.get_delta_weight(layer.active_adapters[0])  # type: ignore[operator]
    return linear(base.weight + delta.to(base.weight.dtype), base.bias)
