"""Knowledge tokens, computed once and kept in one memory-mapped file per dataset.

A folder holds ``knowledge.bin`` (token states of texts, block after block), ``knowledge.json`` (what is where) and,
while it grows, ``knowledge.lock``. Everything is found by its content: a changed caption, another encoder or another
prefix is simply not there yet. Every text is encoded once, however many pictures share it, and k is put together on
reading.

A block of CLIP ViT-L/14 in float16 is 118,272 bytes; a picture needs one for its caption and one for each new triple.
"""

from __future__ import annotations

import os
import sys
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from tqdm import tqdm

from kcdp.errors import KcdpError
from kcdp.knowledge.cache_index import BlockForm, CacheIndex, content_hash, load_index
from kcdp.knowledge.lock import writer_lock
from kcdp.knowledge.text import TextEncoder
from kcdp.knowledge.texts import knowledge_texts

DATA, INDEX, LOCK = "knowledge.bin", "knowledge.json", "knowledge.lock"

#: Seconds of encoding that a killed process may lose.
COMMIT_SECONDS = 30.0

Knowledge = tuple[str, Sequence[str]]


class KnowledgeCache:
    """k of many pictures, by content. Open it with ``KnowledgeCache.open``.

    A copy sent to another process (a loader's worker) reads and does not encode.

    Attributes:
        folder: where it lies.
        prefix: put before every caption, see ``knowledge_texts``.
        form: tokens and width of one text's states, and how they are stored.
        encoder_name: whose states they are.
    """

    def __init__(self, folder: Path, encoder: TextEncoder, prefix: str, form: BlockForm, progress: bool) -> None:
        self.folder, self.prefix, self.form, self.encoder_name = folder, prefix, form, encoder.name
        self._encoder: TextEncoder | None = encoder
        self._progress = progress
        self._map: np.ndarray | None = None
        self._checked: dict[int, int] = {}  # position -> CRC-32 that its bytes were seen to have
        self._said: set[str] = set()
        self._index = self._load()

    @classmethod
    def open(
        cls,
        folder: str | Path,
        encoder: TextEncoder,
        *,
        prefix: str = "",
        dtype: Literal["float16", "float32"] = "float16",
        width: int | None = None,
        progress: bool = True,
    ) -> KnowledgeCache:
        """The cache in ``folder``; one that is not there yet is made by the first ``ensure``.

        A damaged cache is said to be one, on standard error; what is damaged is encoded again by ``ensure``.

        Args:
            encoder: makes what is missing.
            prefix: names the style of the pictures ("a sticker of").
            dtype: how states are stored. float16 keeps three decimal digits of every number.
            width: width that the model wants, to be told now rather than in the middle of a run.
            progress: a bar while encoding, on a terminal.

        Raises:
            KcdpError: knowledge of the wrong width, of another number of tokens or stored otherwise; not a folder.
        """
        folder = Path(folder)
        if dtype not in ("float16", "float32"):
            raise KcdpError(f"dtype of the knowledge cache is {dtype!r}", "float16 or float32")
        if width is not None and width != encoder.width:
            raise KcdpError(
                f"{encoder.name} makes knowledge of the wrong width: {encoder.width}",
                f"{width}, the width of the model's knowledge tokens",
                f"choose a text encoder of that width, or set model.knowledge.width={encoder.width}",
            )
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise KcdpError(f"{folder} is not a folder", "the folder of a knowledge cache", "name another place")
        return cls(folder, encoder, prefix, BlockForm(encoder.tokens, encoder.width, dtype), progress)

    def __len__(self) -> int:
        """Number of different pictures' knowledge held, whichever encoder and prefix it is of."""
        return len(self._index.rows)

    @property
    def shape(self) -> tuple[int, int]:
        """(2T, W) of one picture's k."""
        return 2 * self.form.tokens, self.form.width

    def key(self, caption: str, triples: Sequence[str]) -> str:
        """SHA-256 of encoder, prefix, caption and triples: what ``rows`` takes."""
        _, *summed = knowledge_texts(caption, triples, prefix=self.prefix)
        return content_hash(self.encoder_name, self.prefix, caption, summed)

    def ensure(self, knowledge: Iterable[Knowledge], *, patience: float = 0.0) -> None:
        """Encodes what is missing of these (caption, triples), and what is damaged.

        An interrupt loses at most the last ``COMMIT_SECONDS``; the next call goes on from there.

        Args:
            patience: seconds to wait for another process that is writing.

        Raises:
            KcdpError: another process is still writing, the disk is full, or the encoder gives what cannot be stored.
        """
        wanted = {}
        for caption, triples in knowledge:
            wanted[self.key(caption, triples)] = knowledge_texts(caption, triples, prefix=self.prefix)
        if self._complete(wanted):
            return
        with writer_lock(self.folder / LOCK, patience):
            self._index = self._load()  # another process may have added to it
            self._forget_damaged(wanted)
            self._grow({key: texts for key, texts in wanted.items() if key not in self._index.rows})

    def rows(self, keys: Sequence[str]) -> np.ndarray:
        """k of pictures: float32 [N, 2T, W]; rows 0..T-1 the caption, T..2T-1 the sum of the triples.

        Raises:
            KcdpError: a key that ``ensure`` was not asked for, or damaged data.
        """
        tokens, width = self.form.tokens, self.form.width
        out = np.empty((len(keys), 2 * tokens, width), dtype=np.float32)
        for i, key in enumerate(keys):
            row = self._index.rows.get(key)
            if row is None:
                raise KcdpError(f"{self.folder} holds no knowledge of the key {key!r}", fix="call ensure with it first")
            caption, *summed = (self._block(position) for position in row)
            out[i, :tokens] = caption
            np.sum(summed, axis=0, dtype=np.float32, out=out[i, tokens:])
        return out

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None, "_encoder": None}

    def _load(self) -> CacheIndex:
        """The index, without what the data file does not hold."""
        self._map = None
        try:
            index = load_index(self.folder / INDEX, self.form)
        except ValueError as error:
            self._say(f"{error}; all of it has to be encoded again")
            return CacheIndex(self.form)
        self._check_form(index.form)
        data = self.folder / DATA
        whole = (os.path.getsize(data) if os.path.isfile(data) else 0) // self.form.bytes
        total = len(index.blocks)
        if whole < total:
            self._say(f"{data} is cut short; {total - whole} of {total} texts have to be encoded again")
            index.drop(range(whole, total))
        return index

    def _check_form(self, found: BlockForm) -> None:
        fix = "name another folder, or delete this one"
        if found.width != self.form.width:
            raise KcdpError(
                f"{self.folder} holds knowledge of the wrong width: {found.width}",
                f"{self.form.width}, the width of {self.encoder_name}",
                fix,
            )
        if found.tokens != self.form.tokens:
            raise KcdpError(
                f"{self.folder} holds knowledge of {found.tokens} tokens a text", f"{self.form.tokens}", fix
            )
        if found.dtype != self.form.dtype:
            raise KcdpError(f"{self.folder} holds knowledge in {found.dtype}", self.form.dtype, fix)

    def _complete(self, wanted: Iterable[str]) -> bool:
        rows = [self._index.rows.get(key) for key in wanted]
        return all(row is not None and all(map(self._intact, row)) for row in rows)

    def _forget_damaged(self, wanted: Iterable[str]) -> None:
        positions = {position for key in wanted for position in self._index.rows.get(key, ())}
        damaged = [position for position in sorted(positions) if not self._intact(position)]
        if damaged:
            total = len(self._index.blocks)
            self._say(f"{self.folder / DATA} is damaged; {len(damaged)} of {total} texts have to be encoded again")
            self._index.drop(damaged)

    def _intact(self, position: int) -> bool:
        """Whether a block is what was written; each is read for it once."""
        crc = self._index.crc(position)
        if self._checked.get(position) != crc:
            if not self._index.intact(position, self._mapped()[position]):
                return False
            self._checked[position] = crc
        return True

    def _block(self, position: int) -> np.ndarray:
        if not self._intact(position):
            raise KcdpError(f"{self.folder / DATA} is damaged", fix="run the command again: it mends the cache")
        block: np.ndarray = self._mapped()[position]
        return block

    def _mapped(self) -> np.ndarray:
        if self._map is None:
            shape = (len(self._index.blocks), self.form.tokens, self.form.width)
            self._map = np.memmap(self.folder / DATA, self.form.numpy_dtype, "r", shape=shape)
        return self._map

    def _grow(self, wanted: dict[str, tuple[str, ...]]) -> None:
        """Encode the texts that have no block, in the order of the rows, and commit rows as they become complete."""
        if self._encoder is None:
            raise KcdpError(f"this copy of {self.folder} only reads", fix="call ensure before the loader starts")
        hashes = {text: content_hash(self.encoder_name, text) for texts in wanted.values() for text in texts}
        missing = [text for text, name in hashes.items() if name not in self._index.texts]
        pending = deque((key, [hashes[text] for text in texts]) for key, texts in wanted.items())
        size = self._encoder.batch_size
        silent = True if not (self._progress and missing) else None  # None: unless there is no terminal
        with self._data() as handle, tqdm(total=len(missing), desc="knowledge", unit="text", disable=silent) as bar:
            committed = time.monotonic()
            try:
                for start in range(0, len(missing), size):
                    texts = missing[start : start + size]
                    for text, states in zip(texts, self._encode(texts), strict=True):
                        self._append(handle, hashes[text], states)
                    bar.update(len(texts))
                    if time.monotonic() - committed > COMMIT_SECONDS:
                        self._commit(handle, pending)
                        committed = time.monotonic()
            finally:
                self._commit(handle, pending)

    def _encode(self, texts: list[str]) -> np.ndarray:
        assert self._encoder is not None
        states = self._encoder.encode(texts).numpy()
        expected = (len(texts), self.form.tokens, self.form.width)
        if states.shape != expected:
            raise KcdpError(f"{self.encoder_name} gives knowledge of the shape {states.shape}", f"{expected}")
        with np.errstate(over="ignore"):
            stored: np.ndarray = states.astype(self.form.numpy_dtype)
        for text, block in zip(texts, stored, strict=True):
            if not np.isfinite(block).all():
                raise KcdpError(
                    f"{self.encoder_name} gives states of {text!r} that {self.form.dtype} cannot hold",
                    "finite numbers",
                    "check its weights, or store float32",
                )
        return stored

    def _append(self, handle: BinaryIO, name: str, block: np.ndarray) -> None:
        view = memoryview(block.tobytes())
        crc = zlib.crc32(view)
        with self._writing():
            handle.seek(self._index.place() * self.form.bytes)
            while view:
                view = view[handle.write(view) :]
        self._index.add(name, crc)

    def _commit(self, handle: BinaryIO, pending: deque[tuple[str, list[str]]]) -> None:
        """First the data reaches the disk, then the index that promises it."""
        self._map, texts = None, self._index.texts
        while pending and all(name in texts for name in pending[0][1]):
            key, names = pending.popleft()
            self._index.rows[key] = [texts[name] for name in names]
        with self._writing():
            os.fsync(handle.fileno())
        self._index.save(self.folder / INDEX)

    @contextmanager
    def _data(self) -> Iterator[BinaryIO]:
        """The data file, open for writing; a new one where nothing of the old is kept, which others may still read."""
        path = self.folder / DATA
        with self._writing():
            if not self._index.blocks:
                path.unlink(missing_ok=True)
            handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        with handle:
            yield handle

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KcdpError(
                f"writing {self.folder / DATA} failed ({error.strerror or error})",
                fix="free some space or choose another place",
            ) from error

    def _say(self, message: str) -> None:
        if message not in self._said:
            print(f"warning: {message}", file=sys.stderr)
        self._said.add(message)
