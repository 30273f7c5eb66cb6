"""Text -> sentences of words: lower case, contractions opened, compounds ("in front of") and quotations joined."""

from __future__ import annotations

import re

from kcdp.knowledge.grammar.words import COMPOUNDS

_TOKEN = re.compile(r"\"[^\"]{1,60}\"|[^\W_]+(?:[-'][^\W_]+)*|[.!?]+|[,;:()]|--?")
_PLAIN_SIGNS = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2014": " , ", "\u2013": " , "})
_CONTRACTED_BE = re.compile(r"(it|he|she|that|there|who|what|they|we|you|i)('s|'re|'m)")
_COMPOUNDS = {tuple(c.split()): c for c in sorted(COMPOUNDS, key=len, reverse=True)}


def split_sentences(text: str) -> list[list[str]]:
    """Words and commas of each sentence, in lower case, compounds joined."""
    text = text.lower().translate(_PLAIN_SIGNS)
    sentences: list[list[str]] = [[]]
    for token in _TOKEN.findall(text):
        if token[0] == '"':  # what is quoted is one noun: "saying | thank you"
            sentences[-1] += ["_".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", token))] * any(map(str.isalnum, token))
        elif token[0] in ".!?":
            sentences.append([])
        elif token[0] in ",;:()-":
            sentences[-1].append(",")
        elif match := _CONTRACTED_BE.fullmatch(token):
            sentences[-1] += match.groups()
        elif token.endswith("n't"):
            sentences[-1] += [{"ca": "can", "wo": "will"}.get(token[:-3], token[:-3]), "n't"]
        else:
            sentences[-1].append(token)
    return [_join_compounds(words) for words in sentences if any(word != "," for word in words)]


def _join_compounds(words: list[str]) -> list[str]:
    joined, i = [], 0
    while i < len(words):
        match = next((c for c in _COMPOUNDS if tuple(words[i : i + len(c)]) == c), None)
        joined.append(_COMPOUNDS[match] if match else words[i])
        i += len(match) if match else 1
    return joined
