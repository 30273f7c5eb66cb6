"""How well an extractor reads triples: precision and recall against captions that were marked by hand.

    python -m kcdp.knowledge.triples_report tests/golden/triples.jsonl

Each line of the file holds a caption, its style, its triples and whether it is held out (written last, never tuned on).
A triple found counts as right where subject and object have the marked one's head noun and the verb is the same word in
any inflection. A marked field may hold alternatives, ``a|b``, where English itself leaves it open.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kcdp.cli import guarded
from kcdp.errors import KcdpError
from kcdp.knowledge.grammar import words as w
from kcdp.knowledge.grammar.chunks import chunk
from kcdp.knowledge.grammar.tagging import tag_sentences
from kcdp.knowledge.triples import EXTRACTORS, Triple, TripleExtractor, open_extractor


@dataclass(frozen=True)
class Marked:
    """One caption of the golden file; ``triples`` with their alternatives still joined by ``|``."""

    caption: str
    style: str
    held_out: bool
    triples: tuple[Triple, ...]


@dataclass
class Score:
    """Counts of triples."""

    right: int = 0
    found: int = 0
    marked: int = 0

    @property
    def precision(self) -> float:
        """Share of the triples found that are right."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Share of the marked triples that were found."""
        return self.right / self.marked if self.marked else 0.0

    def add(self, other: Score) -> None:
        """Adds another one's counts."""
        self.right, self.found, self.marked = (
            self.right + other.right, self.found + other.found, self.marked + other.marked
        )  # fmt: skip


def read_marked(path: str | Path) -> list[Marked]:
    """The golden file.

    Raises:
        KcdpError: it is missing, or a line is not {"caption", "style", "held_out", "triples": [[s, v, o], ...]}.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise KcdpError(f"{path} cannot be read ({error.strerror})", "a file of marked captions") from None
    return [_marked(line, f"{path} line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _marked(line: str, where: str) -> Marked:
    try:
        row: dict[str, Any] = json.loads(line)
        triples = tuple(Triple(*fields) for fields in row["triples"])
        return Marked(str(row["caption"]), str(row["style"]), bool(row["held_out"]), triples)
    except (ValueError, KeyError, TypeError) as error:
        raise KcdpError(f"{where} is no marked caption ({error!r})", "caption, style, held_out and triples") from None


def head(phrase: str) -> str:
    """The word a phrase is about: "with its eyes closed" -> "eyes", "very sad" -> "sad"."""
    for sentence in tag_sentences(phrase):
        pieces = chunk(sentence)
        nouns = [piece for piece in pieces if piece.kind == "NP"]
        if nouns:
            return nouns[0].head
        if pieces:
            return pieces[-1].head or pieces[-1].text.split()[-1]
    return phrase.split()[-1] if phrase.split() else ""


def verb_base(verb: str) -> str:
    """The base form of a verb field's verb: "not holding up" -> "hold"."""
    words = [word for word in verb.split() if word != "not"]
    return w.lemma(words[0]) if words else ""


def matches(found: Triple, marked: Triple) -> bool:
    """See the module: heads and verb, any of the alternatives."""
    return (
        head(found.subject) in {head(one) for one in marked.subject.split("|")}
        and verb_base(found.verb) in {verb_base(one) for one in marked.verb.split("|")}
        and head(found.object) in {head(one) for one in marked.object.split("|")}
    )


def compare(found: Sequence[Triple], marked: Sequence[Triple]) -> tuple[Score, list[Triple], list[Triple]]:
    """The score of one caption, what was found wrongly and what was missed. Each marked triple is matched once."""
    missed, wrong = list(marked), []
    for triple in found:
        match = next((one for one in missed if matches(triple, one)), None)
        if match is None:
            wrong.append(triple)
        else:
            missed.remove(match)
    return Score(len(found) - len(wrong), len(found), len(marked)), wrong, missed


def evaluate(extractor: TripleExtractor, rows: Sequence[Marked]) -> dict[str, Score]:
    """Scores by part ("tuned", "held out") and, within each, by style ("tuned coco", ...)."""
    scores: dict[str, Score] = {}
    for row in rows:
        part = "held out" if row.held_out else "tuned"
        score, _, _ = compare(extractor.extract(row.caption), row.triples)
        for name in (part, f"{part} {row.style}"):
            scores.setdefault(name, Score()).add(score)
    return dict(sorted(scores.items(), reverse=True))


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the scores of every extractor that can run here."""
    parser = argparse.ArgumentParser(prog="python -m kcdp.knowledge.triples_report", description="precision and recall")
    parser.add_argument("file", help="marked captions (tests/golden/triples.jsonl)")
    parser.add_argument("--extractor", choices=tuple(EXTRACTORS), help="only this one")
    parser.add_argument("--errors", action="store_true", help="show what was wrong or missed on the tuned part")
    args = parser.parse_args(argv)
    return guarded(lambda: _report(args))


def _report(args: argparse.Namespace) -> int:
    rows = read_marked(args.file)
    for name in [args.extractor] if args.extractor else EXTRACTORS:
        try:
            extractor = open_extractor(name)
        except KcdpError as error:
            if args.extractor:
                raise
            print(f"{name}: not measured ({error})", file=sys.stderr)
            continue
        print(f"{name:<24}{'precision':>10}{'recall':>8}{'right':>7}{'found':>7}{'marked':>8}")
        for part, score in evaluate(extractor, rows).items():
            print(f"  {part:<22}{score.precision:>10.3f}{score.recall:>8.3f}"
                  f"{score.right:>7}{score.found:>7}{score.marked:>8}")  # fmt: skip
        if args.errors:
            _show_errors(extractor, [row for row in rows if not row.held_out])
    return 0


def _show_errors(extractor: TripleExtractor, rows: Sequence[Marked]) -> None:
    for row in rows:
        _, wrong, missed = compare(extractor.extract(row.caption), row.triples)
        if wrong or missed:
            print(row.caption)
            for sign, triples in (("+", wrong), ("-", missed)):
                for triple in triples:
                    print(f"   {sign} {triple.subject} | {triple.verb} | {triple.object}")


if __name__ == "__main__":
    sys.exit(main())
