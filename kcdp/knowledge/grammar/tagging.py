"""Text -> sentences of tagged words: closed classes by list, open ones by their form and their neighbours.

Tags: DET POSS NUM PRON REL PREP PRT CONJ SUB BE AUX TO ADV ADJ NOUN, the verb forms ING ED FIN BASE, and COMMA (commas,
colons, dashes, brackets).
"""

from __future__ import annotations

from dataclasses import dataclass

from kcdp.knowledge.grammar import words as w
from kcdp.knowledge.grammar.tokens import split_sentences

_COMPOUND_TAGS = {
    "a lot of": "DET", "about to": "TO",
    **dict.fromkeys(("thumbs up", "close up", "each other", "one another"), "NOUN"),
}  # fmt: skip
_PLURALS = {"people", "children", "men", "women", "they", "we", "you", "i", "these", "those", "teeth", "feet"}
_OPEN = ("NOUN", "ADJ")
_OPENS_NOUN_PHRASE = w.DETERMINERS | w.POSSESSIVES | w.NUMBERS


@dataclass(frozen=True)
class Token:
    """A word in lower case (or several taken as one) and its tag."""

    text: str
    tag: str


def tag_sentences(text: str) -> list[list[Token]]:
    """The sentences of a text, each a list of tagged words; signs are dropped, a short quotation is one noun."""
    return [_tag(sentence) for sentence in split_sentences(text)]


def _tag(words: list[str]) -> list[Token]:
    tags: list[str] = []
    for i in range(len(words)):
        tags.append(_tag_word(words, tags, i))
    for i, tag in enumerate(tags):  # "an orange on a plate", "dressed in black": an adjective with no noun to come
        after = tags[i + 1] if i + 1 < len(tags) else ""
        if tag == "ADJ" and i and tags[i - 1] in ("DET", "POSS", "PREP") and after not in (*_OPEN, "COMMA", "CONJ"):
            tags[i] = "NOUN"
    return [Token(word.replace("_", " "), tag) for word, tag in zip(words, tags, strict=True)]


def _tag_word(words: list[str], tags: list[str], i: int) -> str:
    word, before = words[i], tags[i - 1] if i else ""
    for test in (_closed, _ambiguous, _verbal):
        tag = test(words, tags, i)
        if tag:
            return tag
    if before == "TO":
        return "BASE"
    if w.is_adverb(word) and not (before in ("DET", "POSS") and i + 1 == len(words)):
        return "ADV"
    if word.endswith("'s") or w.is_adjective(word):
        return "ADJ"
    return "NOUN"


def _closed(words: list[str], tags: list[str], i: int) -> str:
    word = words[i]
    if word == ",":
        return "COMMA"
    if "_" in word:
        return "NOUN"
    if " " in word:
        return _COMPOUND_TAGS.get(word, "SUB" if word in w.SUBORDINATORS else "PREP")
    for tag, members in (
        ("BE", w.BE), ("DET", w.ARTICLES), ("POSS", w.POSSESSIVES - {"her"}), ("CONJ", w.COORDINATORS),
        ("SUB", w.SUBORDINATORS - {"as"}), ("REL", {"who", "which"}), ("NUM", w.NUMBERS),
    ):  # fmt: skip
        if word in members:
            return tag
    return "DET" if word in w.DETERMINERS - {"that", "this", "these", "those"} else ""


def _ambiguous(words: list[str], tags: list[str], i: int) -> str:
    """Closed-class words that are several things."""
    word, before = words[i], tags[i - 1] if i else ""
    after = words[i + 1] if i + 1 < len(words) else ""
    if word == "to":
        kinds = w.verb_forms().get(after, ("", frozenset()))[1]
        purpose = before == "ADJ" and after not in _OPENS_NOUN_PHRASE  # "ready to go": whatever follows is a verb
        return "TO" if "base" in kinds or after == "be" or purpose else "PREP"
    if word == "that":
        if before in ("NOUN", "NUM") and _may_be_finite(after):
            return "REL"
        return (
            "SUB"
            if before in ("FIN", "ED", "ING", "BASE", "ADJ", "NOUN")
            else "DET"
            if _is_nounish(words, i + 1)
            else "PRON"
        )
    if word in ("this", "these", "those"):
        return "DET" if _is_nounish(words, i + 1) else "PRON"
    if word == "her":
        return "POSS" if _is_nounish(words, i + 1) else "PRON"
    if word == "there":
        return "PRON" if after in w.BE or after in ("appears", "seems") else "ADV"
    if word == "as":
        return "SUB" if _clause_follows(words, i + 1) else "PREP"
    if word in w.AUXILIARIES:
        return _auxiliary(words, i)
    if word in w.PRONOUNS:
        return "PRON"
    if word in w.PREPOSITIONS | w.PARTICLES:
        if before in ("DET", "POSS") and not _is_nounish(words, i + 1):
            return "NOUN"  # "on its back", "the inside"
        if word in w.TIGHT_PARTICLES and before in ("FIN", "ED", "ING", "BASE"):
            return "PRT"
        if word not in w.PARTICLES | w.LOOSE_PREPOSITIONS or _opens_noun_phrase(words, i + 1):
            return "PREP"
        return "PRT" if word in w.PARTICLES else "ADV"
    return ""


