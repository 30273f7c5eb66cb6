"""Chunks -> (subject, verb, object): who does what to whom in a caption.

1. A verb gives one triple for each of its objects; without an object, one with its first complement: a phrase with
   its preposition ("sitting | on bench"), an adjective ("looks | sad") or an adverb ("smiling | brightly"). A verb
   with neither is told as a state ("frog | is | crying"). "seems to be crying" is the verb "crying".
2. Participles belong to the noun before them; after a comma, "and" or "while" to the subject of the verb before.
   "who", "which" and "that" stand for the noun before them, "it", "he", "she" and "they" for the first subject.
3. "with" gives a triple of its own wherever it is not the complement of a verb ("bear | with | big eyes"). Other
   prepositions do where no verb is ("cat | on | sofa").
4. Coordinated subjects and objects give one triple each. What "shows", "depicts", ... present is a subject itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from kcdp.knowledge.grammar import words as w
from kcdp.knowledge.grammar.chunks import Chunk, chunk
from kcdp.knowledge.grammar.cursor import Cursor
from kcdp.knowledge.grammar.tagging import tag_sentences

Relation = tuple[str, str, str]

#: Subjects that name nothing.
_EMPTY = frozenset({"there", "this", "that", "these", "those", "which", "what", "who"})
_FINITE = ("finite", "passive")


def read_relations(caption: str) -> list[Relation]:
    """(subject, verb, object) in the caption's order, without articles, in lower case."""
    found: list[Relation] = []
    topic: list[Chunk] = []
    for sentence in tag_sentences(caption):
        reader = _Reader(chunk(sentence), topic)
        found += reader.read()
        topic = topic or reader.first
    return found


