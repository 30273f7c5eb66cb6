"""The latents of one view of a dataset's pictures on disk: a folder that is whole or not there.

    latents.npy   float32 [N, C, h, w], the view that is learned from (of a target, the weak one)
    strong.npy    the same of the strong view, where there is one
    places.npy    int64 [N], the place of the picture that each row is of: another one where a picture cannot be read
    about.json    what decides them

While it grows it is called ``.NAME.partial``, rows are appended, and those that ``places.npy`` holds are on the disk.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from kcdp.errors import KcdpError
from kcdp.files import make_folder, write_json

#: Seconds of encoding that a killed process may lose.
COMMIT_SECONDS = 30.0
WEAK, STRONG, PLACES, ABOUT = "latents.npy", "strong.npy", "places.npy", "about.json"


@dataclass(frozen=True)
class StoredView:
    """Where one view's latents are, or are going to be.

    Attributes:
        folder: its name tells all that decides the latents.
        count: N, the pictures of the dataset.
        shape: (C, h, w) of a picture's latents.
        strong: whether there is a strong view too.
        about: for whoever looks into the folder; JSON.
    """

    folder: Path
    count: int
    shape: tuple[int, int, int]
    strong: bool
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def partial(self) -> Path:
        """The folder's name while it grows."""
        return self.folder.with_name(f".{self.folder.name}.partial")

    @property
    def lock(self) -> Path:
        """Held by whoever writes."""
        return self.folder.with_name(f".{self.folder.name}.lock")

    @property
    def files(self) -> dict[str, tuple[tuple[int, ...], type]]:
        """Name -> shape and type, ``places.npy`` last."""
        names = (WEAK, STRONG) if self.strong else (WEAK,)
        latents: dict[str, tuple[tuple[int, ...], type]] = dict.fromkeys(names, ((self.count, *self.shape), np.float32))
        return latents | {PLACES: ((self.count,), np.int64)}

    def missing_bytes(self) -> int:
        """What is still to be written."""
        if self.complete():
            return 0
        need = 0
        for name, (shape, kind) in self.files.items():
            path = self.partial / name
            there = path.stat().st_size if path.is_file() else 0
            need += max(0, _bytes(shape, kind, self.count) - there)
        return need

    def complete(self) -> bool:
        """Whether all of it is there, in the right shapes."""
        if not self.folder.is_dir():
            return False
        try:
            arrays = self.open()
        except (OSError, ValueError):
            return False
        return all((array.shape, array.dtype) == self.files[name] for name, array in arrays.items())

    def open(self) -> dict[str, np.ndarray]:
        """Name -> memory-mapped array. OSError or ValueError: it is not there, or damaged."""
        return {name: np.load(self.folder / name, mmap_mode="r") for name in self.files}


