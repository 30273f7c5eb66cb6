"""CLIP's text tower (Radford et al., ICML 2021): token ids in, token states after the final LayerNorm out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import nn

from kcdp.errors import KcdpError, require


@dataclass(frozen=True)
class TowerShape:
    """What a tower is, apart from its weights.

    Attributes:
        width, layers, heads: of the transformer.
        tokens: context length.
        vocabulary: number of token ids.
        mlp_ratio: hidden width of the feed-forward over ``width``.
        quick_gelu: x * sigmoid(1.702 x), as OpenAI's models were trained, in place of GELU.

    Raises:
        KcdpError: a size out of range, heads that do not divide the width, a vocabulary smaller than the tokenizer's.
    """

    width: int
    layers: int
    heads: int
    tokens: int = 77
    vocabulary: int = 49408
    mlp_ratio: float = 4.0
    quick_gelu: bool = False

    def __post_init__(self) -> None:
        # A text needs start-of-text, a word and end-of-text; open_clip's tokenizer knows 49,408 pieces.
        for name, low in (("width", 1), ("layers", 1), ("heads", 1), ("tokens", 3), ("vocabulary", 49408)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < low:
                raise KcdpError(f"{name} of the text encoder is {value!r}", f"a whole number from {low}")
        if self.width % self.heads:
            raise KcdpError(f"heads of the text encoder is {self.heads}", f"a divisor of its width {self.width}")


class TextTower(nn.Module):
    """open_clip's transformer between embeddings and final norm; no pooling, no projection.

    Parameters are named as in an open_clip ``CLIP``, so that its weights fit by name. The attention is causal: a
    token's state depends on itself and on what stands before it. Nothing masks the padding; its states are part
    of the output, as in Stable Diffusion.

    Args:
        shape: its sizes.
        tensors: every parameter by name, float32; they become the parameters without a copy, frozen.
    """

    causal_mask: torch.Tensor

    def __init__(self, shape: TowerShape, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        layers = require("open_clip", "train").transformer
        with torch.device("meta"):  # shapes only: nothing is drawn, nothing is allocated
            self.token_embedding = nn.Embedding(shape.vocabulary, shape.width)
            self.positional_embedding = nn.Parameter(torch.empty(shape.tokens, shape.width))
            self.transformer = layers.Transformer(
                width=shape.width, layers=shape.layers, heads=shape.heads, mlp_ratio=shape.mlp_ratio,
                act_layer=layers.QuickGELU if shape.quick_gelu else nn.GELU,
            )  # fmt: skip
            self.ln_final = nn.LayerNorm(shape.width)
        if tensors:
            self.load_state_dict(dict(tensors), assign=True)
        mask = torch.full((shape.tokens, shape.tokens), float("-inf")).triu(1)
        self.register_buffer("causal_mask", mask, persistent=False)
        self.requires_grad_(False).eval()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """int64 [N, tokens] -> states [N, tokens, width]."""
        hidden = self.token_embedding(ids) + self.positional_embedding
        return self.ln_final(self.transformer(hidden, attn_mask=self.causal_mask))


def parameter_shapes(shape: TowerShape) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter of a tower."""
    return {name: tuple(value.shape) for name, value in TextTower(shape, {}).named_parameters()}


def fingerprint(shape: TowerShape, tensors: Mapping[str, torch.Tensor]) -> str:
    """16 hexadecimal digits of all that decides a tower's states: sizes, activation, and every weight."""
    digest = hashlib.sha256(json.dumps(asdict(shape), sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()[:16]