class _Reader(Cursor):
    """One sentence, read once from left to right.

    ``subjects`` are whose verb comes next, ``first`` the first subjects, ``last`` the noun phrases read last.
    ``role`` is what the last ones are: "subject", "object", "presented" (by "shows" and the like), "item" (after
    "with"), "owner" (an item, but the next participle is its owner's), "place" (after another preposition, no verb
    before) or "complement" (after a verb's preposition).
    """

    def __init__(self, chunks: Sequence[Chunk], topic: Sequence[Chunk]) -> None:
        super().__init__(chunks)
        self.topic = list(topic)
        self.subjects: list[Chunk] = []
        self.first: list[Chunk] = []
        self.last: list[Chunk] = []
        self.role = ""
        self.before_relative: list[Chunk] = []
        self.complete = False  # have the subjects had their finite verb?
        self.subordinate = False  # are they those of an "as" or "while" clause?
        self.waiting: list[tuple[str, str]] = []  # (verb, object) read before any subject
        self.found: list[Relation] = []

    def read(self) -> list[Relation]:
        while (piece := self.peek()) is not None:
            start = self.i
            if piece.kind == "NP":
                self._subject()
            elif piece.kind == "VG":
                self._verb(self._subjects_of(piece))
            elif piece.kind == "PREP":
                self._preposition()
            elif piece.kind == "REL":
                self._relative()
            elif piece.kind == "ADJ":  # "a dog, happy as can be": what follows belongs to it
                self.role = "complement" if self.role in ("subject", "place") else self.role
            if self.i == start:
                self.i += 1
        return self.found

    def _emit(self, subjects: Sequence[Chunk], verb: str, text: str) -> None:
        if not subjects:
            self.waiting.append((verb, text))
        self.found += [(subject.text, verb, text) for subject in subjects if subject.text not in _EMPTY]

    def _subject(self) -> None:
        """A noun phrase that no verb or preposition has taken: the subject of what follows."""
        phrases = self.noun_list(stop_before_verbs=False)
        resolved: list[Chunk] = []
        for phrase in phrases:
            stands_for = (self.first or self.topic) if phrase.text in ("it", "he", "she", "they") else []
            resolved += [_owner(one) for one in stands_for] or [phrase]
        self.subjects, self.last, self.role = resolved, resolved, "subject"
        self.before_relative, self.complete = [], False
        before = self.chunks[self.i - len(phrases) - 1 : self.i - len(phrases)] if len(phrases) == 1 else []
        self.subordinate = any(piece.kind == "SUB" for piece in before)
        real = [phrase for phrase in resolved if phrase.form != "pronoun"]
        self.first = self.first or real
        if real:
            for verb, text in self.waiting:
                self._emit(real, verb, text)
            self.waiting = []

    def _subjects_of(self, verb: Chunk) -> list[Chunk]:
        """Whose verb this is, by its form and by what stands before it."""
        before = self.peek(-1)
        if verb.form in ("ing", "ed") and before is not None and before.kind in ("NP", "ADJ") and self.last:
            if self.role in ("subject", "presented"):
                return self.last
            elsewhere = self.role in ("place", "complement", "owner") and verb.form == "ing"
            return self.subjects if elsewhere else self.last[-1:]
        self.complete = self.complete or verb.form in _FINITE
        if self.before_relative and verb.form in _FINITE and not (before is not None and before.kind == "CONJ"):
            self.subjects, self.before_relative = self.before_relative, []
        after_clause = before is not None and before.kind == "COMMA" and self.subordinate and verb.form == "ing"
        if self.first and (after_clause or (before is not None and before.kind == "SUB")):
            return self.first
        return self.subjects or self.first or self.topic

    def _relative(self) -> None:
        """ "who", "which", "that": the noun phrase before them acts until the next finite verb."""
        self.i += 1
        if not self.at("VG") or not self.last:
            return
        if not self.before_relative:
            self.before_relative = self.subjects
        self.subjects = self.last
        self._verb(self.last)

    def _verb(self, subjects: list[Chunk], *, completes: bool = False) -> None:
        """A verb and its complement: an object, else a phrase, an adjective or an adverb.

        ``completes``: it completes another verb ("seems to be crying").
        """
        group = self.take()
        if group.form in ("ing", "ed") and not self.subjects:
            subjects = []
        adverb = self.text_of("ADV")
        particle = self.text_of("PRT")
        adverb = adverb or self.text_of("ADV")
        following = self.peek()
        continued = following is not None and following.kind == "VG" and following.form in ("to", "ing")
        if continued and group.head in w.CATENATIVES:
            self._verb(subjects, completes=True)
            return
        verb = f"{group.text} {particle}".strip()
        nested = self.last is subjects or self.role == "item"
        if not nested and group.form != "ed":
            self.subjects = subjects or self.subjects
        if following is not None and following.kind == "NP":
            self._objects(subjects, verb, group)
        elif following is not None and following.kind == "ADJ":
            self._adjectives(subjects, verb)
        elif following is not None and following.kind == "PREP" and not self.at("VG", 1):
            self._phrase(subjects, verb)
        elif adverb or particle:
            self._emit(subjects, group.text if particle and not adverb else verb, adverb or particle)
        elif (group.form != "to" or completes) and group.head != "be" and not self.at("VG") and not self.at_clause():
            self._emit(subjects, "is", _state(group))

    def _objects(self, subjects: list[Chunk], verb: str, group: Chunk) -> None:
        there = bool(subjects) and all(subject.text == "there" for subject in subjects)
        objects: list[Chunk] = []
        while self.at("NP"):  # two in a row: "giving | the dog | a bone"
            objects += self.noun_list(stop_before_verbs=True)
            if self.at("ADJ"):  # "has | his eyes closed"
                closed = objects.pop()
                objects.append(Chunk("NP", f"{closed.text} {self.take().text}", closed.head))
                self.i += self.at("CONJ") and self.at("NP", 1) and self.at("ADJ", 2)
        for phrase in objects:
            self._emit(subjects, verb, phrase.text)
        presents = group.head in w.PRESENTING and group.head != "have" and group.form == "finite"
        unnamed = bool(subjects) and all(subject.form == "pronoun" for subject in subjects)
        if there or (presents and self.role == "subject") or (group.head == "be" and unnamed):
            self.subjects, self.role = objects, "presented"
            self.first = self.first if presents else objects
        else:
            self.role = "object"
        self.last = objects

    def _adjectives(self, subjects: list[Chunk], verb: str) -> None:
        while self.at("ADJ"):
            self._emit(subjects, verb, self.take().text)
            if (self.at("CONJ") or self.at("COMMA")) and self.at("ADJ", 1):
                self.i += 1
        self.role = "object"

    def _phrase(self, subjects: list[Chunk], verb: str) -> None:
        """A verb's complement with its preposition."""
        preposition = self.take().text
        if not self.at("NP"):
            return
        if preposition in ("with", "without"):
            self._items(subjects, verb, f"{preposition} ")
            return
        in_list = self.role == "item"  # there, "and" goes on with what "with" began
        places = [self.take()] if in_list else self.noun_list(stop_before_verbs=True, commas=False)
        for place in places:
            self._emit(subjects, verb, f"{preposition} {place.text}")
        self.last, self.role = places, "object" if preposition == "by" else "complement"

    def _preposition(self) -> None:
        """A preposition that is no verb's complement."""
        preposition = self.take().text
        if self.at("VG"):  # "by holding a sign"
            return
        if not self.at("NP"):
            return
        if preposition in ("with", "without"):
            self._items(self.subjects, preposition, "")
            return
        before = self.role
        places = self.noun_list(stop_before_verbs=True)
        told = before in ("subject", "presented", "place") and preposition not in ("of", "as")
        if told and self.subjects:
            for place in places:
                self._emit(self.subjects, preposition, place.text)
        self.last, self.role = places, "place" if told else "object" if preposition == "by" else "complement"

    def _items(self, owners: list[Chunk], verb: str, lead: str) -> None:
        """What stands after "with", as long as the list goes on: a noun phrase and what it is or does itself."""
        while True:
            item = self.take()
            text = item.text
            following = self.peek()
            acts = following is not None and following.kind == "VG" and self._acts(item, following)
            if following is not None and following.kind == "ADJ":
                text = f"{text} {self.take().text}"
            elif acts and not self.complement_at(1):  # with whatever adverbs follow: "its corners pulled down"
                text = f"{text} {self.take().text}"
                while self.at("ADV") or self.at("PRT"):
                    text = f"{text} {self.take().text}"
            self._emit(owners, verb, f"{lead}{text}")
            self.last, self.role = [item], "item"
            if acts and self.at("VG"):
                self._verb([item])
            while self.at("PREP") and self.at("NP", 1) and self.chunks[self.i].text not in ("with", "without"):
                self.i += 2
            ahead = self._next_item(bool(owners))
            if not ahead:
                self.role = "owner" if following is not None and following.kind == "VG" and not acts else self.role
                return
            self.i += ahead

    def _acts(self, item: Chunk, verb: Chunk) -> bool:
        """Whether a participle after "with ..." is the thing's own: "tears streaming", not "a hat holding a sign"."""
        if verb.form != "ing":
            return verb.form == "ed"
        own = item.text.split()[0] in w.POSSESSIVES | w.NUMBERS | {"both"}
        return own or not (verb.head in w.ANIMATE or self.at("NP", 1))

    def _next_item(self, owned: bool) -> int:
        """How many chunks to skip to the next thing of a list; 0 where the list ends."""
        comma = self.at("COMMA")
        ahead = comma + self.at("CONJ", comma)
        if not ahead or not self.at("NP", ahead) or (ahead == 1 and comma and not owned):
            return 0
        following = self.peek(ahead + 1)
        finite = following is not None and following.kind == "VG" and following.form in _FINITE
        last_of_list = owned and not self.complete and not comma  # "a man with a beard and a hat sits"
        return 0 if finite and not last_of_list else ahead


def _state(group: Chunk) -> str:
    """What somebody "is" who does it: "cries" -> "crying", "is not clenched" -> "not clenched"."""
    participle = group.text.removeprefix("not ")
    if group.form not in ("passive", "ed"):
        participle = w.present_participle(group.head)
    return f"not {participle}" if group.text.startswith("not ") else participle


def _owner(phrase: Chunk) -> Chunk:
    """Whom a later "he" or "it" means: the man of "the man's mouth", else the phrase itself."""
    owner, possessive, _ = phrase.text.partition("'s ")
    return Chunk("NP", owner, owner.split()[-1]) if possessive else phrase
