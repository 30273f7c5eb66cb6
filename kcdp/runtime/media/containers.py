"""What a picture's file says of itself before any pixel is decoded: how many frames, how long each, how large.

Pillow tells a frame's duration only after decoding all frames before it. These readers follow nothing but the blocks'
lengths; whether a block's content is sound is Pillow's to say. They also count the blocks: a file of nothing but
millions of tiny ones would keep Pillow busy for minutes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from struct import error as StructError
from struct import unpack_from

from kcdp.errors import KcdpError
from kcdp.runtime.media.sampling import as_shown

#: More blocks than any picture of 128 MiB has: PNG and WebP chunks, JPEG segments, GIF sub-blocks of up to 255 bytes.
_MOST_CHUNKS, _MOST_SUB_BLOCKS = 65_536, 1_000_000
#: Frames of a GIF, of which not even the number is wanted any more.
_MOST_FRAMES = 65_536
#: Scans of a progressive JPEG times its pixels: each scan is a pass over the whole picture. Encoders write ten or so.
_MOST_SCANNED = 500_000_000
_ENTROPY_CODED_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True)
class Outline:
    """An animation.

    Attributes:
        size: width and height of the whole canvas, in pixels.
        durations: of each frame that plays, in milliseconds, as browsers show it.
        first: Pillow's index of the first frame that plays; 1 where an APNG's default picture is no part of it.
    """

    size: tuple[int, int]
    durations: tuple[float, ...]
    first: int = 0


def outline(data: bytes, form: str, name: str) -> Outline | None:
    """What a file holds.

    Args:
        data: the whole file.
        form: as ``kcdp.decoding.picture_format`` calls it.
        name: what error messages call it.

    Returns:
        None for a still picture, a format without animation, and one that only its decoder can look into (AVIF).

    Raises:
        KcdpError: the file has more blocks than a picture can have.
    """
    reader = _READERS.get(form)
    try:
        return reader(data) if reader else None
    except _TooMany as error:
        raise KcdpError(f"{name} has more than {error} in it", "a picture", "save it again") from None
    except _Cut:
        raise KcdpError(
            f"{name} is truncated or damaged (a frame is cut off)", "a whole picture", "copy it again"
        ) from None
    except (StructError, IndexError):
        return None  # cut off before there is a whole picture: the decoder says so


class _TooMany(Exception):
    pass


class _Cut(Exception):
    pass


def _png(data: bytes) -> Outline | None:
    """PNG, 3rd edition: https://www.w3.org/TR/png-3/#apng-frame-based-animation"""
    size: tuple[int, int] = unpack_from(">II", data, 16)
    durations: list[float] = []
    animated = pictured = separate = False
    for kind, start, _ in _png_chunks(data):
        if kind == b"acTL":
            animated = animated or not pictured
        elif kind == b"fcTL" and animated:
            numerator, denominator = unpack_from(">HH", data, start + 20)
            durations.append(as_shown(1000 * numerator / (denominator or 100)))
        elif kind == b"IDAT" and not pictured:
            pictured, separate = True, not durations
        elif kind == b"IEND":
            break
    return Outline(size, tuple(durations), int(separate)) if durations else None


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    start = 8
    for _ in range(_MOST_CHUNKS):
        if start + 8 > len(data):
            return
        length, kind = unpack_from(">I4s", data, start)
        yield kind, start + 8, length
        start += 12 + length
    raise _TooMany(f"{_MOST_CHUNKS} chunks")


def _webp(data: bytes) -> Outline | None:
    """https://developers.google.com/speed/webp/docs/riff_container"""
    durations: list[float] = []
    size, start = (0, 0), 12
    for _ in range(_MOST_CHUNKS):
        if start + 8 > len(data):
            return Outline(size, tuple(durations)) if len(durations) > 1 else None
        kind, length = unpack_from("<4sI", data, start)
        if kind == b"VP8X":
            width, height = (int.from_bytes(data[at : at + 3], "little") for at in (start + 12, start + 15))
            size = (width + 1, height + 1)
        if kind == b"ANMF":
            durations.append(as_shown(int.from_bytes(data[start + 20 : start + 23], "little")))
        start += 8 + length + length % 2
    raise _TooMany(f"{_MOST_CHUNKS} chunks")


def _gif(data: bytes) -> Outline | None:
    """GIF89a specification, 1990. Bytes between blocks are skipped, as Pillow does."""
    blocks = _Counted(data)
    width, height, flags = unpack_from("<HHB", data, 6)
    durations: list[float] = []
    start, duration = 13 + _colours(flags), 0.0
    try:
        while start < len(data) and data[start] != 0x3B:
            kind, start = data[start], start + 1
            if kind == 0x21:
                if data[start] == 0xF9:
                    duration = 10.0 * unpack_from("<H", data, start + 3)[0]
                start = blocks.skip(start + 1)
            elif kind == 0x2C:
                durations.append(as_shown(duration))
                if len(durations) > _MOST_FRAMES:
                    raise _TooMany(f"{_MOST_FRAMES} frames")
                left, top, across, down, flags = unpack_from("<HHHHB", data, start)
                width, height = max(width, left + across), max(height, top + down)  # Pillow widens the canvas
                duration, start = 0.0, blocks.skip(start + 10 + _colours(flags))
            else:
                blocks.count()
    except (StructError, IndexError):
        if len(durations) > 1:  # Pillow would play the frames before it
            raise _Cut from None
        return None
    return Outline((width, height), tuple(durations)) if len(durations) > 1 else None


def _colours(flags: int) -> int:
    """Bytes of the colour table that follows."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


class _Counted:
    """Skips GIF's sub-blocks, and counts them."""

    def __init__(self, data: bytes) -> None:
        self._data, self._left = data, _MOST_SUB_BLOCKS

    def count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooMany(f"{_MOST_SUB_BLOCKS} blocks")

    def skip(self, start: int) -> int:
        """From the first sub-block to behind the last, which has length 0."""
        data = self._data
        while length := data[start]:
            start += length + 1
            self.count()
        return start + 1


def _jpeg(data: bytes) -> None:
    """ITU-T T.81, annex B."""
    start = scans = pixels = 0
    for _ in range(_MOST_CHUNKS):
        found = _ENTROPY_CODED_END.search(data, start)
        if found is None or data[found.start() + 1] == 0xD9:
            return
        start, marker = found.end(), data[found.start() + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = unpack_from(">HH", data, start + 3)
            pixels = max(pixels, height * width)
        scans += marker == 0xDA
        if scans * pixels > _MOST_SCANNED and scans > 1:
            raise _TooMany(f"{scans - 1} scans")
        if marker not in (0xD8, 0x01):
            start += unpack_from(">H", data, start)[0]
    raise _TooMany(f"{_MOST_CHUNKS} segments")


_READERS: dict[str, Callable[[bytes], Outline | None]] = {"PNG": _png, "WebP": _webp, "GIF": _gif, "JPEG": _jpeg}
