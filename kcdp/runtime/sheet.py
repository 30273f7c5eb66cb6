"""Contact sheets: every tagged picture with its emotion, to look a whole folder over at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from kcdp.cards import COLOURS, Card, Layout, draw_sheet, fitted
from kcdp.errors import KcdpError, nearest
from kcdp.files import atomic_file
from kcdp.labels import LABELS
from kcdp.runtime.items import Readable
from kcdp.runtime.tagger import Tag
from kcdp.runtime.thumbnails import first_picture

__all__ = ["COLOURS", "write_contact_sheet"]

_MAX_SHEET_PIXELS = 50_000_000  # 150 MB while drawing; more pictures than fit are left out, and the title says so


def write_contact_sheet(
    path: str | Path,
    tags: Iterable[Tag],
    *,
    columns: int = 8,
    tile: int = 96,
    truth: Mapping[str, str] | None = None,
    sources: Mapping[str, Readable] | None = None,
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
        sources: ``tag.path`` -> the picture, where the path itself is none (an archive's entry).

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
    layout = Layout(tile, columns)
    fitting = max(1, (_MAX_SHEET_PIXELS // layout.width - layout.header) // (layout.cell[1] + layout.gap)) * columns
    shown = rows[:fitting]
    cards = (_card(tag, tile, truth.get(tag.path), (sources or {}).get(tag.path, tag.path)) for tag in shown)
    legend = dict(Counter(tag.label for tag in rows if tag.label).most_common())
    sheet = draw_sheet(cards, len(shown), layout, _title(rows, len(shown), truth), legend)
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=False)


def _title(rows: Sequence[Tag], shown: int, truth: Mapping[str, str]) -> str:
    failed = sum(tag.error is not None for tag in rows)
    title = f"{len(rows) - failed} tagged" + (f", {failed} failed" if failed else "")
    judged = [tag for tag in rows if tag.path in truth]
    if judged:
        right = sum(tag.label == truth[tag.path] for tag in judged)
        title += f"; {right} of {len(judged)} right ({100 * right / len(judged):.1f} %)"
    return title + (f"; the first {shown} are shown" if shown < len(rows) else "")


def _card(tag: Tag, tile: int, known: str | None, source: Readable) -> Card:
    wrong = known is not None and known != tag.label
    picture, reason = _thumbnail(tag, tile, source)
    judged = tag.label is not None and tag.confidence is not None
    return Card(
        picture, reason,
        bar=str(tag.label) if judged else "", share=f"{100 * (tag.confidence or 0):.0f} %",
        caption=f"truth: {known}" if wrong else Path(tag.path).name, red=wrong,
    )  # fmt: skip


def _thumbnail(tag: Tag, tile: int, source: Readable) -> tuple[Image.Image | None, str]:
    """The picture within tile x tile, on white; or None and the reason, without the path it begins with."""
    reason = tag.error
    if reason is None:
        try:
            return fitted(first_picture(source, tag.path), tile), ""
        except KcdpError as error:
            reason = "no picture" if tag.path.startswith("<") else str(error)
    return None, reason.removeprefix(tag.path).lstrip(": ").split(";")[0]
