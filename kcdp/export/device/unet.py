"""The U-Net of Stable Diffusion 1.x and 2.x for one fixed timestep, written out for graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.export.device.attention import Transformer
from kcdp.models.diffusion_features import DiffusionFeatures


class ResNet(nn.Module):
    """Norm, SiLU, convolution, twice, and a shortcut.

    Args:
        block: diffusers' ``ResnetBlock2D`` with SiLU.

    Attributes:
        time: linear layer from the time embedding; None: its answer is part of the first convolution's bias.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.conv1 = block.norm1, block.conv1
        self.norm2, self.conv2 = block.norm2, block.conv2
        self.shortcut, self.time = block.conv_shortcut, block.time_emb_proj

    def forward(self, hidden: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        """[N, C, H, W] and the time embedding [1, E] to [N, C', H, W]."""
        inner = self.conv1(F.silu(self.norm1(hidden)))
        if self.time is not None:
            assert embedding is not None
            inner = inner + self.time(F.silu(embedding))[:, :, None, None]
        inner = self.conv2(F.silu(self.norm2(inner)))
        return inner + (hidden if self.shortcut is None else self.shortcut(hidden))


class TimeEmbedding(nn.Module):
    """The embedding of the fixed timestep, [1, E], computed anew for every picture, as published."""

    timestep: torch.Tensor

    def __init__(self, features: DiffusionFeatures) -> None:
        super().__init__()
        self.project, self.embed = features.unet.time_proj, features.unet.time_embedding
        self.register_buffer("timestep", features.timestep, persistent=False)

    def forward(self, dtype: torch.dtype) -> torch.Tensor:
        """No input: the timestep is fixed."""
        return self.embed(self.project(self.timestep).to(dtype))


class Double(nn.Module):
    """Nearest up-sampling by 2 and a convolution. Cells are copied, in operators that every type and runtime has."""

    def __init__(self, upsampler: Any) -> None:
        super().__init__()
        self.conv = upsampler.conv

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, C', 2 H, 2 W]."""
        height, width = hidden.shape[2:]
        rows = torch.stack([hidden, hidden], dim=4).reshape(*hidden.shape[:2], height, 1, 2 * width)
        return self.conv(torch.cat([rows, rows], dim=3).reshape(*hidden.shape[:2], 2 * height, 2 * width))


class Stage(nn.Module):
    """ResNets of one resolution, each with a transformer or without, and what changes the resolution."""

    def __init__(self, block: Any, want_maps: bool, tap: int | None = None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResNet(resnet) for resnet in block.resnets)
        attentions = getattr(block, "attentions", None) or []
        self.attentions = nn.ModuleList(Transformer(transformer, want_maps) for transformer in attentions)
        self.resize: nn.Module | None = None
        for changer in getattr(block, "downsamplers", None) or ():
            self.resize = changer
        for changer in getattr(block, "upsamplers", None) or ():
            self.resize = Double(changer)
        self.tap = tap

    def layer(
        self, index: int, hidden: torch.Tensor, embedding: torch.Tensor | None, context: torch.Tensor
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The ``index``-th ResNet and transformer; and the latter's wanted maps."""
        hidden = self.resnets[index](hidden, embedding)
        return self.attentions[index](hidden, context) if len(self.attentions) else (hidden, [])


class DeviceUNet(nn.Module):
    """One pass at a fixed timestep, read out at its decoder's levels; see ``kcdp.models.diffusion_features``.

    Args:
        features: the trained extractor; its tensors are shared, its modules must be a copy's.
    """

    def __init__(self, features: DiffusionFeatures) -> None:
        super().__init__()
        unet = features.unet
        mapped = {level.stride for level in features.levels if level.map_channels}
        strides = [level.stride for level in features.levels]
        self.names = tuple(level.name for level in features.levels)
        self.time: TimeEmbedding | None = TimeEmbedding(features)
        self.conv_in = unet.conv_in
        self.down = nn.ModuleList(
            Stage(block, stride in mapped) for block, stride in zip(unet.down_blocks, strides, strict=True)
        )
        middle = unet.mid_block
        self.mid_resnets = nn.ModuleList(ResNet(resnet) for resnet in (middle.resnets if middle is not None else ()))
        self.mid_attentions = nn.ModuleList(
            Transformer(transformer, False) for transformer in (middle.attentions if middle is not None else ())
        )
        last = len(unet.up_blocks) - 1
        self.up = nn.ModuleList(
            Stage(block, stride in mapped, len(block.resnets) - (1 if number == last else 2))
            for number, (block, stride) in enumerate(zip(unet.up_blocks, reversed(strides), strict=True))
        )

    def forward(
        self, latents: torch.Tensor, context: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """A pass.

        Args:
            latents: [N, C, h, w].
            context: knowledge [N or 1, T, width], or what the attentions take in its place.

        Returns:
            decoder features by level name, [N, C, H, W], and, for levels that have them, cross-attention maps averaged
            over heads and layers, [N, H * W, T]; fine to coarse.
        """
        embedding = self.time(latents.dtype) if self.time is not None else None
        maps: dict[str, list[torch.Tensor]] = {name: [] for name in self.names}
        features = {}
        hidden = self.conv_in(latents)
        skips = [hidden]
        for name, stage in zip(self.names, self.down, strict=True):
            assert isinstance(stage, Stage)
            for index in range(len(stage.resnets)):
                hidden, found = stage.layer(index, hidden, embedding, context)
                maps[name] += found
                skips.append(hidden)
            if stage.resize is not None:
                hidden = stage.resize(hidden)
                skips.append(hidden)
        for index, resnet in enumerate(self.mid_resnets):
            if index:
                hidden, _ = self.mid_attentions[index - 1](hidden, context)
            hidden = resnet(hidden, embedding)
        for name, stage in zip(reversed(self.names), self.up, strict=True):
            assert isinstance(stage, Stage)
            for index in range(len(stage.resnets)):
                hidden, found = stage.layer(index, torch.cat([hidden, skips.pop()], dim=1), embedding, context)
                maps[name] += found
                if index == stage.tap:
                    features[name] = hidden
            if stage.resize is not None:
                hidden = stage.resize(hidden)
        averaged = {name: torch.stack(found).mean(dim=0) if len(found) > 1 else found[0]
                    for name, found in maps.items() if found}  # fmt: skip
        return {name: features[name] for name in self.names}, averaged
