"""What a knowledge cache holds, as JSON beside its data: written last, so that it never promises what is not there.

A block is the token states of one text. A row is one picture's k: the block of its caption and those of the
texts summed below it. Damage is found by the CRC-32 of every block.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from kcdp.errors import KcdpError
from kcdp.files import atomic_file

FORMAT = "kcdp-knowledge-1"


@dataclass(frozen=True)
class BlockForm:
    """Of what form a cache's blocks are: [tokens, width] of ``dtype``, little-endian."""

    tokens: int
    width: int
    dtype: str

    @property
    def bytes(self) -> int:
        """Of one block."""
        return self.tokens * self.width * self.numpy_dtype.itemsize

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Little-endian on every machine, so that a cache can be carried to another."""
        return np.dtype(self.dtype).newbyteorder("<")


@dataclass
class CacheIndex:
    """The index of one data file.

    Attributes:
        form: of the blocks.
        blocks: by position in the file: hash of the text and CRC-32 of the bytes; None where a block was damaged and
            its place is free.
        rows: hash of a picture's texts -> positions of its blocks, the caption's first.
    """

    form: BlockForm
    blocks: list[tuple[str, int] | None] = field(default_factory=list)
    rows: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._settle()

    def place(self) -> int:
        """Where the next block is to be written; the same until ``add``."""
        return self._free[-1] if self._free else len(self.blocks)

    def add(self, text: str, crc: int) -> None:
        """The block of ``text`` has been written at ``place``."""
        position = self.place()
        if self._free:
            self._free.pop()
            self.blocks[position] = (text, crc)
        else:
            self.blocks.append((text, crc))
        self.texts[text] = position

    def drop(self, positions: Iterable[int]) -> None:
        """Forget these blocks, and every row that needs one of them."""
        gone = set(positions)
        self.blocks = [None if position in gone else block for position, block in enumerate(self.blocks)]
        self.rows = {key: row for key, row in self.rows.items() if gone.isdisjoint(row)}
        self._settle()

    def intact(self, position: int, data: np.ndarray) -> bool:
        """Whether a block of the file is what was written there."""
        return zlib.crc32(np.ascontiguousarray(data).data) == self.crc(position)

    def crc(self, position: int) -> int:
        """CRC-32 of a block; -1 of a free place."""
        block = self.blocks[position]
        return -1 if block is None else block[1]

    def save(self, path: Path) -> None:
        """Write it whole or not at all. The blocks must be on the disk before."""
        content = {"format": FORMAT, **asdict(self.form), "blocks": self.blocks, "rows": self.rows}
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")

    def _settle(self) -> None:
        while self.blocks and self.blocks[-1] is None:  # the file need not be longer than what it holds
            self.blocks.pop()
        self.texts = {block[0]: position for position, block in enumerate(self.blocks) if block is not None}
        self._free = [position for position, block in enumerate(self.blocks) if block is None]


def load_index(path: Path, form: BlockForm) -> CacheIndex:
    """The index at ``path``; an empty one of ``form`` where there is none.

    Raises:
        ValueError: it is damaged, and why.
        KcdpError: it was written by another version of the format, or may not be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return CacheIndex(form)
    except OSError as error:
        raise KcdpError(f"{path} cannot be read ({error.strerror})", "a knowledge cache") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    known = content.get("format") if isinstance(content, dict) else None
    if isinstance(known, str) and known.startswith("kcdp-knowledge-") and known != FORMAT:
        raise KcdpError(f"{path} has the format {known}", FORMAT, "use another folder, or the kcdp that wrote it")
    try:
        if known != FORMAT:
            raise ValueError("format is missing")
        found = BlockForm(int(content["tokens"]), int(content["width"]), str(content["dtype"]))
        blocks = [None if block is None else (str(block[0]), int(block[1])) for block in content["blocks"]]
        rows = {str(key): [int(position) for position in row] for key, row in content["rows"].items()}
        valid = {position for position, block in enumerate(blocks) if block is not None}
        if min(found.tokens, found.width) < 1 or not all(len(r) > 1 and valid.issuperset(r) for r in rows.values()):
            raise ValueError("it promises what it does not have")
        return CacheIndex(found, blocks, rows)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error})") from None


def content_hash(*parts: Any) -> str:
    """SHA-256 of texts and lists of texts, told apart whatever they hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
