"""Contact sheets: every tagged picture with its emotion, to look a whole folder over at once."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont

from kcdp.decoding import decode
from kcdp.errors import KcdpError, nearest
from kcdp.files import atomic_file
from kcdp.labels import LABELS
from kcdp.preprocess import to_rgb
from kcdp.runtime.output import printable
from kcdp.runtime.tagger import Tag

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
_MAX_SHEET_PIXELS = 50_000_000  # 150 MB while drawing; more pictures than fit are left out, and the title says so

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Layout:
    """Everything in pixels, from the side of a tile."""

    tile: int
    columns: int

    @property
    def gap(self) -> int:
        return max(6, self.tile // 12)

    @property
    def text(self) -> int:
        return max(10, round(self.tile * 0.135))

    @property
    def small(self) -> int:
        return max(9, round(self.tile * 0.112))

    @property
    def pill(self) -> int:
        return round(self.text * 1.6)

    @property
    def cell(self) -> tuple[int, int]:
        """Width and height of a card: the picture, the emotion, the file's name."""
        return self.tile + 2 * (self.gap // 2), self.tile + self.gap + self.pill + round(self.small * 1.9)

    @property
    def header(self) -> int:
        return round(self.text * 1.5) * 2 + 2 * self.gap

    @property
    def width(self) -> int:
        return self.gap + self.columns * (self.cell[0] + self.gap)

    def origin(self, index: int) -> tuple[int, int]:
        """Left upper corner of a card."""
        row, column = divmod(index, self.columns)
        return self.gap + column * (self.cell[0] + self.gap), self.header + row * (self.cell[1] + self.gap)


def write_contact_sheet(
    path: str | Path,
    tags: Iterable[Tag],
    *,
    columns: int = 8,
    tile: int = 96,
    truth: Mapping[str, str] | None = None,
) -> None:
    """Write a PNG with one card a tag: the picture on white, as the model sees transparency, and its emotion.

    The pictures are read again, one at a time, from ``tag.path``. A tag with an error, or whose picture cannot
    be read any more, becomes a grey tile with the reason.

    Args:
        path: of the PNG; written whole or not at all.
        tags: in the order of the cards.
        columns: cards a row, 1 to 64.
        tile: side of a picture in pixels, 32 to 512.
        truth: ``tag.path`` -> the right emotion; wrong cards get a red frame, and the title an accuracy over
            the pictures that are in it.

    Raises:
        KcdpError: ``columns``, ``tile`` or an emotion in ``truth`` makes no sense, or ``path`` cannot be written.
    """
    for name, value, low, high in (("columns", columns, 1, 64), ("tile", tile, 32, 512)):
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise KcdpError(f"{name} is {value!r}", f"a whole number from {low} to {high}")
    truth = truth or {}
    for known in truth.values():
        if known not in LABELS:
            raise KcdpError(f"truth holds the emotion {known!r}{nearest(str(known), LABELS)}", ", ".join(LABELS))
    rows = list(tags)
    layout = _Layout(tile, columns)
    fitting = max(1, (_MAX_SHEET_PIXELS // layout.width - layout.header) // (layout.cell[1] + layout.gap)) * columns
    sheet = _draw(rows, rows[:fitting], layout, truth)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=False)


def _draw(rows: Sequence[Tag], shown: Sequence[Tag], layout: _Layout, truth: Mapping[str, str]) -> Image.Image:
    height = layout.origin(max(0, len(shown) - 1))[1] + layout.cell[1] + layout.gap if shown else layout.header
    sheet = Image.new("RGB", (layout.width, height), _PAPER)
    pen = ImageDraw.Draw(sheet)
    _header(pen, rows, len(shown), layout, truth)
    for index, tag in enumerate(shown):
        _card(sheet, pen, layout.origin(index), tag, layout, truth.get(tag.path))
    return sheet


def _header(
    pen: ImageDraw.ImageDraw, rows: Sequence[Tag], shown: int, layout: _Layout, truth: Mapping[str, str]
) -> None:
    """One line of totals, and below it how often each emotion was found, which is also the colours' legend."""
    title_font, line = _font(round(layout.text * 1.2)), round(layout.text * 1.5)
    title = _elided(_title(rows, shown, truth), title_font, layout.width - 2 * layout.gap)
    pen.text((layout.gap, layout.gap), title, _INK, title_font)
    font, dot, space = _font(layout.text), round(layout.text * 0.7), layout.text // 3
    left, middle = layout.gap, layout.gap + line + line // 2
    for label, count in Counter(tag.label for tag in rows if tag.label).most_common():
        entry = f"{label} {count}"
        end = left + dot + space + round(font.getlength(entry))
        if end > layout.width - layout.gap:
            break
        pen.ellipse((left, middle - dot // 2, left + dot, middle - dot // 2 + dot), _colour(label))
        pen.text((left + dot + space, middle), entry, _INK, font, anchor="lm")
        left = end + layout.text


def _title(rows: Sequence[Tag], shown: int, truth: Mapping[str, str]) -> str:
    failed = sum(tag.error is not None for tag in rows)
    title = f"{len(rows) - failed} tagged" + (f", {failed} failed" if failed else "")
    judged = [tag for tag in rows if tag.path in truth]
    if judged:
        right = sum(tag.label == truth[tag.path] for tag in judged)
        title += f"; {right} of {len(judged)} right ({100 * right / len(judged):.1f} %)"
    return title + (f"; the first {shown} are shown" if shown < len(rows) else "")


def _card(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, origin: tuple[int, int], tag: Tag, layout: _Layout, known: str | None
) -> None:
    (left, top), (width, height), tile = origin, layout.cell, layout.tile
    wrong = known is not None and known != tag.label
    frame = (left, top, left + width - 1, top + height - 1)
    pen.rounded_rectangle(frame, layout.gap // 2 + 2, _CARD, _WRONG if wrong else _BORDER, 2 if wrong else 1)
    x, y = left + layout.gap // 2, top + layout.gap // 2
    picture, reason = _thumbnail(tag, tile)
    if picture is None:
        _grey_tile(pen, (x, y), reason, layout)
    else:
        sheet.paste(picture, (x + (tile - picture.width) // 2, y + (tile - picture.height) // 2))
    bar = (x, y + tile + layout.gap // 2, x + tile - 1, y + tile + layout.gap // 2 + layout.pill - 1)
    _emotion(pen, bar, tag, layout)
    caption = f"truth: {known}" if wrong else Path(tag.path).name
    place, small = (x + tile // 2, (bar[3] + frame[3]) // 2), _font(layout.small)
    pen.text(place, _elided(_drawable(caption), small, tile), _WRONG if wrong else _FAINT, small, anchor="mm")


def _emotion(pen: ImageDraw.ImageDraw, bar: tuple[int, int, int, int], tag: Tag, layout: _Layout) -> None:
    """A bar in the emotion's colour: its name on the left, the confidence on the right."""
    left, top, right, bottom = bar
    middle, inset, text, small = (top + bottom + 1) // 2, layout.pill // 4, _font(layout.text), _font(layout.small)
    if tag.label is None or tag.confidence is None:
        pen.rounded_rectangle(bar, inset, _GREY)
        pen.text(((left + right) // 2, middle), "failed", _FAINT, text, anchor="mm")
        return
    pen.rounded_rectangle(bar, inset, _colour(tag.label))
    percent = f"{100 * tag.confidence:.0f} %"
    room = right - left - 2 * inset
    if text.getlength(tag.label) + inset + small.getlength(percent) <= room:  # on the smallest tiles: the name only
        pen.text((right - inset, middle), percent, _CARD, small, anchor="rm")
    pen.text((left + inset, middle), _elided(tag.label, text, room), _CARD, text, anchor="lm")


def _thumbnail(tag: Tag, tile: int) -> tuple[Image.Image | None, str]:
    """The picture within tile x tile, on white; or None and the reason, without the path it begins with."""
    reason = tag.error
    if reason is None:
        try:
            picture = to_rgb(decode(tag.path))
            scale = tile / max(picture.size)
            size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
            return picture.resize(size, Image.Resampling.LANCZOS), ""
        except KcdpError as error:
            reason = "no picture" if tag.path.startswith("<") else str(error)
    return None, reason.removeprefix(tag.path).lstrip(": ").split(";")[0]


def _grey_tile(pen: ImageDraw.ImageDraw, corner: tuple[int, int], reason: str, layout: _Layout) -> None:
    (left, top), side, font = corner, layout.tile, _font(layout.small)
    pen.rectangle((left, top, left + side - 1, top + side - 1), _GREY)
    line = round(layout.small * 1.25)
    lines = _wrapped(_drawable(reason), font, side - 8, max(1, (side - 8) // line))
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


def _drawable(text: str) -> str:
    """Pillow's built-in font knows ASCII only: letters lose their accents, others become question marks."""
    plain = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return "".join(char if char.isascii() else "?" for char in printable(plain))


def _colour(label: str) -> tuple[int, int, int]:
    return COLOURS.get(label, _FAINT)


@lru_cache(maxsize=32)
def _font(size: int) -> Font:
    try:
        return ImageFont.load_default(size)
    except ImportError:  # a Pillow without FreeType has one small font only
        return ImageFont.load_default()
