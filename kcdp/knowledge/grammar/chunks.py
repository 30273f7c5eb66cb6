"""Tagged words -> chunks: noun phrases with their head, verb groups with their main verb, and single words between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kcdp.knowledge.grammar import words as w
from kcdp.knowledge.grammar.tagging import Token

_BEFORE_HEAD = ("DET", "POSS", "NUM", "ADJ")
_VERBS = ("ING", "ED", "FIN", "BASE")


@dataclass(frozen=True)
class Chunk:
    """A piece of a sentence.

    Attributes:
        kind: "NP", "VG", "PREP", "PRT", "CONJ", "COMMA", "SUB", "REL", "ADJ" or "ADV".
        text: without articles; of a verb group, its main verb (with "not" before it).
        head: of a noun phrase the head noun; of a verb group the main verb's base form.
        form: of a verb group "finite", "passive" (finite too), "ing", "ed" or "to"; of a noun phrase
            "pronoun", "bare" (one noun in the singular, alone) or "".
    """

    kind: str
    text: str
    head: str = ""
    form: str = ""


def chunk(tokens: Sequence[Token]) -> list[Chunk]:
    """The chunks of one sentence. "a bowl of soup" is one noun phrase, and "a picture of a cat" is just the cat."""
    chunks: list[Chunk] = []
    i = 0
    while i < len(tokens):
        found, i = _next_chunk(tokens, i)
        if found is not None:
            chunks.append(found)
    return _join_of(chunks)


def _next_chunk(tokens: Sequence[Token], i: int) -> tuple[Chunk | None, int]:
    for reader in (_verb_group, _noun_phrase):
        found, end = reader(tokens, i)
        if found is not None:
            return found, end
    token = tokens[i]
    if token.tag in ("PREP", "PRT", "CONJ", "COMMA", "SUB", "REL"):
        return Chunk(token.tag, token.text), i + 1
    if token.tag == "ADV" and token.text not in ("not", "n't"):
        end = i + 1
        while end < len(tokens) and tokens[end].tag == "ADV":
            end += 1
        if end < len(tokens) and tokens[end].tag == "ADJ":
            return Chunk("ADJ", _text(tokens[i : end + 1]), tokens[end].text), end + 1
        return Chunk("ADV", _text(tokens[i:end]), tokens[end - 1].text), end
    if token.tag == "ADJ":
        end = i + 1
        while _tag(tokens, end) == "ADJ":
            end += 1
        return Chunk("ADJ", _text(tokens[i:end]), tokens[end - 1].text), end
    return None, i + 1  # a determiner or an auxiliary with nothing to belong to


def _noun_phrase(tokens: Sequence[Token], start: int) -> tuple[Chunk | None, int]:
    """Determiner, adjectives (commas and "and" between them), nouns; or a pronoun."""
    if tokens[start].tag == "PRON":
        return Chunk("NP", tokens[start].text, tokens[start].text, "pronoun"), start + 1
    i = start
    while i < len(tokens):
        tag = tokens[i].tag
        if (
            tag in _BEFORE_HEAD
            or (tag == "ADV" and _tag(tokens, i + 1) == "ADJ" and _has_noun(tokens, i + 1))
            or (
                tag in ("COMMA", "CONJ")
                and i > start
                and _tag(tokens, start - 1) != "NOUN"
                and tokens[i - 1].tag == "ADJ"
                and _adjective_list(tokens, i + 1)
            )
        ):
            i += 1
        else:
            break
    end = i
    while _tag(tokens, end) == "NOUN":
        end += 1
    if end == i:
        last = tokens[i - 1] if i > start else None
        if last is not None and last.tag == "NUM":  # "one of them", "two on a bench"
            return Chunk("NP", _text(tokens[start:i]), last.text), i
        return None, start
    bare = i == start and not tokens[end - 1].text.endswith("s")
    return Chunk("NP", _text(tokens[start:end]), tokens[end - 1].text, "bare" if bare else ""), end


def _adjective_list(tokens: Sequence[Token], i: int) -> bool:
    """Whether adjectives and then a noun stand at i: the rest of "cute, smiling bear"."""
    return _tag(tokens, i) == "ADJ" and _has_noun(tokens, i)


def _has_noun(tokens: Sequence[Token], i: int) -> bool:
    while _tag(tokens, i) in ("ADJ", "COMMA", "CONJ") and _tag(tokens, i + 1) in ("ADJ", "NOUN", "CONJ"):
        i += 1
    return _tag(tokens, i) == "NOUN"


def _verb_group(tokens: Sequence[Token], start: int) -> tuple[Chunk | None, int]:
    """Auxiliaries, adverbs and one main verb; or a form of "be" alone."""
    begin = start
    while _tag(tokens, begin) == "ADV" and _verb_comes(tokens, begin):  # "happily eating", "half covered"
        begin += 1
    first = tokens[begin]
    if first.tag not in ("AUX", "BE", "TO", *_VERBS):
        return None, start
    form = {"TO": "to", "ING": "ing", "ED": "ed"}.get(first.tag, "finite")
    negated, be, i = False, "", start
    while i < len(tokens):
        token = tokens[i]
        if token.tag in _VERBS:
            form = "passive" if be and form == "finite" and token.tag == "ED" else form
            return Chunk("VG", f"{'not ' * negated}{token.text}", w.lemma(token.text), form), i + 1
        if token.tag in ("BE", "AUX", "TO"):
            be = token.text if token.tag == "BE" else be
        elif token.text in ("not", "n't"):
            negated = True
        elif not (token.tag == "ADV" and _verb_comes(tokens, i)):
            break
        i += 1
    if not be:
        return None, start
    plain = {"'s": "is", "'re": "are", "'m": "am"}.get(be, be)
    return Chunk("VG", f"{plain}{' not' * negated}", "be", form), i


def agree(noun: Chunk, verb: Chunk) -> bool:
    """Whether what ends a list can be a verb's subject: in "hat and glasses looks", "a suit and tie is" it cannot."""
    plural = noun.head.endswith("s") and not noun.head.endswith("ss")
    singular = "s" in w.verb_forms().get(verb.text, ("", frozenset()))[1] or verb.text in ("is", "was", "has", "does")
    return noun.form != "bare" and not (verb.form == "finite" and plural and singular)


def _verb_comes(tokens: Sequence[Token], i: int) -> bool:
    while _tag(tokens, i) == "ADV":
        i += 1
    return _tag(tokens, i) in (*_VERBS, "BE")


def _join_of(chunks: list[Chunk]) -> list[Chunk]:
    """Noun phrases joined by "of"; a picture of something is that something."""
    joined: list[Chunk] = []
    for piece in chunks:
        of = len(joined) > 1 and joined[-1] == Chunk("PREP", "of") and joined[-2].kind == "NP"
        if piece.kind == "NP" and of:
            joined.pop()
            whole = joined.pop()
            if whole.head in w.MEDIA_NOUNS or whole.head.removesuffix("s") in w.MEDIA_NOUNS:
                joined.append(piece)
            else:
                joined.append(Chunk("NP", f"{whole.text} of {piece.text}", whole.head))
        else:
            joined.append(piece)
    return joined


def _tag(tokens: Sequence[Token], i: int) -> str:
    return tokens[i].tag if 0 <= i < len(tokens) else ""


def _text(tokens: Sequence[Token]) -> str:
    return " ".join(token.text for token in tokens if token.text not in w.ARTICLES and token.tag != "COMMA")
