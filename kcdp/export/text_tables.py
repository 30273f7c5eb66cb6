"""Writes ``tokenizer.json``: what ``kcdp.tokenizer`` needs to give a text the ids that open_clip gives it.

All of it is read from the packages that training uses (open_clip's vocabulary, which characters its regular
expressions take for letters, ftfy's tables), so that a bundle holds what its model was trained behind.
"""

from __future__ import annotations

import base64
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.errors import KcdpError, require
from kcdp.files import write_json
from kcdp.tokenizer import FIRST_MERGE, FORMAT, Tokenizer

#: Looked at again whenever the file is opened; each passes through another part of the tokenizer.
EXAMPLES = (
    "", "A sticker of a small dog that cries loudly, with tears.", "it's 2 o'clock; they'll   GO!!",
    "ﬁancée &amp; “she”", "😂❤️👩‍👩‍👧 lol", "漢字カナ ｶﾞ ＡＢＣ", "привет мир",
    "antidisestablishmentarianism", "schÃ¶n â€” voilÃ\xa0", "<end_of_text>",
)  # fmt: skip
#: Compared with open_clip when the file is written, beside the examples.
PROBES = (
    "a happy cat", "A person laughing so hard that tears come out of their eyes.", "crying face, blue drop, open mouth",
    "🤬 #%!& angry :-( ¯\\_(ツ)_/¯", "Ça va? Ééé naïve coöperate", "नमस्ते दुनिया", "안녕 세상", "🇩🇪🇫🇷 1️⃣2️⃣",
    "\u0645\u0631\u062d\u0628\u0627 \u202b\u0663\u0664\u202c", "x" * 300, "word " * 100, "ĳ ǆ ŉ ﬃ ¼ Ⅷ ²",
    "&lt;b&gt; &#128512; &hearts; &NTILDE;", "a\u200db\u202ec\x00\x07\x1b[31md", "\ud83d\ude00 \ud83d",
    "l’été “quoted” ‘single’", "ＦＵＬＬ　ＷＩＤＴＨ", "naÃ¯ve cafÃ© Â£5 â‚¬", "don't we're I've I'm you'd",
)  # fmt: skip


def write_tokenizer(path: Path) -> Tokenizer:
    """Write the file, and read it again.

    Raises:
        KcdpError: open_clip is missing, or an installed version keeps its tables otherwise than is known here, so
            that texts would get other ids.
    """
    try:
        data = _tables()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise KcdpError(
            f"the tokenizer of {_versions()} is not understood ({error!r})", fix='run: pip install -U "kcdp[train]"'
        ) from None
    write_json(path, data)
    tokenizer = Tokenizer.open(path)
    check_tokenizer(tokenizer, [*EXAMPLES, *PROBES])
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, texts: list[str], context: int = 77) -> None:
    """Raises KcdpError: open_clip gives one of the texts other ids."""
    want = require("open_clip", "train").tokenize(texts, context_length=context).numpy()
    for text, got, expected in zip(texts, tokenizer(texts, context), want, strict=True):
        if not np.array_equal(got, expected):
            first = int(np.argmax(got != expected))
            raise KcdpError(
                f"the exported tokenizer gives {text!r:.80} the id {got[first]} at place {first}",
                f"{expected[first]}, as {_versions()} gives it", "report the text and these versions",
            )  # fmt: skip


def _tables() -> dict[str, Any]:
    source = require("open_clip", "train").tokenizer.SimpleTokenizer()
    ids = source.encoder
    merges = np.array([[ids[first], ids[second]] for first, second in source.bpe_ranks], dtype="<u2")
    places = [ids[first + second] for first, second in source.bpe_ranks]
    if places != list(range(FIRST_MERGE, FIRST_MERGE + len(merges))) or len(ids) != FIRST_MERGE + len(merges) + 2:
        raise ValueError("its ids are not bytes, merges in order, and two marks")
    return {
        "format": FORMAT,
        "made_from": _versions(),
        "characters": _characters(source),
        "repair": _repair(),
        "examples": [[text, source.encode(text)] for text in EXAMPLES],
        "merges": base64.b64encode(merges.tobytes()).decode("ascii"),
    }


def _characters(source: Any) -> dict[str, list[int]]:
    """First and last code point of every range of letters, digits, and what is neither of them nor white space.

    As the original's expressions find them, case ignored: the table of letters is that package's, and one character
    (U+0345, a mark whose capital is a letter) belongs to no set.
    """
    library = require("regex", "train")
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    sets = {"letters": r"[\p{L}]+", "digits": r"[\p{N}]+", "others": r"[^\s\p{L}\p{N}]+"}
    found: dict[str, list[int]] = {}
    for name, pattern in sets.items():
        if pattern.removesuffix("+") not in source.pat.pattern:
            raise ValueError(f"its words are {source.pat.pattern}")
        spans = (match.span() for match in library.finditer(pattern, everything, library.IGNORECASE))
        found[name] = [bound for first, after in spans for bound in (first, after - 1)]
    return found


def _repair() -> dict[str, Any]:
    """The tables of ftfy's steps, for ``kcdp.text_repair``."""
    require("ftfy", "train")
    fixes, data, bad = (require(f"ftfy.{name}", "train") for name in ("fixes", "chardata", "badness"))
    patterns = {
        "entity": data.HTML_ENTITY_RE, "terminal": fixes.ANSI_RE, "suspicious": bad.BADNESS_RE,
        "embedded": data.UTF8_DETECTOR_RE, "spaced": data.ALTERED_UTF8_RE, "a_grave": fixes.A_GRAVE_WORD_RE,
        "lossy": data.LOSSY_UTF8_RE,
    }  # fmt: skip
    quotes = {
        chr(code): straight
        for pattern, straight in ((data.DOUBLE_QUOTE_RE, '"'), (data.SINGLE_QUOTE_RE, "'"))
        for code in range(sys.maxunicode + 1)
        if pattern.fullmatch(chr(code))
    }
    tables = [{chr(code): char for code, char in table.items()} for table in (data.LIGATURES, data.WIDTH_MAP)]
    return {
        "patterns": {name: _pattern_text(expression.pattern) for name, expression in patterns.items()},
        "encodings": list(data.CHARMAP_ENCODINGS),
        "translations": [*tables, quotes],
        "removed": "".join(map(chr, sorted(data.CONTROL_CHARS))),
    }


def _pattern_text(pattern: str | bytes) -> str:
    return pattern if isinstance(pattern, str) else pattern.decode("latin-1")


def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("open_clip_torch", "ftfy", "regex"))
