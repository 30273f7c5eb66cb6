"""Sheets of cards: pictures side by side, each with a coloured bar and a line of text below it. Only Pillow."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

#: emotion -> RGB. Dark enough for white text, told apart by hue and by lightness.
COLOURS: MappingProxyType[str, tuple[int, int, int]] = MappingProxyType({
    "surprise": (214, 137, 16),
    "happy": (39, 145, 82),
    "disgust": (117, 122, 36),
    "fear": (112, 72, 184),
    "sad": (42, 104, 196),
    "anger": (200, 42, 50),
})  # fmt: skip

_PAPER, _CARD, _BORDER = (243, 244, 246), (255, 255, 255), (214, 217, 222)
_INK, _FAINT, _GREY, _WRONG = (31, 35, 41), (112, 118, 128), (224, 226, 230), (200, 42, 50)

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        picture: no larger than a tile; None: a grey tile with ``reason`` on it.
        reason: why there is no picture.
        bar: emotion in the bar below the picture; empty: a grey bar that says "failed".
        share: at the bar's right end, where there is room.
        caption: the line below the bar; non-ASCII letters are simplified.
        note: a fainter line below that, where the layout has one; of a long text the end is shown.
        red: a red frame and caption.
    """

    picture: Image.Image | None
    reason: str = ""
    bar: str = ""
    share: str = ""
    caption: str = ""
    note: str = ""
    red: bool = False


