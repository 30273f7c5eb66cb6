"""The six counterfactual prompts of CLIEA: one text per emotion, equal but for the emotion's word.

"A surprise photo of" and its five siblings. CLIP's tokenizer makes six tokens of each (start-of-text, a, surprise,
photo, of, end-of-text), but of the third, whose word it splits into "disgu" and "st", seven. That is the 7 of the
paper's 6 x 7 x 768: the longest prompt; the five others end in one token of padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kcdp.errors import KcdpError
from kcdp.knowledge.text import TextEncoder
from kcdp.labels import LABELS

#: ``{}`` stands for the emotion.
TEMPLATE = "A {} photo of"


@dataclass(frozen=True)
class PromptLayout:
    """Where things stand in the prompts.

    Attributes:
        texts: one prompt per emotion, in label order.
        length: tokens of the longest prompt, start-of-text and end-of-text included: P.
        words: per prompt, first and last position of its emotion word's tokens.
    """

    texts: tuple[str, ...]
    length: int
    words: tuple[tuple[int, int], ...]


def prompt_layout(
    encoder: TextEncoder, template: str = TEMPLATE, *, words: Sequence[str] = LABELS, single_token: bool = False
) -> PromptLayout:
    """Tokenizes the prompts and finds the emotion words in them.

    Args:
        template: a text with one ``{}``, where the emotion stands by itself.
        words: what to put there, in label order.
        single_token: refuse words that the tokenizer splits, for uses that need one and the same position.

    Raises:
        KcdpError: no or several ``{}``, a prompt longer than the encoder's tokens, a word that joins its neighbours
            or, with ``single_token``, one that is split.
    """
    if template.count("{}") != 1:
        raise KcdpError(f"the prompt template is {template!r}", 'a text with one {}, such as "A {} photo of"')
    before, after = template.split("{}")
    start, texts = len(_ids(encoder, before)), tuple(template.replace("{}", word) for word in words)
    spans, lengths = [], []
    for word, text in zip(words, texts, strict=True):
        pieces = _ids(encoder, word)
        if not pieces or (single_token and len(pieces) > 1):
            raise KcdpError(
                f"the emotion word {word!r} is {len(pieces)} tokens", "one token", "choose another word for it"
            )
        alone = [*_ids(encoder, before), *pieces, *_ids(encoder, after)]
        if len(alone) + 2 > encoder.tokens:
            raise KcdpError(
                f"the prompt {text!r} is {len(alone) + 2} tokens", f"at most {encoder.tokens}, the text encoder's",
                "shorten the template",
            )  # fmt: skip
        if _ids(encoder, text) != alone:
            raise KcdpError(
                f"the prompt template {template!r} joins {word!r} to its neighbours", "{} as a word of its own",
                "put spaces around it",
            )  # fmt: skip
        spans.append((1 + start, start + len(pieces)))  # 1: start-of-text
        lengths.append(len(alone) + 2)
    return PromptLayout(texts, max(lengths), tuple(spans))


def prompt_tokens(
    encoder: TextEncoder, template: str = TEMPLATE, *, words: Sequence[str] = LABELS, single_token: bool = False
) -> torch.Tensor:
    """Token states of the prompts, cut to the longest: float32 [6, P, W], in label order; P = 7 as published.

    Arguments and errors as for ``prompt_layout``.
    """
    layout = prompt_layout(encoder, template, words=words, single_token=single_token)
    return encoder.encode(layout.texts)[:, : layout.length].clone()


def emotion_position(encoder: TextEncoder, template: str = TEMPLATE, *, words: Sequence[str] = LABELS) -> torch.Tensor:
    """int64 [6]: position of the last token of each prompt's emotion word.

    The attention is causal: of a word in two pieces, only the second's state has seen all of it. As published: 2, and 3
    for disgust.
    """
    return torch.tensor([last for _, last in prompt_layout(encoder, template, words=words).words])


def emotion_mask(encoder: TextEncoder, template: str = TEMPLATE, *, words: Sequence[str] = LABELS) -> torch.Tensor:
    """bool [6, P]: which tokens are the emotion word's own."""
    layout = prompt_layout(encoder, template, words=words)
    positions = torch.arange(layout.length)
    return torch.stack([(positions >= first) & (positions <= last) for first, last in layout.words])


def _ids(encoder: TextEncoder, text: str) -> list[int]:
    """The ids between start-of-text and end-of-text (the largest id)."""
    row = encoder.tokenize([text])[0]
    return [int(i) for i in row[1 : int(row.argmax())]]
