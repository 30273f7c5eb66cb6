"""Attention and transformer layers of a Stable-Diffusion U-Net, written out for graphs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class KeysValues(nn.Module):
    """Keys and values projected from a context.

    Args:
        to_k, to_v: linear layers [width] to [heads * d].
    """

    def __init__(self, to_k: nn.Module, to_v: nn.Module, heads: int) -> None:
        super().__init__()
        self.to_k, self.to_v, self.heads = to_k, to_v, heads

    def forward(self, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, T, width] to keys, transposed, [N, heads, d, T] and values [N, heads, T, d]."""
        keys = self.to_k(context).unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1)
        return keys, self.to_v(context).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention around the projections of diffusers' ``Attention``.

    Args:
        attention: diffusers' module.
        crosses: keys and values come from the knowledge.
        want_map: give the probabilities, averaged over heads, as well.

    Attributes:
        scale: what queries times keys are multiplied by; None: it is part of the queries' weights already.
        kernel: "probabilities": formed always, as published; "products": formed and forgotten; "fused": one operator,
            the probabilities never exist.
    """

    def __init__(self, attention: Any, crosses: bool = False, want_map: bool = False) -> None:
        super().__init__()
        self.crosses, self.want_map = crosses, want_map
        self.heads = int(attention.heads)
        self.to_q = attention.to_q
        self.keys_values: nn.Module = KeysValues(attention.to_k, attention.to_v, self.heads)
        self.to_out = attention.to_out[0]
        self.scale: float | None = (attention.to_q.out_features // self.heads) ** -0.5
        self.kernel = "probabilities"

    def forward(self, tokens: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend.

        Args:
            tokens: [N, P, C], whence the queries come.
            context: [N or 1, T, width], whence keys and values come.

        Returns:
            [N, P, C], and the mean of the heads' probabilities [N, P, T] where a map is wanted.
        """
        q = self.to_q(tokens).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.keys_values(context)
        averaged = None
        if self.want_map or self.kernel != "fused":
            scores = q @ k if self.scale is None else (q @ k) * self.scale
            probabilities = torch.softmax(scores, dim=-1)
            mixed = probabilities @ v
            if self.want_map:
                averaged = probabilities.mean(dim=1)
        else:
            shape = (q.shape[0], *v.shape[1:])
            k, v = k.transpose(2, 3).expand(shape), v.expand(shape)
            mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0 if self.scale is None else self.scale)
        return self.to_out(mixed.transpose(1, 2).flatten(2)), averaged


class FeedForward(nn.Module):
    """GEGLU (Shazeer, 2020): the widened states, half of them through GELU as a gate for the others."""

    def __init__(self, feed_forward: Any) -> None:
        super().__init__()
        self.widen, self.narrow = feed_forward.net[0].proj, feed_forward.net[2]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N, P, C] to the same."""
        states, gate = self.widen(tokens).chunk(2, dim=-1)
        return self.narrow(states * F.gelu(gate))


class Layer(nn.Module):
    """Self-attention, attention to the knowledge, feed-forward; each behind a norm and added to what came in."""

    def __init__(self, block: Any, want_map: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = block.norm1, block.norm2, block.norm3
        self.self_attention = Attention(block.attn1)
        self.cross_attention = Attention(block.attn2, True, want_map)
        self.feed_forward = FeedForward(block.ff)

    def forward(self, tokens: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """[N, P, C] and knowledge [N or 1, T, width] to [N, P, C] and, where wanted, the map [N, P, T]."""
        normed = self.norm1(tokens)
        tokens = tokens + self.self_attention(normed, normed)[0]
        attended, averaged = self.cross_attention(self.norm2(tokens), context)
        tokens = tokens + attended
        return tokens + self.feed_forward(self.norm3(tokens)), averaged


class Transformer(nn.Module):
    """Layers over the cells of a picture, between two projections.

    Args:
        transformer: diffusers' ``Transformer2DModel``; its 1x1 convolutions, if it has such, become linear layers.
        want_maps: give the cross-attention maps of its layers.
    """

    def __init__(self, transformer: Any, want_maps: bool) -> None:
        super().__init__()
        self.norm = transformer.norm
        self.proj_in, self.proj_out = transformer.proj_in, transformer.proj_out
        self.linear_projection = bool(transformer.use_linear_projection)
        self.layers = nn.ModuleList(Layer(block, want_maps) for block in transformer.transformer_blocks)

    def forward(self, hidden: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """[N, C, H, W] to the same, and the wanted maps [N, H * W, T]."""
        height, width = hidden.shape[2:]
        residual, hidden = hidden, self.norm(hidden)
        if self.linear_projection:
            tokens = self.proj_in(hidden.flatten(2).transpose(1, 2))
        else:
            tokens = self.proj_in(hidden).flatten(2).transpose(1, 2)
        maps = []
        for layer in self.layers:
            tokens, averaged = layer(tokens, context)
            if averaged is not None:
                maps.append(averaged)
        if self.linear_projection:
            hidden = self.proj_out(tokens).transpose(1, 2).unflatten(2, (height, width))
        else:
            hidden = self.proj_out(tokens.transpose(1, 2).unflatten(2, (height, width)))
        return hidden + residual, maps