def _auxiliary(words: list[str], i: int) -> str:
    """An auxiliary, or "has" and "does" as verbs of their own."""
    word, j = words[i], i + 1
    while j < len(words) and (w.is_adverb(words[j]) or words[j] == "not"):
        j += 1
    kinds = w.verb_forms().get(words[j], ("", frozenset()))[1] if j < len(words) else frozenset()
    be = j < len(words) and words[j] in w.BE
    if word in ("has", "have", "had", "having"):
        helps = be or ("ed" in kinds and not _is_nounish(words, j + 1)) or words[j : j + 1] == ["had"]
        return "AUX" if helps else "ING" if word == "having" else "FIN"
    if word in ("does", "do", "did"):
        return "AUX" if "base" in kinds or words[i + 1 : i + 2] in (["not"], ["n't"]) else "FIN"
    return "AUX"


def _verbal(words: list[str], tags: list[str], i: int) -> str:
    """Words that may be a form of a verb."""
    word, kinds = words[i], w.verb_forms().get(words[i], ("", frozenset()))[1]
    if word.endswith("ing") and ("ing" in kinds or (len(word) > 5 and word not in w.ING_NOUNS)):
        return _ing(words, tags, i)
    if "ed" in kinds or (word.endswith("ed") and len(word) > 4 and word not in w.ED_NOUNS and "-" not in word):
        return _ed(words, tags, i) or _finite(words, tags, i, kinds)
    return _finite(words, tags, i, kinds) if kinds else ""


def _modifies(words: list[str], tags: list[str], i: int) -> bool:
    """A participle before its noun: "a smiling face", "with closed eyes", "cute, smiling bear"."""
    before = tags[i - 1] if i else ""
    if not _is_nounish(words, i + 1):
        return False
    if before in ("COMMA", "CONJ"):
        return i > 1 and tags[i - 2] == "ADJ" and (i < 3 or tags[i - 3] in ("DET", "POSS", "ADJ", "PREP"))
    return before in ("DET", "POSS", "NUM", "ADJ", "PREP", "") or (before == "ADV" and i > 1 and tags[i - 2] == "DET")


def _ing(words: list[str], tags: list[str], i: int) -> str:
    before, word = tags[i - 1] if i else "", words[i]
    if _modifies(words, tags, i) and not (before == "PREP" and words[i - 1] not in ("with", "without")):
        return "ADJ"
    if before in ("DET", "POSS", "NUM") or (
        before == "ADJ" and i > 1 and tags[i - 2] in ("DET", "POSS", "ADJ", "PREP")
    ):
        return "NOUN"
    after = words[i + 1] if i + 1 < len(words) else ""
    if word in w.ING_NOUNS and before not in ("BE", "AUX", "ADV") and after not in _OPENS_NOUN_PHRASE:
        return "NOUN"
    return "ING"


def _ed(words: list[str], tags: list[str], i: int) -> str:
    word, before = words[i], tags[i - 1] if i else ""
    after = words[i + 1] if i + 1 < len(words) else ""
    if _modifies(words, tags, i) or (before == "CONJ" and _is_nounish(words, i + 1)):
        return "ADJ"  # a participle of the passive has no object: "slanted lids and clenched teeth"
    if before in ("DET", "POSS", "NUM") or (
        before == "ADJ" and i > 1 and tags[i - 2] in ("DET", "POSS", "ADJ", "PREP")
    ):
        return "NOUN"
    if before in ("TO", "AUX") and "base" in w.verb_forms().get(word, ("", frozenset()))[1]:
        return ""
    if before == "PREP":
        return "NOUN"
    adjective = w.is_adjective(word)
    if before in ("FIN", "BASE", "ING") and w.lemma(words[i - 1]) in w.LINKING:
        return "ADJ"
    if adjective and after != "by" and not (before in ("NOUN", "PRON") and after in _OPENS_NOUN_PHRASE):
        return "ADJ"
    return "ED"


