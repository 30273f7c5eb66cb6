"""How much of a file is read before it counts as hostile: one place for every bound."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kcdp.errors import KcdpError

_MEBI = 1 << 20
#: field -> the least and the most it may be.
_RANGES: dict[str, tuple[float, float]] = {"sampled": (1, 256), "archive_nesting": (0, 4), "seconds": (0.1, 3600)}


@dataclass(frozen=True)
class Limits:
    """Bounds of one sticker, and of one archive. What is beyond is an error row, never a guess.

    Attributes:
        pixels: width times height of a picture; twice as many may be trained on. One of 32 megapixels and transparent
            takes 1 to 2 seconds and 850 MB.
        file_bytes: of a file, and of an archive's entry once unpacked.
        coded_bytes: of an AVIF or HEIC file, half as many of an animated one, five times as many of a WebP file:
            what takes their decoders about a second where it is all noise.
        frames: of an animation.
        animation_pixels: width times height times frames. Pillow composes around 100 million a second.
        sampled: how many frames of an animation are looked at, at most.
        vector_bytes: of a .tgs sticker once unpacked.
        seconds: of processor time that a .tgs or video sticker may take.
        worker_bytes: of address space of the process in which those are decoded.
        archive_entries: files in an archive.
        archive_bytes: of all that is in an archive, once unpacked.
        archive_ratio: how many times larger than packed an entry of more than a mebibyte may be.
        archive_nesting: how deep an archive may lie inside another; 0: not at all.

    Raises:
        KcdpError: a value is not a number in its range.
    """

    pixels: int = 32_000_000
    file_bytes: int = 128 * _MEBI
    coded_bytes: int = 5 * _MEBI
    frames: int = 2_000
    animation_pixels: int = 150_000_000
    sampled: int = 8
    vector_bytes: int = 4 * _MEBI
    seconds: float = 1.8
    worker_bytes: int = 2048 * _MEBI
    archive_entries: int = 10_000
    archive_bytes: int = 1024 * _MEBI
    archive_ratio: int = 200
    archive_nesting: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            low, high = _RANGES.get(field.name, (1, 1 << 40))
            kinds = (int, float) if field.name == "seconds" else (int,)
            if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
                word = "number" if field.name == "seconds" else "whole number"
                raise KcdpError(f"limits.{field.name} is {value!r}", f"a {word} from {low} to {high}")


#: The bounds that hold where none are given.
LIMITS = Limits()
