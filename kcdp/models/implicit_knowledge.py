"""Knowledge tokens from the picture's latents, so that no captioner is needed when a picture is tagged.

The implicit captioner of ODISE (Xu et al., CVPR 2023): base tokens plus a prediction behind a tanh gate that starts
closed. ODISE predicts from a CLIP image embedding; here the input is what the diffusion features start from anyway.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from kcdp.errors import KcdpError

HEADS = 4
#: Cells per side that the stem works on, and that the queries look at. They bound the cost at any picture size.
STEM_CELLS, CELLS = 16, 8


class ImplicitKnowledge(nn.Module):
    """base + tanh(gate) * prediction.

    A stem of two convolutions makes at most 8 x 8 cells of the latents; every token has a learned query that attends
    to the cells, an MLP follows, and a linear layer gives the width of the text. The gate, one number for each channel
    of the width, starts at 0: the first output is ``base`` for every picture, and the first step trains base and gate
    alone.

    Args:
        latent_channels: C.
        tokens: T.
        width: W, of the text.
        hidden: width of stem, queries and MLP; a multiple of 4.
        base: float [1, T, W], where the trained base tokens start; by default normally distributed.

    Raises:
        KcdpError: a size out of its range, or a base of another shape.
    """

    def __init__(
        self, latent_channels: int, tokens: int, width: int, *, hidden: int = 128, base: torch.Tensor | None = None
    ) -> None:
        super().__init__()
        for name, value in (("latent_channels", latent_channels), ("tokens", tokens), ("width", width)):
            if value < 1:
                raise KcdpError(f"implicit knowledge with {name} {value}", "1 or more")
        if hidden < HEADS or hidden % HEADS:
            raise KcdpError(f"implicit knowledge with hidden {hidden}", f"a multiple of {HEADS}")
        if base is not None and tuple(base.shape) != (1, tokens, width):
            raise KcdpError(f"base tokens of shape {tuple(base.shape)}", f"{(1, tokens, width)}")
        self.base = nn.Parameter(torch.randn(1, tokens, width) if base is None else base.detach().clone())
        self.gate = nn.Parameter(torch.zeros(width))
        self.norm = nn.GroupNorm(1, latent_channels)  # the scale of latents differs between autoencoders
        self.fine = nn.Conv2d(latent_channels + 2, hidden // 2, 3, padding=1)
        self.coarse = nn.Conv2d(hidden // 2, hidden, 3, padding=1)
        self.cell_norm = nn.LayerNorm(hidden)
        self.queries = nn.Parameter(torch.randn(1, tokens, hidden))
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.mixed = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.output = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, width))

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Predict.

        Args:
            latents: float [N, C, h, w], of any scale.

        Returns:
            knowledge tokens [N, T, W].
        """
        return self.base + torch.tanh(self.gate) * self.predict(latents)

    def predict(self, latents: torch.Tensor) -> torch.Tensor:
        """What is behind the gate: [N, C, h, w] to [N, T, W]."""
        cells = self.cell_norm(self.stem(latents).flatten(2).transpose(1, 2))  # [N, cells, hidden]
        queries = self.query(self.queries).expand(cells.shape[0], -1, -1)
        query, key, value = (_split_heads(x) for x in (queries, self.key(cells), self.value(cells)))
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = self.queries + self.mixed(mixed)
        return self.output(hidden + self.mlp(hidden))

    def stem(self, latents: torch.Tensor) -> torch.Tensor:
        """[N, C, h, w] to [N, hidden, up to 8, up to 8]."""
        count, _, height, width = latents.shape
        rows = torch.linspace(-1, 1, height, dtype=latents.dtype, device=latents.device)
        columns = torch.linspace(-1, 1, width, dtype=latents.dtype, device=latents.device)
        places = torch.stack(torch.meshgrid(rows, columns, indexing="ij")).expand(count, -1, -1, -1)
        fine = F.gelu(self.fine(torch.cat([self.norm(latents), places], dim=1)))
        return _shrink(F.gelu(self.coarse(_shrink(fine, STEM_CELLS))), CELLS)


def distillation_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How far predicted knowledge tokens are from those of a text encoder: 1 - cosine, plus smooth L1.

    The smooth L1 distance is in units of the target token's own root mean square. So the loss does not depend on the
    scale of a text encoder, and tokens count alike although CLIP's start-of-text token, the same for every text, has a
    norm many times that of the others. Tokens that are (nearly) 0 are measured in 1/1000 of the batch's mean unit.

    Args:
        predicted: float [N, T, W].
        target: float [N, T, W]; gets no gradient.

    Returns:
        scalar, the mean over tokens; 0 where the two are equal.

    Raises:
        ValueError: the two differ in shape.
    """
    if predicted.shape != target.shape:
        raise ValueError(f"predicted tokens {tuple(predicted.shape)} and their goal {tuple(target.shape)} differ")
    predicted, target = predicted.float(), target.detach().float()
    unit = target.square().mean(dim=2, keepdim=True).sqrt()
    unit = torch.maximum(unit, 1e-3 * unit.mean()).clamp_min(1e-12)
    distance = F.smooth_l1_loss(predicted / unit, target / unit, reduction="none").mean(dim=2)
    direction = 1 - F.cosine_similarity(predicted, target, dim=2)
    return (direction + distance).mean()


def _split_heads(tokens: torch.Tensor) -> torch.Tensor:
    """[N, L, hidden] to [N, heads, L, hidden / heads]."""
    return tokens.unflatten(2, (HEADS, -1)).transpose(1, 2)


def _shrink(features: torch.Tensor, most: int) -> torch.Tensor:
    """Average pooling to at most ``most`` cells a side; a rim that fills no cell is averaged over what is there."""
    height, width = features.shape[2:]
    size = (math.ceil(height / most), math.ceil(width / most))
    if size == (1, 1):
        return features
    return F.avg_pool2d(features, size, ceil_mode=True, count_include_pad=False)
