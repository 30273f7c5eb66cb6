"""The six prompts: what CLIP's tokenizer makes of them, and where the emotion stands."""

from __future__ import annotations

import pytest
import torch

from kcdp.errors import KcdpError
from kcdp.knowledge.prompts import emotion_mask, emotion_position, prompt_layout, prompt_tokens
from kcdp.knowledge.text import SeededText
from kcdp.labels import LABELS

SOT, EOT, A, PHOTO, OF = 49406, 49407, 320, 1125, 539


@pytest.fixture(scope="module")
def encoder():
    return SeededText(8, heads=2, tokens=12)


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_published_prompts_are_seven_tokens(encoder):
    """Six for five of them and one of padding; seven for disgust, whose word is two tokens."""
    layout = prompt_layout(encoder)
    assert layout.texts[0] == "A surprise photo of" and len(layout.texts) == 6 and layout.length == 7
    ids = encoder.tokenize(layout.texts)[:, :7].tolist()
    assert ids[LABELS.index("happy")] == [SOT, A, 900, PHOTO, OF, EOT, 0]
    assert ids[LABELS.index("disgust")] == [SOT, A, 9793, 545, PHOTO, OF, EOT]
    assert [row.index(EOT) for row in ids] == [5, 5, 6, 5, 5, 5]


def test_prompt_tokens_are_the_encoders_states(encoder):
    tokens = prompt_tokens(encoder)
    assert tokens.shape == (6, 7, 8) and tokens.dtype == torch.float32
    for i, label in enumerate(LABELS):
        assert torch.allclose(tokens[i], encoder.encode([f"A {label} photo of"])[0, :7], atol=1e-6)


def test_only_the_emotion_and_what_follows_differs(encoder):
    tokens = prompt_tokens(encoder)
    assert torch.allclose(tokens[:, :2], tokens[:1, :2].expand(6, -1, -1), atol=1e-6)
    assert all(not torch.allclose(tokens[0, 2:], tokens[i, 2:], atol=0.1) for i in range(1, 6))


def test_where_the_emotion_stands(encoder):
    assert emotion_position(encoder).tolist() == [2, 2, 3, 2, 2, 2]
    mask = emotion_mask(encoder)
    assert mask.dtype == torch.bool and mask.shape == (6, 7)
    assert [row.nonzero().flatten().tolist() for row in mask] == [[2], [2], [2, 3], [2], [2], [2]]


def test_other_templates(encoder):
    assert emotion_position(encoder, "{}").tolist() == [1, 1, 2, 1, 1, 1]
    assert emotion_position(encoder, "it is so {}!").tolist() == [4, 4, 5, 4, 4, 4]
    assert prompt_tokens(encoder, "it is so {}!").shape == (6, 8, 8)


def test_other_words(encoder):
    words = ("surprised", "happy", "disgusted", "afraid", "sad", "angry")
    assert emotion_position(encoder, words=words).tolist() == [2] * 6
    assert prompt_tokens(encoder, words=words, single_token=True).shape == (6, 6, 8)


def test_a_split_word_where_one_token_is_wanted(encoder):
    assert fails(lambda: prompt_tokens(encoder, single_token=True)) == (
        "the emotion word 'disgust' is 2 tokens; expected one token; choose another word for it"
    )
    assert fails(lambda: prompt_layout(encoder, words=("happy", " "))).startswith("the emotion word ' ' is 0 tokens")


def test_templates_that_cannot_be_used(encoder):
    for template in ("A photo", "{} and {}"):
        assert fails(lambda template=template: prompt_tokens(encoder, template)) == (
            f'the prompt template is {template!r}; expected a text with one {{}}, such as "A {{}} photo of"'
        )
    assert fails(lambda: prompt_tokens(encoder, "un{}ly")) == (
        "the prompt template 'un{}ly' joins 'surprise' to its neighbours; expected {} as a word of its own; "
        "put spaces around it"
    )
    assert fails(lambda: prompt_tokens(SeededText(8, heads=2, tokens=6))) == (
        "the prompt 'A disgust photo of' is 7 tokens; expected at most 6, the text encoder's; shorten the template"
    )
