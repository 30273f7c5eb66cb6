"""A contact sheet as one HTML file that opens anywhere and loads nothing: cards with pictures, filter and order."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from html import escape
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kcdp.errors import KcdpError
from kcdp.files import atomic_file
from kcdp.runtime.items import Item
from kcdp.runtime.output import printable
from kcdp.runtime.page_parts import CHOICES, HEAD, tail
from kcdp.runtime.sorting import FAILED
from kcdp.runtime.thumbnails import data_uri, first_picture

if TYPE_CHECKING:
    from kcdp.runtime.tagger import Tag

#: Most characters of embedded pictures, by default: some 6,000 stickers; a browser on two busy cores took 4 s.
MOST_CHARACTERS = 32_000_000
_SIDE = 160  # pixels


class HtmlSheet:
    """Writes cards as they come; as a context manager: at its end the file is there, whole, or nothing has changed.

    Every name and message is escaped, and the page forbids itself all that it does not hold (its content policy).

    Args:
        path: of the page.
        most: characters that embedded pictures may have together; further cards have none, and the page says so.

    Raises:
        KcdpError: ``path`` cannot be written.
    """

    def __init__(self, path: str | Path, *, most: int = MOST_CHARACTERS) -> None:
        self._path, self._room = path, most
        self._left_out = 0
        self._counts: Counter[str] = Counter()
        self._files = ExitStack()

    def __enter__(self) -> HtmlSheet:
        with ExitStack() as files:
            temporary = files.enter_context(atomic_file(self._path))
            self._stream: IO[str] = files.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))
            self._stream.write(HEAD)
            self._files = files.pop_all()
        return self

    def __exit__(self, *details: Any) -> None:
        if details[0] is not None:
            self._files.__exit__(*details)
            return
        with self._files:
            self._stream.write(tail([self._summary(), *self.told()]))

    def add(self, item: Item, tag: Tag) -> None:
        """Writes one card."""
        label = FAILED if tag.error is not None else str(tag.label)
        self._counts[label] += 1
        confidence = -1.0 if tag.confidence is None else tag.confidence
        name = escape(printable(tag.path))
        picture = _reason(tag) if tag.error is not None else self._picture(item, tag)
        self._stream.write(
            f'<li class="card {escape(label)}" data-label="{escape(label)}" data-confidence="{confidence:.6f}">\n'
            f'{picture}<p class="name">{name}</p>\n{_scores(tag)}</li>\n'
        )

    def told(self) -> list[str]:
        """A line where pictures were left out."""
        return [f"pictures not shown, the page would be too large: {self._left_out}"] if self._left_out else []

    def _picture(self, item: Item, tag: Tag) -> str:
        found = f"{printable(tag.path)}: {tag.label}, {100 * (tag.confidence or 0):.0f} %"
        reason = "not shown: the page would be too large"
        if self._room > 0:
            try:
                uri, (width, height) = data_uri(first_picture(item.source, item.name), _SIDE)
            except KcdpError as error:
                reason = _without_path(str(error), tag.path)
            else:
                if len(uri) <= self._room:
                    self._room -= len(uri)
                    size = f'width="{width}" height="{height}"'
                    return f'<div class="picture"><img src="{uri}" {size} alt="{escape(found)}"></div>\n'
                self._room = 0
                self._left_out += 1
        else:
            self._left_out += 1
        return f'<div class="picture" role="img" aria-label="{escape(found)}">{escape(printable(reason))}</div>\n'

    def _summary(self) -> str:
        failed = self._counts[FAILED]
        counts = ", ".join(f"{name} {self._counts[name]}" for name in CHOICES if self._counts[name])
        total = sum(self._counts.values())
        return f"{total - failed} tagged, {failed} failed" + (f": {counts}" if counts else "")


def _scores(tag: Tag) -> str:
    if tag.error is not None:
        return ""
    moves = f", {tag.frames} frames" if tag.frames > 1 else ""
    bars = "".join(
        f'<li class="{escape(label)}"><span>{escape(label)}</span>'
        f'<span class="bar"><i style="width:{100 * score:.1f}%"></i></span><span>{score:.2f}</span></li>\n'
        for label, score in tag.scores.items()
    )
    found = f"{escape(str(tag.label))} {100 * (tag.confidence or 0):.0f} %{moves}"
    return f'<p class="found">{found}</p>\n<ul class="scores" aria-label="scores">\n{bars}</ul>\n'


def _reason(tag: Tag) -> str:
    reason = escape(printable(_without_path(str(tag.error), tag.path)))
    return f'<p class="found">failed</p>\n<p class="reason">{reason}</p>\n'


def _without_path(message: str, path: str) -> str:
    return message.removeprefix(path).lstrip(": ")
