"""From pictures to logits as one module with plain tensors in and out: what is traced, and what the passes rewrite."""

from __future__ import annotations

import torch
from torch import nn

from kcdp.export.device.sharing import share
from kcdp.export.device.unet import DeviceUNet
from kcdp.models.kadap import ConstantKnowledge, Kadap
from kcdp.models.moe import MixtureOfExperts
from kcdp.models.pyramid import FeaturePyramid, pool_levels


class ReferenceModel(nn.Module):
    """The trained model itself with its outputs by name: what an exported graph has to agree with.

    Args:
        model: put in evaluation mode, otherwise unchanged.
        fixed: float [1, T, W], the knowledge of all pictures; None: the model's own, or given with each batch.

    Attributes:
        output_names: "logits", "v", the levels' decoder features fine to coarse ("s8", ...), the cross-attention maps
            ("maps_s16", ...).
    """

    def __init__(self, model: Kadap, fixed: torch.Tensor | None = None) -> None:
        super().__init__()
        self.fixed = fixed
        self.model = model.eval()
        self.eval()
        self.output_names = output_names(model)

    def forward(self, images: torch.Tensor, knowledge: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """uint8 [N, size, size, 3], RGB, and knowledge tokens where the model takes them, to the tensors of
        ``output_names``: [N, 6], [N, V], [N, C, H, W] each, [N, T, H, W] each."""
        output = self.model(images, self.fixed if knowledge is None else knowledge)
        levels = self.model.features.levels
        features = [output.levels[level.name][:, : level.channels - level.map_channels] for level in levels]
        maps = [output.levels[level.name][:, level.channels - level.map_channels :] for level in levels
                if level.map_channels]  # fmt: skip
        return (output.logits, output.v, *features, *maps)


class DeviceModel(nn.Module):
    """The same function, open to rewriting. As made here it is the published graph; see ``kcdp.export.passes``.

    It shares the tensors of the trained model, in which it changes nothing.

    Args:
        model: the trained model.
        takes_knowledge: knowledge tokens are an input, whatever the model could predict itself.
        fixed: float [1, T, W], the knowledge of all pictures, whatever the model could predict itself; None: none.

    Attributes:
        pixels: bytes to the encoder's numbers; None: the input is float [N, 3, S, S], scaled already.
        knowledge: latents to the attentions' context; None: the context is an input.
        context_mean: context to what joins v, [N or 1, width]; None: nothing joins.
        head: decoder features and maps to v.
        norm, moe: v, joined, to logits.
    """

    def __init__(self, model: Kadap, takes_knowledge: bool = False, fixed: torch.Tensor | None = None) -> None:
        super().__init__()
        source = share(model.eval())
        self.output_names = output_names(model)
        self.level_names = tuple(level.name for level in model.features.levels)
        self.takes_knowledge, self.token_shape = takes_knowledge, (model.features.tokens, model.features.width)
        self.input_scale, self.input_shift = model.scale, model.shift
        self.pixels: nn.Module | None = None
        self.encoder: nn.Module = source.features.encoder
        self.knowledge: nn.Module | None = None if takes_knowledge else source.knowledge
        if fixed is not None:
            self.knowledge = ConstantKnowledge(fixed.shape[1], fixed.shape[2], fixed)
        self.context_mean: nn.Module | None = MeanToken() if model.join else None
        self.unet = DeviceUNet(source.features)
        self.head: nn.Module = PlainHead(source.pyramid, self.level_names)
        self.norm: nn.Module = source.norm
        self.moe: nn.Module = PlainExperts(source.moe)
        self.requires_grad_(False)
        self.eval()

    def forward(self, images: torch.Tensor, knowledge: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        """The tensors of ``output_names``, as ``ReferenceModel`` gives them.

        Args:
            images: uint8 [N, S, S, 3], RGB; float [N, 3, S, S] as ``scaled`` makes it while ``pixels`` is None.
            knowledge: float [N or 1, T, W] where the model takes it.
        """
        latents = self.encoder(images if self.pixels is None else self.pixels(images))
        context = knowledge if self.knowledge is None else self.knowledge(latents)
        features, maps = self.unet(latents, context)
        v = self.head(features, maps)
        joined = v
        if self.context_mean is not None:
            joined = torch.cat([v, self.context_mean(context).expand(v.shape[0], -1)], dim=1)
        logits = self.moe(self.norm(joined))
        cells = {name: features[name].shape[2:] for name in maps}
        pictures = [maps[name].transpose(1, 2).unflatten(2, cells[name]) for name in maps]
        return (logits, v, *features.values(), *pictures)

    def scaled(self, images: torch.Tensor) -> torch.Tensor:
        """Bytes [N, S, S, 3] to what the model takes: themselves, or [N, 3, S, S] scaled while ``pixels`` is None."""
        if self.pixels is not None:
            return images
        return images.permute(0, 3, 1, 2).to(self.input_scale.dtype) * self.input_scale + self.input_shift

    def run_shapes(self, size: int) -> None:
        """Run one picture through a copy on the device "meta": nothing is computed but shapes."""
        images = torch.empty(1, size, size, 3, dtype=torch.uint8, device="meta")
        if self.pixels is None:
            images = torch.empty(1, 3, size, size, dtype=self.input_scale.dtype, device="meta")
        knowledge = None
        if self.takes_knowledge:
            knowledge = torch.empty(1, *self.token_shape, dtype=self.input_scale.dtype, device="meta")
        with torch.no_grad():
            self(images, knowledge)


class MeanToken(nn.Module):
    """The mean of the knowledge tokens."""

    def forward(self, context: torch.Tensor) -> torch.Tensor:
        """[N or 1, T, W] to [N or 1, W]."""
        return context.mean(dim=1)


class PlainHead(nn.Module):
    """The pyramid on whole feature maps, then the mean of each level, as published."""

    def __init__(self, pyramid: FeaturePyramid, names: tuple[str, ...]) -> None:
        super().__init__()
        self.pyramid, self.names = pyramid, names

    def forward(self, features: dict[str, torch.Tensor], maps: dict[str, torch.Tensor]) -> torch.Tensor:
        """[N, C, H, W] and [N, H * W, T] by level to v [N, V]."""
        joined = {}
        for name in self.names:
            joined[name] = features[name]
            if name in maps:
                cells = maps[name].transpose(1, 2).unflatten(2, features[name].shape[2:])
                joined[name] = torch.cat([features[name], cells], dim=1)
        return pool_levels(self.pyramid(joined))


class PlainExperts(nn.Module):
    """The mixture as it is trained; its loop over pictures, if it has one, becomes the dense form: one function."""

    def __init__(self, moe: MixtureOfExperts) -> None:
        super().__init__()
        self.moe = moe
        self.moe.routing = "dense"

    def forward(self, joined: torch.Tensor) -> torch.Tensor:
        """[N, features] to logits [N, 6]."""
        return self.moe(joined).logits


def output_names(model: Kadap) -> tuple[str, ...]:
    """Names of a model's outputs, in order; see ``ReferenceModel``."""
    levels = model.features.levels
    maps = (f"maps_{level.name}" for level in levels if level.map_channels)
    return ("logits", "v", *(level.name for level in levels), *maps)
