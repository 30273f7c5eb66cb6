"""k of one picture: the caption's states above the sum of its triples'."""

from __future__ import annotations

import pytest
import torch

from kcdp.errors import KcdpError
from kcdp.knowledge.embedding import knowledge_texts, knowledge_tokens
from kcdp.knowledge.text import SeededText

CAPTION, TRIPLES = "a cat holds a red heart", ["cat holds heart", "heart is red"]


@pytest.fixture(scope="module")
def encoder():
    return SeededText(8, heads=2, tokens=10)


def test_caption_above_the_sum_of_the_triples(encoder):
    k = knowledge_tokens(CAPTION, TRIPLES, encoder.encode)
    caption, first, second = encoder.encode([CAPTION, *TRIPLES])
    assert k.shape == (20, 8) and k.dtype == torch.float32
    assert torch.allclose(k[:10], caption, atol=1e-6)
    assert torch.allclose(k[10:], first + second, atol=1e-6)


def test_the_length_does_not_depend_on_the_triples(encoder):
    for triples in ([], TRIPLES[:1], TRIPLES * 4):
        assert knowledge_tokens(CAPTION, triples, encoder.encode).shape == (20, 8)
    twice = knowledge_tokens(CAPTION, TRIPLES[:1] * 2, encoder.encode)
    assert torch.allclose(twice[10:], 2 * encoder.encode(TRIPLES[:1])[0], atol=1e-6)  # a sum, not a set


@pytest.mark.parametrize("triples", [[], [""], ["  ", "\n"]])
def test_without_triples_the_caption_is_used_again(triples, encoder):
    k = knowledge_tokens(CAPTION, triples, encoder.encode)
    assert torch.equal(k[:10], k[10:])
    assert knowledge_texts(CAPTION, triples) == (CAPTION, CAPTION)


def test_the_prefix_is_the_captions_only():
    assert knowledge_texts(CAPTION, TRIPLES, prefix=" a sticker of ") == (f"a sticker of {CAPTION}", *TRIPLES)
    assert knowledge_texts(CAPTION, (), prefix="a sticker of") == (f"a sticker of {CAPTION}",) * 2
    assert knowledge_texts(CAPTION, (), prefix="  ") == (CAPTION, CAPTION)


def test_the_prefix_changes_k(encoder):
    plain, styled = (knowledge_tokens(CAPTION, TRIPLES, encoder.encode, prefix=p) for p in ("", "a sticker of"))
    assert not torch.allclose(plain[:10], styled[:10], atol=0.1) and torch.allclose(plain[10:], styled[10:], atol=1e-6)


def test_no_text_is_encoded_twice(encoder):
    seen = []
    knowledge_tokens("a b c", ["a b c", "d e f", "d e f"], lambda texts: seen.extend(texts) or encoder.encode(texts))
    assert seen == ["a b c", "d e f"]


def test_one_text_is_not_a_list_of_them():
    with pytest.raises(KcdpError) as caught:
        knowledge_texts(CAPTION, "cat holds heart")
    assert str(caught.value) == "the triples are the text 'cat holds heart'; expected a list of texts"
