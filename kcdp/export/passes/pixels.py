"""Bytes in, as a decoder gives them: the conversion to the encoder's numbers is part of the graph."""

from __future__ import annotations

import torch
from diffusers.models.autoencoders.vae import EncoderTiny
from torch import nn

from kcdp.export.device.model import DeviceModel
from kcdp.models.latents import LatentEncoder


class ScalePixels(nn.Module):
    """uint8 [N, S, S, 3] to float [N, 3, S, S]: x * scale + shift."""

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, scale: torch.Tensor, shift: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.clone(), persistent=False)
        self.register_buffer("shift", shift.clone(), persistent=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """RGB, 0..255."""
        # TensorRT transposes no bytes, so they become numbers first.
        return images.to(self.scale.dtype).permute(0, 3, 1, 2) * self.scale + self.shift


class _TinyLayers(nn.Module):
    """A tiny encoder without its own scaling to 0..1."""

    def __init__(self, encoder: EncoderTiny) -> None:
        super().__init__()
        self.layers = encoder.layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """float [N, 3, S, S], 0..1."""
        return self.layers(images)


def take_pixels(model: DeviceModel) -> None:
    """uint8 NHWC input. A tiny encoder's (x + 1) / 2 is folded into the same factor and summand."""
    if model.pixels is not None:
        return
    scale, shift = model.input_scale, model.input_shift
    holder = model.encoder if isinstance(model.encoder, LatentEncoder) else model
    if isinstance(holder.encoder, EncoderTiny):
        scale, shift = scale / 2, (shift + 1) / 2
        holder.encoder = _TinyLayers(holder.encoder)
    model.pixels = ScalePixels(scale, shift)
