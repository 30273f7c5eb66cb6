"""What a sticker pack's description says about its stickers: the emoji that they stand for.

The shapes that are found in the wild, all told by their content:

* Telegram: a ``getStickerSet`` answer of the Bot API (``stickers[].emoji`` with ``file_id`` and ``file_unique_id``) or
  of a client (``packs[].emoticon`` with ``documents``), a chat exported by Telegram Desktop (``result.json``:
  ``messages[].file`` with ``sticker_emoji``);
* Signal: a manifest (``stickers[].id`` with ``emoji``);
* WhatsApp: ``contents.json`` (``sticker_packs[].stickers[].image_file`` with ``emojis``);
* sticker-convert and others: ``emoji.txt``, JSON of a sticker's name without ending -> emoji.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable
from typing import Any

from kcdp.errors import KcdpError

#: Names that only a description has: what cannot be read under one of them is an error.
_CERTAIN = frozenset({"contents.json", "stickers.json", "sticker_set.json", "stickerset.json", "emoji.txt"})
_MAPPINGS = frozenset({"emoji.txt", "emoji.json", "emojis.json"})
_FILE_KEYS = ("image_file", "file_name", "filename", "file", "file_path", "path", "image", "source", "url")
_ID_KEYS = ("file_unique_id", "file_id", "sticker_id", "id", "documents")
_EMOJI_KEYS = ("emojis", "emoji", "emoticons", "emoticon", "sticker_emoji", "alt", "body")
_MOST_EMOJI, _MOST_NODES, _MOST_OTHERS = 16, 500_000, 16
#: Bytes of a description.
MOST_BYTES = 16 << 20

_PICTURE = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25aa-\u27bf\u2934\u2935\u2b05-\u2b55"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001faff]\ufe0f?[\U0001f3fb-\U0001f3ff]?"
    "[\U000e0020-\U000e007f]*"
)
_EMOJI = re.compile(f"[\U0001f1e6-\U0001f1ff]{{2}}|[0-9#*]\ufe0f?\u20e3|{_PICTURE}(?:\u200d{_PICTURE})*")


def emoji_in(value: Any) -> list[str]:
    """The emoji of a text or a list of texts, each once, in their order; text between them is left out."""
    texts = value if isinstance(value, list) else [value]
    found = [emoji for text in texts if isinstance(text, str) for emoji in _EMOJI.findall(text[:1000])]
    return list(dict.fromkeys(found))[:_MOST_EMOJI]


def descriptions(paths: Iterable[str]) -> list[str]:
    """Of files in one folder or archive, those worth reading: sure ones, and the first few that are JSON."""
    names = [(path, posixpath.basename(path).lower()) for path in paths]
    others = [path for path, name in names if name.endswith(".json") and name not in _CERTAIN]
    return [*(path for path, name in names if name in _CERTAIN), *others[:_MOST_OTHERS]]


class PackCaptions:
    """The captions of a folder's or an archive's stickers, by their paths."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, str]] = {}

    def describe(self, path: str, read: Callable[[], bytes], name: str) -> None:
        """Take up a description; one of another kind is ignored.

        Args:
            path: within the folder or the archive, with "/".
            read: gives the file's bytes, or raises KcdpError.
            name: what an error calls it.

        Raises:
            KcdpError: its name says that it is a description, and it cannot be read.
        """
        folder, base = posixpath.split(path)
        try:
            data = read()
            if len(data) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
            captions = _captions(json.loads(data.decode("utf-8-sig")), base.lower())
        except (KcdpError, ValueError, RecursionError) as error:
            if base.lower() not in _CERTAIN:
                return
            if isinstance(error, KcdpError):
                raise
            raise KcdpError(
                f"{name} is not valid JSON ({error})", "a sticker pack's description", "repair it, or remove it"
            ) from None
        for key, caption in captions.items():
            self._folders.setdefault(folder, {}).setdefault(key, caption)

    def of(self, path: str) -> str | None:
        """What is said about a sticker; a description nearer to it goes before one further up."""
        folder, below = posixpath.split(path)
        while True:
            known = self._folders.get(folder, {})
            number = _number(below)
            for key in [*_spellings(below), *([number] if number else [])] if known else ():
                if key in known:
                    return known[key]
            if not folder:
                return None
            folder, last = posixpath.split(folder)
            below = f"{last}/{below}"


def _captions(content: Any, base: str) -> dict[str, str]:
    """key -> emoji joined by spaces. A key that stands for different emoji stands for none."""
    pairs: list[tuple[str, str]] = []
    if base in _MAPPINGS and isinstance(content, dict):
        pairs += [(_plain(key), " ".join(emoji_in(value))) for key, value in content.items()]
    pending: list[tuple[Any, str]] = [(content, "")]
    for _ in range(_MOST_NODES):
        if not pending:
            break
        node, identifier = pending.pop()
        if isinstance(node, dict):
            if isinstance(node.get("stickers"), list) and isinstance(node.get("identifier"), str):
                identifier = node["identifier"]  # WhatsApp keeps each pack in a folder of this name
            pairs += _described(node, identifier)
            node = list(node.values())
        if isinstance(node, list):
            pending += [(child, identifier) for child in node if isinstance(child, (dict, list))]
    found: dict[str, set[str]] = {}
    for key, caption in pairs:
        if key and caption:
            found.setdefault(key, set()).add(caption)
    return {key: captions.pop() for key, captions in found.items() if len(captions) == 1}


def _described(record: dict[str, Any], identifier: str) -> list[tuple[str, str]]:
    """The keys of one record, if it names a sticker and its emoji."""
    caption = next((" ".join(found) for key in _EMOJI_KEYS if (found := emoji_in(record.get(key)))), "")
    caption = caption or _alternative_text(record)
    if not caption:
        return []
    files = [_plain(record[key]) for key in _FILE_KEYS if isinstance(record.get(key), str)]
    if files:
        inside = [f"{_plain(identifier)}/{file}" for file in files] if identifier else []
        return [(key, caption) for file in [*files, *inside] for key in dict.fromkeys(_spellings(file))]
    named = [record[key] for key in _ID_KEYS if key in record]
    ids = [one for value in named for one in (value if isinstance(value, list) else [value])]
    return [(_plain(str(one)), caption) for one in ids if isinstance(one, (str, int)) and not isinstance(one, bool)]


def _alternative_text(record: dict[str, Any]) -> str:
    """Of a document as Telegram's clients have it: ``attributes[].alt``."""
    attributes = record.get("attributes")
    kept = [one for one in attributes if isinstance(one, dict)] if isinstance(attributes, list) else []
    return next((" ".join(found) for one in kept if (found := emoji_in(one.get("alt")))), "")


def _spellings(path: str) -> list[str]:
    """What a description may call a file, the most exact first: its path, its name, that without its ending."""
    plain = _plain(path)
    base = posixpath.basename(plain)
    return [plain, base, base.rpartition(".")[0] or base]


def _number(path: str) -> str | None:
    """The identifier of a file that is named by it, with zeros before it or not: ``007.webp``."""
    stem = _spellings(path)[-1]
    return str(int(stem)) if stem.isascii() and stem.isdigit() and len(stem) < 30 else None


def _plain(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./").lower()
