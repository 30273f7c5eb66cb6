"""The texts that knowledge tokens are made of: a caption and its triples.

No torch here: a device puts them together by the same code as training.
"""

from __future__ import annotations

from collections.abc import Sequence

from kcdp.errors import KcdpError
from kcdp.knowledge.grammar.clauses import read_relations


def knowledge_texts(caption: str, triples: Sequence[str], *, prefix: str = "") -> tuple[str, ...]:
    """The texts that k is made of: the caption first, then those whose states are summed.

    Args:
        caption: one sentence about the picture.
        triples: "subject verb object" each; blank ones are left out.
        prefix: names the style of the domain, such as "a sticker of", and is put before the caption (TADP, Kondapaneni
            et al., CVPR 2024). The triples are left as they are.

    Returns:
        two texts or more.

    Raises:
        KcdpError: ``triples`` is one string instead of a list of them.
    """
    if isinstance(triples, str):
        raise KcdpError(f"the triples are the text {triples!r}", "a list of texts")
    first = f"{prefix.strip()} {caption}" if prefix.strip() else caption
    return (first, *([text for text in triples if text.strip()] or [first]))


def rule_triples(caption: str, separator: str = " ") -> list[str]:
    """Triples of a caption by the built-in grammar, each as one text: what training has with ``extractor = "rules"``.

    Empty where there is none, or where the only one is the caption itself.
    """
    texts = [separator.join(relation) for relation in dict.fromkeys(read_relations(caption))]
    return [] if texts == [caption] else texts
