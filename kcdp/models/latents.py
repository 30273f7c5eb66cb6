"""The encoder half of a diffusers autoencoder: a picture becomes latents."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from kcdp.errors import KcdpError


class LatentEncoder(nn.Module):
    """Posterior mode of the latents, no noise; the decoder is left behind.

    Args:
        autoencoder: ``AutoencoderKL`` (the mode is the posterior mean) or ``AutoencoderTiny`` (deterministic).
        scale: multiply by the autoencoder's ``scaling_factor`` (0.18215 for Stable Diffusion 1.5), the
            scale on which its U-Net was trained. The released code leaves it out.

    Raises:
        KcdpError: another kind of autoencoder.
    """

    def __init__(self, autoencoder: nn.Module, *, scale: bool = True) -> None:
        super().__init__()
        if not isinstance(autoencoder, (AutoencoderKL, AutoencoderTiny)):
            raise KcdpError(f"autoencoder of type {type(autoencoder).__name__}", "AutoencoderKL or AutoencoderTiny")
        self.encoder = autoencoder.encoder
        self.quant_conv = getattr(autoencoder, "quant_conv", None)
        self.has_posterior = isinstance(autoencoder, AutoencoderKL)
        self.latent_channels = int(autoencoder.config.latent_channels)
        self.scaling_factor = float(autoencoder.config.scaling_factor) if scale else 1.0
        halvings = len(autoencoder.config.block_out_channels) - 1
        if not self.has_posterior:
            halvings = len(autoencoder.config.num_encoder_blocks) - 1
        self.stride = 2**halvings

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode.

        Args:
            images: float [N, 3, H, W], RGB, -1..1; H and W multiples of ``stride``.

        Returns:
            latents [N, latent_channels, H / stride, W / stride].
        """
        encoded = self.encoder(images)
        if self.quant_conv is not None:
            encoded = self.quant_conv(encoded)
        if self.has_posterior:
            encoded = encoded[:, : self.latent_channels]  # the mean; the other half is the log-variance
        return encoded * self.scaling_factor
