"""The autoencoder's last steps in one convolution: quant_conv, the mean half, and the latents' scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from kcdp.export.device.model import DeviceModel
from kcdp.export.device.sharing import convolution
from kcdp.models.latents import LatentEncoder


def fold_autoencoder(model: DeviceModel) -> None:
    """s Q (W x + b) + s q, its rows of the mean only, is a convolution with the weights s Q W and bias s (Q b + q).

    Q is 1x1, so zero padding in front of W makes no difference. The log-variance is never computed.
    """
    encoder = model.encoder
    if not isinstance(encoder, LatentEncoder):
        return
    parent, name, last = _last_convolution(encoder.encoder)
    weight = last.weight
    bias = weight.new_zeros(weight.shape[0]) if last.bias is None else last.bias
    with torch.no_grad():
        if encoder.quant_conv is not None:
            mix = encoder.quant_conv.weight[:, :, 0, 0]
            weight = torch.einsum("om,mihw->oihw", mix, weight)
            bias = mix @ bias + (0 if encoder.quant_conv.bias is None else encoder.quant_conv.bias)
        if encoder.has_posterior:
            weight, bias = weight[: encoder.latent_channels], bias[: encoder.latent_channels]
        weight, bias = weight * encoder.scaling_factor, bias * encoder.scaling_factor
    setattr(parent, name, convolution(last, weight, bias))
    model.encoder = encoder.encoder


def _last_convolution(encoder: Any) -> tuple[nn.Module, str, nn.Conv2d]:
    """Of a diffusers ``Encoder`` (``conv_out``) or ``EncoderTiny`` (the last of ``layers``); and where it hangs."""
    if hasattr(encoder, "conv_out"):
        return encoder, "conv_out", encoder.conv_out
    layers = encoder.layers
    return layers, str(len(layers) - 1), layers[-1]
