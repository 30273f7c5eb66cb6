"""Adapters merged into the weights they adapt: W + (alpha / rank) B A."""

from __future__ import annotations

import torch
from peft.tuners.lora import LoraLayer

from kcdp.errors import KcdpError
from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import linear


def merge_adapters(model: DeviceModel) -> None:
    """Replace every adapted layer by one linear layer; the trained model's own weights stay as they are.

    Raises:
        KcdpError: a merged weight is not finite.
    """
    for name, layer in [(n, m) for n, m in model.named_modules() if isinstance(m, LoraLayer)]:
        base = layer.get_base_layer()
        weight = base.weight + layer.get_delta_weight(layer.active_adapters[0]).to(base.weight.dtype)
        if weight.device.type != "meta" and not torch.isfinite(weight).all():
            fix = "take an earlier checkpoint"
            raise KcdpError(f"{name} merged with its LoRA is not finite", "finite weights", fix)
        model.set_submodule(name, linear(weight, base.bias))
