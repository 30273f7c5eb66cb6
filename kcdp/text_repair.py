"""Broken text made whole, step by step as the package ftfy does it, which CLIP's tokenizer was trained behind.

Where training has that package, a device has only what is here: the same steps, with what is no step but a table
(which characters make a ligature, which sequences of characters look like text read in the wrong encoding) in a file
that an export writes from the installed package (``kcdp.export.text_tables``). The package is never called, even where
it is installed, so that one bundle cleans a text alike on every machine.

Left to Python itself: Unicode normal forms, lower case, names of HTML entities. They differ between Python versions
only in characters that Unicode has added since.
"""

from __future__ import annotations

import codecs
import html
import html.entities
import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from kcdp.errors import KcdpError

#: Longer lines are repaired in pieces of so many characters.
LONGEST = 1_000_000

_SURROGATES = re.compile("[\ud800-\udfff]")
_C1 = re.compile("[\x80-\x9f]")
_LINE_ENDS = re.compile("\r\n|[\r\x85\u2028\u2029]")
#: UTF-16's surrogates written as two times three bytes, and Java's form of U+0000; a line's end may stand in for the
#: last byte, as it does in the original.
_VARIANTS = re.compile(
    rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf](?:[\x80-\xbf]|\n\Z)|\xc0(?:\x80|\n\Z)", flags=re.DOTALL
)


class TextRepair:
    """Text in, text out.

    Args:
        tables: what ``kcdp.export.text_tables`` wrote.

    Raises:
        KcdpError: a table is missing or damaged.
    """

    def __init__(self, tables: Mapping[str, Any]) -> None:
        try:
            self._translations = [str.maketrans(dict(table)) for table in tables["translations"]]
            self._removed = dict.fromkeys(map(ord, tables["removed"]))
            patterns = {name: str(tables["patterns"][name]) for name in _PATTERNS}
            self._text = {name: re.compile(patterns[name], flag) for name, flag in _TEXT.items()}
            self._bytes = {name: re.compile(patterns[name].encode("latin-1")) for name in _BYTES}
            self._encoders = {name: _encoder(name) for name in tables["encodings"]}
        except (AttributeError, KeyError, LookupError, TypeError, ValueError, re.error) as error:
            raise KcdpError(
                f"the tokenizer's tables for broken text are damaged ({error!r})", fix="export the bundle again"
            ) from None

    def __call__(self, text: str) -> str:
        """The whole text, line by line. From a line with "<" on, HTML entities are left as they are."""
        fixed, entities, position = [], True, 0
        while position < len(text):
            end = text.find("\n", position) + 1 or len(text)
            line = text[position : min(end, position + LONGEST)]
            position += len(line)
            entities = entities and "<" not in line
            fixed.append(self._line(line, entities))
        return "".join(fixed)

    def _line(self, text: str, entities: bool) -> str:
        """All steps, until none of them changes anything."""
        while True:
            before = text
            if entities and "&" in text:
                text = self._text["entity"].sub(_entity, text)
            text = _C1.sub(_from_c1, self.mojibake(text))
            for table in self._translations:  # ligatures, widths, quotes
                text = text.translate(table)
            text = _join_surrogates(_LINE_ENDS.sub("\n", text))
            text = self._text["terminal"].sub("", text).translate(self._removed)
            text = unicodedata.normalize("NFC", text)
            if text == before:
                return text

    def mojibake(self, text: str) -> str:
        """Undo UTF-8 that was read in another encoding, as often as it happened."""
        while (fixed := self._undo_one(text)) != text:
            text = fixed
        return text

    def _undo_one(self, text: str) -> str:
        if text.isascii() or not self._text["suspicious"].search(text):
            return text
        for name, encode in self._encoders.items():
            try:
                return self._decode(encode(text), name)
            except UnicodeError:  # the text was never in this encoding, or was not UTF-8 before
                continue
        fixed = self._text["embedded"].sub(lambda match: self._part(match[0], len(text)), text)
        if fixed != text:
            return fixed
        try:
            fixed = text.encode("latin-1").decode("windows-1252")
        except UnicodeError:
            fixed = text
        return fixed if fixed != text else _C1.sub(_from_c1, text)

    def _part(self, part: str, whole: int) -> str:
        """A suspicious part of a text that as a whole cannot be decoded."""
        smaller = len(part) < whole  # else this would never end
        return self.mojibake(part) if smaller and self._text["suspicious"].search(part) else part

    def _decode(self, data: bytes, encoding: str) -> str:
        """UTF-8, where a no-break space may have become a space and a byte may be lost; or UnicodeError."""
        if encoding != "macroman" and self._bytes["spaced"].search(data):
            data = self._bytes["a_grave"].sub(b"\xc3\xa0 ", data)
            data = self._bytes["spaced"].sub(lambda match: match[0].replace(b" ", b"\xa0"), data)
        if encoding.startswith(_SLOPPY):
            data = self._bytes["lossy"].sub("\ufffd".encode(), data)
        if b"\xed" in data or b"\xc0" in data:
            data = _VARIANTS.sub(_standard, data)
        return data.decode("utf-8")


_SLOPPY = "sloppy-"
_TEXT = {"entity": 0, "terminal": 0, "suspicious": re.VERBOSE, "embedded": re.VERBOSE}
_BYTES = ("a_grave", "spaced", "lossy")
_PATTERNS = (*_TEXT, *_BYTES)


@cache
def _entities() -> dict[str, str]:
    """``&name;`` -> its character; names of small letters in capitals too, where those are no names themselves."""
    known = {f"&{name}": char for name, char in html.entities.html5.items() if name.endswith(";")}
    for name, char in list(known.items()):
        capitals = name.upper()
        if name == name.lower() and html.unescape(capitals) == capitals:
            known[capitals] = char.upper()
    return known


def _entity(match: re.Match[str]) -> str:
    text = match[0]
    found = _entities().get(text)
    if found is None and text.startswith("&#"):
        found = html.unescape(text)
        if ";" in found:  # only a part of it was a number
            found = None
    return text if found is None else found


@cache
def _sloppy(encoding: str) -> str:
    """256 characters: bytes that the encoding leaves out stand for themselves, 0x1A for what is lost."""
    table = [bytes([byte]).decode(encoding, "replace") for byte in range(256)]
    table = [chr(byte) if char == "\ufffd" else char for byte, char in enumerate(table)]
    table[0x1A] = "\ufffd"
    return "".join(table)


def _encoder(name: str) -> Callable[[str], bytes]:
    """Text to bytes in an encoding, UnicodeError where it has no such character."""
    if not name.startswith(_SLOPPY):
        codecs.lookup(name)
        return lambda text: text.encode(name)
    table = codecs.charmap_build(_sloppy(name.removeprefix(_SLOPPY)))
    return lambda text: codecs.charmap_encode(text, "strict", table)[0]


def _from_c1(match: re.Match[str]) -> str:
    return _sloppy("windows-1252")[ord(match[0])]


def _join_surrogates(text: str) -> str:
    """Halves of UTF-16 joined; a half alone becomes U+FFFD."""
    if not _SURROGATES.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _standard(match: re.Match[bytes]) -> bytes:
    data = match[0]
    if data[0] == 0xC0:
        return b"\x00"
    high, low = (data[1] & 15) << 6 | data[2] & 63, (data[4] & 15) << 6 | data[5] & 63
    return chr(0x10000 + (high << 10) + low).encode()