class ViewWriter:
    """Appends to a view's folder; goes on where an earlier one was stopped. Hold ``view.lock`` meanwhile.

    Attributes:
        rows: how many are there.

    Raises:
        KcdpError: it cannot be written: the disk is full, say.
    """

    def __init__(self, view: StoredView) -> None:
        self.view = view
        self._pending: list[np.ndarray] = []
        self._handles: dict[str, BinaryIO] = {}
        with self._writing():
            make_folder(view.partial)
            write_json(view.partial / ABOUT, dict(view.about))
            found = {name: self._open(name) for name in view.files}
            self.rows = min(found.values())
            for name in view.files:
                self._handles[name].truncate(_bytes(*view.files[name], self.rows))
                self._handles[name].seek(0, os.SEEK_END)
        self._committed = time.monotonic()

    def __enter__(self) -> ViewWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._handles and self._pending:
                self._commit()
        finally:
            self._close()

    def append(self, places: np.ndarray, *latents: np.ndarray) -> None:
        """The next rows.

        Args:
            places: int64 [n], see ``kcdp.data.loader.Item.place``.
            latents: float32 [n, C, h, w], the weak view's and, where there is one, the strong view's.
        """
        names = list(self.view.files)
        for name, array in zip(names[:-1], latents, strict=True):
            if array.shape != (len(places), *self.view.shape):
                raise ValueError(f"latents of the shape {array.shape}; expected {(len(places), *self.view.shape)}")
            self._write(name, array.astype(np.float32, copy=False))
        self._pending.append(places.astype(np.int64, copy=False))
        self.rows += len(places)
        if time.monotonic() - self._committed > COMMIT_SECONDS:
            self._commit()

    def finish(self) -> None:
        """All rows are there: the folder gets its name."""
        if self.rows != self.view.count:
            raise ValueError(f"{self.rows} rows; expected {self.view.count}")
        self._commit()
        self._close()
        with self._writing():
            shutil.rmtree(self.view.folder, ignore_errors=True)  # a damaged one
            self.view.partial.replace(self.view.folder)

    def _commit(self) -> None:
        """First the latents reach the disk, then the places that promise them."""
        with self._writing():
            for name in list(self.view.files)[:-1]:
                os.fsync(self._handles[name].fileno())
            for places in self._pending:
                self._write(PLACES, places)
            os.fsync(self._handles[PLACES].fileno())
        self._pending, self._committed = [], time.monotonic()

    def _open(self, name: str) -> int:
        """Opens a file, begins it where it is none of this form, and tells how many whole rows it has."""
        shape, kind = self.view.files[name]
        path, header = self.view.partial / name, _header(shape, kind)
        handle = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        self._handles[name] = handle
        if handle.read(len(header)) != header:
            handle.truncate(0)
            handle.seek(0)
            self._write(name, np.frombuffer(header, np.uint8))
        row = _bytes(shape, kind, 1) - len(header)
        return min((os.fstat(handle.fileno()).st_size - len(header)) // row, self.view.count)

    def _write(self, name: str, array: np.ndarray) -> None:
        rest = memoryview(array.tobytes())
        with self._writing():
            while rest:
                rest = rest[self._handles[name].write(rest) :]

    def _close(self) -> None:
        for handle in self._handles.values():
            handle.close()
        self._handles = {}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise KcdpError(
                f"writing {self.view.partial} failed ({error.strerror or error})",
                fix="free some space, or choose another place with training.latents",
            ) from error


class CachedLatents:
    """Latents of a dataset's pictures, view after view in turn: ``kcdp.data.loader.LatentsOf``.

    A copy sent to another process opens the files anew.

    Args:
        views: complete ones, in the order of their use.
    """

    def __init__(self, views: Sequence[StoredView]) -> None:
        self.stored = list(views)
        self._open: dict[int, dict[str, np.ndarray]] = {}

    def views(self, turn: int, wanted: int) -> tuple[int, np.ndarray, np.ndarray | None]:
        """See ``LatentsOf.views``.

        Raises:
            KcdpError: the files have gone.
        """
        arrays = self._arrays(turn % len(self.stored))
        strong = np.array(arrays[STRONG][wanted]) if STRONG in arrays else None
        return int(arrays[PLACES][wanted]), np.array(arrays[WEAK][wanted]), strong

    def _arrays(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._open:
            try:
                self._open[number] = self.stored[number].open()
            except (OSError, ValueError) as error:
                raise KcdpError(
                    f"{self.stored[number].folder} cannot be read ({error})", "the latents that this run made or found",
                    "go on with kcdp train --resume RUN: it makes them again",
                ) from None  # fmt: skip
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}


def _bytes(shape: tuple[int, ...], kind: type, rows: int) -> int:
    """Size of a file with so many rows."""
    return len(_header(shape, kind)) + rows * math.prod(shape[1:]) * np.dtype(kind).itemsize


def _header(shape: tuple[int, ...], kind: type) -> bytes:
    """What stands before the numbers in a .npy file."""
    buffer = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, described)
    return buffer.getvalue()
