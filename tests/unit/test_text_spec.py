"""What a manifest says of captions on the device, and everything that it must not say."""

from __future__ import annotations

import json

import pytest

from kcdp.errors import KcdpError
from kcdp.text_spec import TextSpec, read_knowledge

SPEC = TextSpec(16, 32, "seeded-text-32x2-0123", prefix="a sticker of", separator="")
AGAIN = "export the bundle again"


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_it_goes_through_json_and_back():
    knowledge = json.loads(json.dumps(SPEC.to_knowledge()))
    assert (knowledge["mode"], knowledge["tokens"], knowledge["width"]) == ("input", 32, 32)
    assert read_knowledge(knowledge) == SPEC and SPEC.files() == ("text.onnx", "tokenizer.json")
    assert read_knowledge({**knowledge, "text": None}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": 2}, "context of the text side is 2; expected a whole number from 3"),
        ({"width": True}, "width of the text side is True; expected a whole number from 1"),
        ({"extractor": "spacy"}, "extractor of the text side is 'spacy'; expected one of ['rules', 'given']"),
        ({"separator": "-"}, "separator of the text side is '-'; expected one of [' ', '']"),
        ({"precision": "int8"}, "precision of the text side is 'int8'; expected one of ['float32', 'float16']"),
        ({"prefix": None}, "prefix of the text side is None; expected a text"),
        ({"graph": "../text.onnx"}, "graph of the text side is '../text.onnx'; expected the name of a file"),
    ],
)
def test_values_of_the_wrong_kind(change, message):
    knowledge = SPEC.to_knowledge()
    assert fails(lambda: read_knowledge({**knowledge, "text": knowledge["text"] | change})) == message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "constant"}, "m.json: knowledge is {'mode': 'constant', "),
        ({"more": 1}, "m.json: knowledge is {'mode': 'input', "),
        ({"tokens": "32"}, "m.json: knowledge of '32' tokens of the width 32; expected whole numbers; " + AGAIN),
        ({"tokens": 31}, "m.json: the text side makes 32 tokens of the width 32; expected 31 of the width 32, as the "),
        ({"text": []}, "m.json: the text side has []; expected ['context', "),
        (
            {"text": {"prefx": ""}},
            "m.json: the text side has ['prefx'] (did you mean 'prefix'?); expected ['context', ",
        ),
    ],
)
def test_knowledge_of_another_form(change, message):
    assert fails(lambda: read_knowledge({**SPEC.to_knowledge(), **change}, "m.json")).startswith(message)
    assert fails(lambda: read_knowledge("input", "m.json")).startswith("m.json: knowledge is 'input'; expected mode ")