@dataclass(frozen=True)
class Layout:
    """Everything in pixels, from the side of a tile; ``notes``: a second line of text in every card."""

    tile: int
    columns: int
    notes: bool = False

    @property
    def gap(self) -> int:
        """Between cards."""
        return max(6, self.tile // 12)

    @property
    def text(self) -> int:
        """Size of the letters."""
        return max(10, round(self.tile * 0.135))

    @property
    def small(self) -> int:
        """Size of the small letters."""
        return max(9, round(self.tile * 0.112))

    @property
    def pill(self) -> int:
        """Height of the bar."""
        return round(self.text * 1.6)

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a card: the picture, the bar, the caption and, where there is one, the note."""
        lines = round(self.small * 1.9) + (round(self.small * 1.3) if self.notes else 0)
        return self.tile + 2 * (self.gap // 2), self.tile + self.gap + self.pill + lines

    @property
    def header(self) -> int:
        """Height of title and legend."""
        return round(self.text * 1.5) * 2 + 2 * self.gap

    @property
    def width(self) -> int:
        """Of the sheet."""
        return self.gap + self.columns * (self.cell[0] + self.gap)

    def origin(self, index: int) -> tuple[int, int]:
        """Left upper corner of a card."""
        row, column = divmod(index, self.columns)
        return self.gap + column * (self.cell[0] + self.gap), self.header + row * (self.cell[1] + self.gap)


def draw_sheet(cards: Iterable[Card], count: int, layout: Layout, title: str, legend: Mapping[str, int]) -> Image.Image:
    """An RGB picture of all cards, with a title and a legend above them.

    Args:
        cards: taken one at a time, so that their pictures need not be in memory together.
        count: how many there are.
        title: one line; what does not fit is cut.
        legend: emotion -> how often, in the order shown.
    """
    height = layout.origin(max(0, count - 1))[1] + layout.cell[1] + layout.gap if count else layout.header
    sheet = Image.new("RGB", (layout.width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _header(pen, layout, title, legend)
    for index, card in enumerate(cards):
        _draw(sheet, pen, layout.origin(index), card, layout)
    return sheet


def fitted(picture: Image.Image, tile: int) -> Image.Image:
    """A picture scaled, in its proportions, to fill a tile's width or height."""
    scale = tile / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _header(pen: ImageDraw.ImageDraw, layout: Layout, title: str, legend: Mapping[str, int]) -> None:
    """The title, and below it how often each emotion was found, which is also the colours' legend."""
    title_font, line = _font(round(layout.text * 1.2)), round(layout.text * 1.5)
    title = _elided(drawable(title), title_font, layout.width - 2 * layout.gap)
    pen.text((layout.gap, layout.gap), title, _INK, title_font)
    font, dot, space = _font(layout.text), round(layout.text * 0.7), layout.text // 3
    left, middle = layout.gap, layout.gap + line + line // 2
    for label, count in legend.items():
        entry = f"{label} {count}"
        end = left + dot + space + round(font.getlength(entry))
        if end > layout.width - layout.gap:
            break
        pen.ellipse((left, middle - dot // 2, left + dot, middle - dot // 2 + dot), _colour(label))
        pen.text((left + dot + space, middle), entry, _INK, font, anchor="lm")
        left = end + layout.text


def _draw(sheet: Image.Image, pen: ImageDraw.ImageDraw, origin: tuple[int, int], card: Card, layout: Layout) -> None:
    (left, top), (width, height), tile = origin, layout.cell, layout.tile
    frame = (left, top, left + width - 1, top + height - 1)
    edge = (_WRONG, 2) if card.red else (_BORDER, 1)
    pen.rounded_rectangle(frame, layout.gap // 2 + 2, _CARD, *edge)
    x, y = left + layout.gap // 2, top + layout.gap // 2
    if card.picture is None:
        _grey_tile(pen, (x, y), card.reason, layout)
    else:
        place = (x + (tile - card.picture.width) // 2, y + (tile - card.picture.height) // 2)
        sheet.paste(card.picture, place)
    bar = (x, y + tile + layout.gap // 2, x + tile - 1, y + tile + layout.gap // 2 + layout.pill - 1)
    _emotion(pen, bar, card, layout)
    small, ink = _font(layout.small), _WRONG if card.red else _INK if layout.notes else _FAINT
    middle = x + tile // 2
    centre = (bar[3] + frame[3]) // 2 - (round(layout.small * 0.65) if layout.notes else 0)
    pen.text((middle, centre), _elided(drawable(card.caption), small, tile), ink, small, anchor="mm")
    if layout.notes:
        note = _elided(drawable(card.note)[::-1], small, tile)[::-1]
        pen.text((middle, centre + round(layout.small * 1.3)), note, _FAINT, small, anchor="mm")


def _emotion(pen: ImageDraw.ImageDraw, bar: tuple[int, int, int, int], card: Card, layout: Layout) -> None:
    """A bar in the emotion's colour: its name on the left, the share on the right."""
    left, top, right, bottom = bar
    middle, inset, text, small = (top + bottom + 1) // 2, layout.pill // 4, _font(layout.text), _font(layout.small)
    if not card.bar:
        pen.rounded_rectangle(bar, inset, _GREY)
        pen.text(((left + right) // 2, middle), "failed", _FAINT, text, anchor="mm")
        return
    pen.rounded_rectangle(bar, inset, _colour(card.bar))
    room = right - left - 2 * inset
    if text.getlength(card.bar) + inset + small.getlength(card.share) <= room:  # on the smallest tiles: the name only
        pen.text((right - inset, middle), card.share, _CARD, small, anchor="rm")
    pen.text((left + inset, middle), _elided(card.bar, text, room), _CARD, text, anchor="lm")


def _grey_tile(pen: ImageDraw.ImageDraw, corner: tuple[int, int], reason: str, layout: Layout) -> None:
    (left, top), side, font = corner, layout.tile, _font(layout.small)
    pen.rectangle((left, top, left + side - 1, top + side - 1), _GREY)
    line = round(layout.small * 1.25)
    lines = _wrapped(drawable(reason), font, side - 8, max(1, (side - 8) // line))
    start = top + (side - line * len(lines)) // 2
    for number, text in enumerate(lines):
        pen.text((left + side // 2, start + line * number + line // 2), text, _FAINT, font, anchor="mm")


def _wrapped(text: str, font: Font, room: int, most: int) -> list[str]:
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= room:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    if len(lines) > most:
        lines = [*lines[: most - 1], " ".join(lines[most - 1 :])]
    return [_elided(line, font, room) for line in lines]


def _elided(text: str, font: Font, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    text = text[: int(room)]  # no letter is narrower than a pixel
    while text and font.getlength(f"{text}...") > room:
        text = text[:-1]
    return f"{text}..."


def drawable(text: str) -> str:
    """Text for Pillow's built-in font, which knows ASCII only.

    Letters lose their accents, what a terminal would act on becomes an escape, everything else a question mark.
    """
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in plain)
    return "".join(char if char.isascii() else "?" for char in shown)


def _colour(label: str) -> tuple[int, int, int]:
    return COLOURS.get(label, _FAINT)


@lru_cache(maxsize=32)
def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except ImportError:  # a Pillow without FreeType has one small font only
        return ImageFont.load_default()
