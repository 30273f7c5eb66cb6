"""A place in a sentence's chunks: looking ahead, taking what stands there, reading lists of noun phrases."""

from __future__ import annotations

from collections.abc import Sequence

from kcdp.knowledge.grammar.chunks import Chunk, agree


class Cursor:
    """``i`` is the chunk that comes next."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self.chunks, self.i = chunks, 0

    def peek(self, ahead: int = 0) -> Chunk | None:
        """The chunk that many places on; None beyond the sentence."""
        return self.chunks[self.i + ahead] if 0 <= self.i + ahead < len(self.chunks) else None

    def at(self, kind: str, ahead: int = 0) -> bool:
        """Whether a chunk of that kind stands there."""
        piece = self.peek(ahead)
        return piece is not None and piece.kind == kind

    def noun_list(self, *, stop_before_verbs: bool, commas: bool = True) -> list[Chunk]:
        """Noun phrases joined by commas and "and". ``stop_before_verbs``: one that has a verb of its own is left."""
        phrases = [self.take()]
        while True:
            ahead = 0
            while (commas and self.at("COMMA", ahead)) or self.at("CONJ", ahead):
                ahead += 1
            if not ahead or not self.at("NP", ahead):
                return phrases
            has_verb = self.at("VG", ahead + 1) and agree(*self.chunks[self.i + ahead : self.i + ahead + 2])
            if stop_before_verbs and has_verb:
                return phrases
            if not any(self.at("CONJ", k) for k in range(ahead)) and not self._conjunction_ends_list(ahead):
                return phrases
            self.i += ahead
            phrases.append(self.take())

    def _conjunction_ends_list(self, ahead: int) -> bool:
        """Whether "a, b and c" stands here, and not an apposition or a new clause."""
        while self.at("NP", ahead) and self.at("COMMA", ahead + 1) and self.at("NP", ahead + 2):
            ahead += 2
        ahead += 2 if self.at("COMMA", ahead + 1) else 1
        return self.at("CONJ", ahead) and self.at("NP", ahead + 1)

    def take(self) -> Chunk:
        """The next chunk, which is then behind."""
        self.i += 1
        return self.chunks[self.i - 1]

    def at_clause(self) -> bool:
        """Whether "that", "if" or "where" begins a clause here."""
        piece = self.peek()
        return piece is not None and piece.kind == "SUB" and piece.text in ("that", "if", "where")

    def text_of(self, kind: str) -> str:
        """Takes a chunk of that kind, if one comes next: its text, else an empty one."""
        return self.take().text if self.at(kind) else ""

    def complement_at(self, ahead: int) -> bool:
        """Whether a verb before that place has an object, a phrase or an adjective."""
        while self.at("ADV", ahead) or self.at("PRT", ahead):
            ahead += 1
        return any(self.at(kind, ahead) for kind in ("NP", "PREP", "ADJ"))
