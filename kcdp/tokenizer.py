"""CLIP's byte-pair tokenizer: texts to the ids that open_clip's tokenizer gives them, with numpy alone.

Its vocabulary is a file of the bundle, ``tokenizer.json``, which an export writes from the vocabulary that open_clip
brings along (``kcdp.export.text_tables``); none is part of this package. Pieces of words are those of OpenAI's CLIP
(Radford et al., ICML 2021), merged as in Sennrich et al., ACL 2016.

A text is cleaned (``kcdp.text_repair``, HTML entities, white space, lower case), cut into words, every word's UTF-8
bytes are merged to pieces. Which characters are letters and digits is in the file too: Python's own tables are older
or newer from one version to the next.
"""

from __future__ import annotations

import base64
import heapq
import html
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.errors import KcdpError
from kcdp.files import read_json
from kcdp.text_repair import TextRepair

TOKENIZER = "tokenizer.json"
FORMAT = 1

#: Ids: 256 bytes, the same bytes at the end of a word, one piece for each merge, then the two marks.
BYTES = 256
FIRST_MERGE = 2 * BYTES

#: Bytes in the order of their ids: first those that are printable characters of Latin-1.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTE_IDS = {byte: i for i, byte in enumerate([*_PRINTABLE, *sorted(set(range(BYTES)) - set(_PRINTABLE))])}

#: The long s is a form of "s" to the original, which does not tell case apart.
_MARKS = "<[sſ]tart_of_text>|<end_of_text>"
_ENDINGS = "'[sſ]|'t|'re|'ve|'m|'ll|'d"
_REMEMBERED_WORDS = 4096


class Tokenizer:
    """Texts in, ids out.

    Args:
        data: the content of ``tokenizer.json``.
        where: begins error messages.

    Attributes:
        start, end: ids of start-of-text and end-of-text; the last two.

    Raises:
        KcdpError: damaged, of a newer version, or its own examples come out otherwise.
    """

    def __init__(self, data: Any, where: str = TOKENIZER) -> None:
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else None
            raise KcdpError(f"{where} has the format {found!r}", f"{FORMAT}", "export the bundle again, or update kcdp")
        try:
            merges = np.frombuffer(base64.b64decode(data["merges"], validate=True), dtype="<u2").reshape(-1, 2)
            self._pattern = re.compile(_word_pattern(data["characters"]))
            self._repair = TextRepair(data["repair"])
            examples = [(str(text), [int(i) for i in ids]) for text, ids in data["examples"]]
        except (KeyError, TypeError, ValueError, re.error) as error:
            raise KcdpError(f"{where} is damaged ({error!r})", fix="copy or export the bundle again") from None
        own = np.arange(FIRST_MERGE, FIRST_MERGE + len(merges))
        keys = merges[:, 0].astype(np.int64) << 16 | merges[:, 1]
        self._merges: dict[int, int] = dict(zip(keys.tolist(), own.tolist(), strict=True))
        if not len(merges) or (merges >= own[:, None]).any() or len(self._merges) < len(merges):
            raise KcdpError(
                f"{where} is damaged: a merge is there twice, or of pieces that come after it",
                fix="copy or export the bundle again",
            )
        self.start = FIRST_MERGE + len(merges)
        self.end = self.start + 1
        self._word = lru_cache(_REMEMBERED_WORDS)(self._merge)
        for text, ids in examples:
            if (found := self.ids(text)) != ids:
                raise KcdpError(
                    f"{where} gives its own example {text!r} the ids {found}", f"{ids}",
                    "copy or export the bundle again",
                )  # fmt: skip

    @classmethod
    def open(cls, path: str | Path) -> Tokenizer:
        """Raises KcdpError: missing, or see the class."""
        return cls(read_json(path), str(path))

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return self.end + 1

    def __call__(self, texts: Sequence[str], context: int) -> np.ndarray:
        """int64 [N, context]: start-of-text, words, end-of-text, zeros.

        A longer text is cut, its last id is end-of-text.

        Raises:
            KcdpError: not a list of strings, or a context below 3.
        """
        wrong = [text for text in texts if not isinstance(text, str)]
        if isinstance(texts, str) or wrong:
            raise KcdpError(f"the texts are {texts if isinstance(texts, str) else wrong[0]!r}", "a list of strings")
        if context < 3:
            raise KcdpError(f"the context length is {context}", "3 or more: start, a word, end")
        rows = np.zeros((len(texts), context), dtype=np.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start, *self.ids(text)][: context - 1] + [self.end]
            row[: len(ids)] = ids
        return rows

    def ids(self, text: str) -> list[int]:
        """Ids of a text's words, all of them, without start-of-text and end-of-text."""
        return [i for word in self._pattern.findall(self.clean(text)) for i in self._word(word)]

    def clean(self, text: str) -> str:
        """The text as its words are read: repaired, entities resolved, single spaces, lower case."""
        text = html.unescape(html.unescape(self._repair(text)))
        return " ".join(text.split()).lower()

    def _merge(self, word: str) -> tuple[int, ...]:
        """Ids of a word: the earliest merge first, from left to right.

        Of a merge's pieces each comes before it in the vocabulary, so what a merge makes possible comes later: one
        ordered heap of pairs does what going through the word once for every merge does, and long words stay cheap.
        """
        if word in ("<start_of_text>", "<end_of_text>"):
            return (self.start if word[1] == "s" else self.end,)
        pieces = [_BYTE_IDS[byte] for byte in word.encode()]
        pieces[-1] += BYTES
        following = [*range(1, len(pieces)), -1]
        before = [*range(-1, len(pieces) - 1)]
        heap: list[tuple[int, int, int]] = []  # (merged piece, where, its right part): all that may still be merged

        def offer(left: int) -> None:
            right = following[left]
            if right >= 0 and (made := self._merges.get(pieces[left] << 16 | pieces[right])):
                heapq.heappush(heap, (made, left, right))

        for i in range(len(pieces) - 1):
            offer(i)
        while heap:
            made, left, right = heapq.heappop(heap)
            gone = pieces[left] < 0 or pieces[right] < 0 or following[left] != right
            if gone or self._merges.get(pieces[left] << 16 | pieces[right]) != made:
                continue
            pieces[left], pieces[right] = made, -1
            following[left] = following[right]
            if following[left] >= 0:
                before[following[left]] = left
                offer(left)
            if before[left] >= 0:
                offer(before[left])
        return tuple(piece for piece in pieces if piece >= 0)


def _word_pattern(characters: Mapping[str, Sequence[int]]) -> str:
    """A run of letters, one digit, or a run of anything else; endings such as "'s" and the marks apart."""
    letters, digits, others = (_set(characters[name]) for name in ("letters", "digits", "others"))
    return f"{_MARKS}|{_ENDINGS}|{letters}+|{digits}|{others}+"


def _set(bounds: Sequence[int]) -> str:
    """First and last code point of each range, to a set of a regular expression."""
    pairs = zip(bounds[::2], bounds[1::2], strict=True)
    return "[" + "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in pairs) + "]"
