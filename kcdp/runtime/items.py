"""What goes through the pipeline: a sticker to be read, and one that has been."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from kcdp.decoding import Source
from kcdp.errors import KcdpError

#: A picture, or what reads one when its turn comes (an archive's entry).
Readable: TypeAlias = "Source | Callable[[], bytes]"


@dataclass(frozen=True)
class Item:
    """A sticker to be tagged.

    Attributes:
        name: what its row is called: the path, ``pack.zip/wave.png`` for an archive's entry.
        source: the picture, or a function that gives its bytes.
        caption: what is said about it (a pack's emoji), for bundles that take captions; None: nothing.
        error: why it cannot be read, where that is known already.
    """

    name: str
    source: Readable = b""
    caption: str | None = None
    error: KcdpError | None = None


@dataclass(frozen=True)
class Prepared:
    """A sticker as the graph takes it, or why it could not be read.

    Attributes:
        name: as in ``Item``.
        pixels: uint8 [F, size, size, 3], RGB: one frame of a still picture, several of an animation; F is 0 where
            ``error`` is set.
        weights: float32 [F], sum 1: the share of time that each frame stands for.
        frames: how many frames the file has.
        caption: as in ``Item``.
        error: one line, or None.
    """

    name: str
    pixels: np.ndarray
    weights: np.ndarray = field(default_factory=lambda: np.ones(1, np.float32))
    frames: int = 1
    caption: str | None = None
    error: KcdpError | None = None

    @classmethod
    def failed(cls, name: str, error: KcdpError, **more: Any) -> Prepared:
        """One that could not be read."""
        return cls(name, np.empty((0, 0, 0, 3), np.uint8), np.empty(0, np.float32), 0, error=error, **more)
