"""Knowledge tokens k of one picture: its caption's token states, and below them the sum of its triples'.

With CLIP ViT-L/14, 154 x 768. Triples are encoded one by one and added position by position, so k's length does not
depend on how many there are. A picture without triples has its caption there again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kcdp.errors import KcdpError
from kcdp.knowledge.text import TextEncoder
from kcdp.knowledge.texts import knowledge_texts

Encode = Callable[[Sequence[str]], torch.Tensor]


def knowledge_tokens(caption: str, triples: Sequence[str], encode: Encode, *, prefix: str = "") -> torch.Tensor:
    """k of one picture, nothing cached.

    Args:
        encode: ``TextEncoder.encode``: texts to states float32 [N, T, W].

    Returns:
        float32 [2T, W]: rows 0..T-1 the caption, rows T..2T-1 the triples' sum.
    """
    first, *rest = knowledge_texts(caption, triples, prefix=prefix)
    unique = list(dict.fromkeys([first, *rest]))
    states = dict(zip(unique, encode(unique), strict=True))
    return torch.cat([states[first], torch.stack([states[text] for text in rest]).sum(dim=0)])


def constant_tokens(text: str, tokens: int, encoder: TextEncoder) -> torch.Tensor:
    """One sentence as the knowledge of all pictures.

    Returns:
        float32 [tokens, W]: with twice the encoder's tokens the sentence stands in both halves, as a caption without
        triples does; with fewer than that, the first so many states of one.

    Raises:
        KcdpError: more tokens than that.
    """
    states = encoder.encode([text])[0]
    if tokens > 2 * len(states):
        raise KcdpError(
            f"model.knowledge.tokens is {tokens}", f"at most {2 * len(states)}, twice the text encoder's tokens",
            "lower it, or raise model.text.tokens",
        )  # fmt: skip
    return torch.cat([states, states])[:tokens].clone()
