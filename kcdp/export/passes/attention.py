"""Attention without probabilities wherever no map is wanted, and its scale in the queries' weights."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.export.device.attention import Attention
from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import linear
from kcdp.export.passes.lora import merged


def lean_attention(model: DeviceModel, kernel: str = "fused") -> None:
    """Rewrite every attention of the U-Net.

    softmax(s Q K) = softmax((s Q) K): the scale becomes part of the queries' layer. Where the map is not asked for, the
    probabilities are not kept.

    Args:
        kernel: "fused" (one attention operator) or "products" (for graphs that have no such operator); see
            ``Attention``.
    """
    with torch.no_grad():
        for layer in [module for module in model.modules() if isinstance(module, Attention)]:
            if layer.scale is not None:
                layer.to_q = scaled(layer.to_q, layer.scale)
                layer.scale = None
            layer.kernel = "products" if layer.want_map else kernel


def scaled(layer: nn.Module, factor: float) -> nn.Linear:
    """A linear layer whose answer is multiplied by a number."""
    layer = merged(layer)
    return linear(layer.weight * factor, None if layer.bias is None else layer.bias * factor)
