"""Triples from spaCy's dependency parse, by the rules of the built-in grammar (``kcdp.knowledge.grammar.clauses``).

Labels are those of spaCy's English models (ClearNLP: nsubj, dobj, prep, pobj, acl, relcl, ...).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from kcdp.errors import KcdpError, require
from kcdp.knowledge.grammar.words import ARTICLES
from kcdp.knowledge.triples import Triple, TripleExtractor

MODEL = "en_core_web_sm"
_SUBJECTS = ("nsubj", "nsubjpass", "csubj")
_OBJECTS = ("dobj", "obj", "dative", "attr", "oprd")
_BEFORE_NOUN = ("compound", "amod", "poss", "nummod", "quantmod", "det", "nmod")
_PRONOUNS = ("it", "he", "she", "they")
_RELATIVES = ("who", "which", "that")

#: A token of spaCy; only text, lemma_, pos_, dep_, i, head and children are used.
Word = Any


class SpacyExtractor(TripleExtractor):
    """Needs spaCy and one of its English models.

    Args:
        model: an installed model's name or its folder.

    Raises:
        KcdpError: spaCy or the model is not installed; the message holds the line that installs it.
    """

    name = "spacy"

    def __init__(self, model: str = MODEL) -> None:
        spacy = require("spacy", "triples")
        try:
            self._parse = spacy.load(model)
        except OSError:
            raise KcdpError(
                f"spaCy's model {model!r} is not installed", fix=f"run: python -m spacy download {model}"
            ) from None

    def extract(self, caption: str) -> list[Triple]:
        return triples_of(self._parse(caption))


def triples_of(document: Iterable[Word]) -> list[Triple]:
    """The triples of a parsed text, in the order of their verbs."""
    words = list(document)
    first = next((word for word in words if word.dep_ in _SUBJECTS and word.pos_ != "PRON"), None)
    found: list[Triple] = []
    for word in words:
        if word.pos_ in ("VERB", "AUX") and word.dep_ not in ("aux", "auxpass") and not _is_catenative(word):
            found += _of_verb(word, first)
        elif word.dep_ == "prep" and _is_relation(word):
            found += [Triple(_phrase(word.head), word.text.lower(), _phrase(place)) for place in _objects_of(word)]
    return list(dict.fromkeys(found))


def _is_relation(preposition: Word) -> bool:
    """Between nouns: "with" anywhere, others where the noun is what the sentence is about."""
    text, noun = preposition.text.lower(), preposition.head
    if noun.pos_ not in ("NOUN", "PROPN") or text in ("of", "as"):
        return False
    return text == "with" or noun.dep_ in ("ROOT", *_SUBJECTS)


def _of_verb(verb: Word, first: Word | None) -> Iterator[Triple]:
    text = verb.text.lower()
    if _children(verb, "neg"):
        text = f"{text} not" if verb.lemma_ == "be" else f"not {text}"
    text = " ".join([text, *(child.text.lower() for child in _children(verb, "prt"))])
    subjects = [_phrase(subject) for subject in _subjects(verb, first)]
    objects = [_phrase(one) for child in _children(verb, *_OBJECTS) for one in _with_conjuncts(child)]
    objects += [
        _words([*_children(one, "advmod"), one]) for child in _children(verb, "acomp") for one in _with_conjuncts(child)
    ]
    phrases = [
        (prep.text.lower(), _phrase(place)) for prep in _children(verb, "prep", "agent") for place in _objects_of(prep)
    ]
    own = [(prep, place) for prep, place in phrases if prep == "with"]
    if not objects and phrases:
        lead = phrases[0][0]
        objects = [f"{prep} {place}" for prep, place in phrases if prep == lead]
        own = [] if lead == "with" else own
    if not objects:
        objects = [word.text.lower() for word in _children(verb, "advmod")[:1]]
    if not objects and verb.lemma_ != "be" and not _children(verb, "ccomp", "xcomp"):
        text, objects = "is", [text]
    for subject in subjects:
        yield from (Triple(subject, text, one) for one in objects)
        yield from (Triple(subject, prep, place) for prep, place in own)


def _subjects(verb: Word, first: Word | None) -> list[Word]:
    """Its own subjects, the noun it modifies, or those of the verb it hangs on; pronouns resolved."""
    own = [one for child in _children(verb, *_SUBJECTS) for one in _with_conjuncts(child)]
    if verb.dep_ == "relcl" and (not own or own[0].text.lower() in _RELATIVES):
        own = [verb.head]
    elif not own and verb.dep_ == "acl":
        own = _with_conjuncts(verb.head)
    elif not own and verb.dep_ in ("conj", "xcomp", "advcl", "ccomp", "pcomp") and verb.head is not verb:
        head = verb.head.head if verb.head.dep_ == "prep" else verb.head
        return _subjects(head, first) if head.pos_ in ("VERB", "AUX") else [head]
    resolved = [first if first is not None and one.text.lower() in _PRONOUNS else one for one in own]
    return [one for one in resolved if one.text.lower() not in ("there", "this", "that", "which", "who")]


def _is_catenative(verb: Word) -> bool:
    """ "seems" in "seems to be crying": its complement tells what happens."""
    return bool(_children(verb, "xcomp")) and not _children(verb, *_OBJECTS, "prep", "agent")


def _objects_of(preposition: Word) -> list[Word]:
    return [one for child in _children(preposition, "pobj") for one in _with_conjuncts(child)]


def _with_conjuncts(word: Word) -> list[Word]:
    found = [word]
    for child in _children(word, "conj"):
        found += _with_conjuncts(child) if child.pos_ == word.pos_ or child.pos_ in ("NOUN", "PROPN", "ADJ") else []
    return found


def _phrase(noun: Word) -> str:
    """A noun with what stands before it, and its "of"."""
    parts = [noun]
    for child in _children(noun, *_BEFORE_NOUN):
        parts += [child, *_children(child, "case", *_BEFORE_NOUN)]
    text = _words(parts)
    for prep in _children(noun, "prep"):
        if prep.text.lower() == "of":
            text = " ".join([text, "of", *(_phrase(one) for one in _children(prep, "pobj"))])
    return text


def _words(parts: Iterable[Word]) -> str:
    texts = [word.text.lower() for word in sorted(parts, key=lambda word: word.i)]
    return " ".join(text for text in texts if text not in ARTICLES).replace(" 's", "'s")


def _children(word: Word, *labels: str) -> list[Word]:
    return [child for child in word.children if child.dep_ in labels]