def _finite(words: list[str], tags: list[str], i: int, kinds: frozenset[str]) -> str:
    """A finite form or an infinitive; empty where the word is rather a noun or an adjective."""
    word = words[i]
    j = i - 1
    while j >= 0 and tags[j] == "ADV":
        j -= 1
    before = tags[j] if j >= 0 else ""
    after = words[i + 1] if i + 1 < len(words) else ""
    if "base" in kinds and before in ("TO", "AUX"):
        return "BASE"
    if before in ("COMMA", "CONJ"):
        earlier = [k for k in range(j) if tags[k] in ("FIN", "BASE", "BE", "ED")]
        form = w.verb_forms().get(words[earlier[-1]], ("", frozenset({"s"})))[1] if earlier else frozenset()
        shape = "base" if "base" in form and "s" not in form else "s"  # as the verb it is joined to
        if not earlier or shape not in kinds or (word in w.NOUNS_IN_S and after not in _OPENS_NOUN_PHRASE):
            return ""
        object_follows = shape == "base" and _is_nounish(words, i + 1)
        return ("FIN" if shape == "s" else "BASE") if _continues(words, i + 1) or object_follows else ""
    if before not in ("NOUN", "PRON", "REL", "PRT"):
        return ""
    plural = words[j] in _PLURALS or (words[j].endswith("s") and not words[j].endswith("ss"))
    if before == "REL":
        plural = "base" in kinds
    if "s" in kinds and (not plural or before != "NOUN" or _continues(words, i + 1)):
        return "" if word in w.NOUNS_IN_S and after not in _OPENS_NOUN_PHRASE else "FIN"
    follows = _continues(words, i + 1) or _is_nounish(words, i + 1)
    return "FIN" if "base" in kinds and plural and not w.is_adjective(word) and follows else ""


def _continues(words: list[str], i: int) -> bool:
    """What may follow a verb: nothing, an object with its determiner, a preposition, an adverb, an adjective."""
    if i >= len(words) or words[i] == ",":
        return True
    word = words[i]
    known = _OPENS_NOUN_PHRASE | w.PRONOUNS | w.PREPOSITIONS | w.PARTICLES | w.SUBORDINATORS | w.COORDINATORS
    return word in known or " " in word or w.is_adverb(word) or w.is_adjective(word) or word == "to"


def _may_be_finite(word: str) -> bool:
    kinds = w.verb_forms().get(word, ("", frozenset()))[1]
    return word in w.BE or word in w.AUXILIARIES or bool(kinds & {"s", "ed", "base"}) or w.is_adverb(word)


def _is_nounish(words: list[str], i: int) -> bool:
    """Whether the word at i can be (part of) a noun phrase that began before it."""
    if i >= len(words) or " " in words[i] or words[i] == ",":
        return False
    word = words[i]
    closed = w.DETERMINERS | w.POSSESSIVES | w.PRONOUNS - {"one"} | w.PREPOSITIONS | w.COORDINATORS | w.SUBORDINATORS
    if word in closed or word in w.BE or word in w.AUXILIARIES or word in ("to", "not") or w.is_adverb(word):
        return False
    kinds = w.verb_forms().get(word, ("", frozenset()))[1]
    if kinds == {"s"}:
        return word in w.NOUNS_IN_S
    participle = kinds & {"ing", "ed"} and "base" not in kinds and word not in w.ING_NOUNS | w.ED_NOUNS
    return _is_nounish(words, i + 1) if participle else True


def _opens_noun_phrase(words: list[str], i: int) -> bool:
    """Whether a noun phrase (or a gerund) begins at i."""
    if i >= len(words) or words[i] == ",":
        return False
    word = words[i]
    if (
        word in _OPENS_NOUN_PHRASE | w.PRONOUNS
        or word.endswith("ing")
        or word in ("each other", "one another", "a lot of")
    ):
        return True
    return _is_nounish(words, i) or (w.is_adverb(word) and _is_nounish(words, i + 1))


def _clause_follows(words: list[str], i: int) -> bool:
    """After "as": a pronoun and a verb, or a noun phrase and a finite verb before the next comma."""
    if i < len(words) and words[i] in w.PRONOUNS - {"one", "this", "that"}:
        return True
    for word in words[i : i + 6]:
        if word == "," or word in w.PREPOSITIONS:
            return False
        if word in w.BE:
            return True
        kinds = w.verb_forms().get(word, ("", frozenset()))[1]
        if kinds == {"s"} and word not in w.NOUNS_IN_S:
            return True
    return False
