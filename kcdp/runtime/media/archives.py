"""Zip archives as collections of stickers. Nothing is unpacked to disk: an entry is read when its turn comes."""

from __future__ import annotations

import io
import os
import posixpath
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import IO

from kcdp.decoding import opened_file
from kcdp.errors import KcdpError
from kcdp.runtime.items import Item
from kcdp.runtime.media.limits import LIMITS, Limits
from kcdp.runtime.media.packs import MOST_BYTES, PackCaptions, descriptions

#: Endings of archives, without regard to case; WhatsApp packs are handed round under the latter two.
ARCHIVE_EXTENSIONS = frozenset({".zip", ".wastickers", ".stickerpack"})
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_END, _END_BYTES, _LONGEST_COMMENT = b"PK\x05\x06", 22, 1 << 16
#: Bytes of the table of contents for each entry that is allowed: names are short.
_ENTRY_BYTES = 256
#: What zipfile unpacks piece by piece. Its bzip2 and LZMA readers take whatever comes out at once.
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_SMALL = 1 << 20


def is_archive(path: str) -> bool:
    """Whether a file begins as zip archives do. What cannot be read is none."""
    try:
        with opened_file(path, path) as stream:
            return stream.read(4) in _MAGIC
    except (KcdpError, OSError):
        return False


def archive_items(
    path: str, *, wanted: Callable[[str], bool], limits: Limits = LIMITS, prefix: str = ""
) -> Iterator[Item]:
    """The stickers in a zip archive, sorted by name, each with what the pack's description says about it.

    Args:
        path: of the archive.
        wanted: whether an entry is a sticker; called with ``prefix`` and the entry's path, after ``/``.
        limits: what is refused.
        prefix: what ``wanted`` and nested archives put before an entry's path; by default nothing.

    Yields:
        Items named ``pack.zip/dir/wave.png``. Their sources may be read by any number of threads. What is wrong
        with the archive or with an entry (damaged, encrypted, a name that leads outside, far larger unpacked than
        packed, an archive inside) is an item with an error, and so is a description that cannot be read.
    """
    try:
        with opened_file(path, path) as first:
            stream = os.fdopen(os.dup(first.fileno()), "rb")
    except (KcdpError, OSError) as error:
        yield Item(path, error=error if isinstance(error, KcdpError) else KcdpError(f"{path} cannot be read: {error}"))
        return
    yield from _items(stream, path, prefix, wanted, limits)


def _items(stream: IO[bytes], name: str, prefix: str, wanted: Callable[[str], bool], limits: Limits) -> Iterator[Item]:
    try:
        archive = _opened(stream, name, limits)
        entries = sorted(
            (info for info in archive.infolist() if not info.is_dir() and not _hidden(info.filename)),
            key=lambda info: info.filename,
        )
    except KcdpError as error:
        yield Item(name, error=error)
        return
    captions = PackCaptions()
    small = replace(limits, file_bytes=min(limits.file_bytes, MOST_BYTES))
    for path in descriptions(info.filename for info in entries):
        try:
            full = f"{name}/{path}"
            captions.describe(path, _content(archive, archive.getinfo(path), full, small), full)
        except KcdpError as error:
            yield Item(full, error=error)
    for info in entries:
        inside, full = f"{prefix}/{info.filename}" if prefix else info.filename, f"{name}/{info.filename}"
        if _leads_outside(info.filename):
            outside = KcdpError(f"{full} leads outside of the archive", "a relative path without ..", "pack it again")
            yield Item(full, error=outside)
        elif posixpath.splitext(info.filename)[1].lower() in ARCHIVE_EXTENSIONS:
            yield from _nested(_content(archive, info, full, limits), full, inside, wanted, limits)
        elif wanted(inside):
            yield Item(full, _content(archive, info, full, limits), captions.of(info.filename))


def _nested(
    content: Callable[[], bytes], name: str, prefix: str, wanted: Callable[[str], bool], limits: Limits
) -> Iterator[Item]:
    try:
        if limits.archive_nesting < 1:
            raise KcdpError(f"{name} is an archive inside an archive", "pictures in it", "unpack the outer one first")
        stream = io.BytesIO(content())
    except KcdpError as error:
        yield Item(name, error=error)
        return
    yield from _items(stream, name, prefix, wanted, replace(limits, archive_nesting=limits.archive_nesting - 1))


def _opened(stream: IO[bytes], name: str, limits: Limits) -> zipfile.ZipFile:
    """The archive, its table of contents read, once that is known to be of a bearable size."""
    if _table_bytes(stream) > limits.archive_entries * _ENTRY_BYTES:
        raise _too_many(name, limits)
    try:
        archive = zipfile.ZipFile(stream)
        infos = archive.infolist()
    except MemoryError:
        raise _too_many(name, limits) from None
    except Exception as error:  # a damaged table of contents makes zipfile raise nearly anything
        raise KcdpError(f"{name} is truncated or damaged ({error})", "a whole zip archive", "copy it again") from None
    if len(infos) > limits.archive_entries:
        raise _too_many(name, limits)
    total = sum(info.file_size for info in infos)
    if total > limits.archive_bytes:
        raise KcdpError(
            f"{name} unpacks to {total:,} bytes", f"at most {limits.archive_bytes:,}", "split it, or unpack it first"
        )
    return archive


def _too_many(name: str, limits: Limits) -> KcdpError:
    return KcdpError(f"{name} has too many entries", f"at most {limits.archive_entries:,}", "split it")


def _table_bytes(stream: IO[bytes]) -> int:
    """How long the table of contents is, by the record at the archive's end; 0 where there is none, which zipfile says.

    An archive of the 64-bit kind, where the record says 0xffffffff, is too long already.
    """
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - _LONGEST_COMMENT - _END_BYTES))
    tail = stream.read()
    place = tail.rfind(_END)
    stream.seek(0)
    if place < 0 or place + _END_BYTES > len(tail):
        return 0
    return int(struct.unpack_from("<I", tail, place + 12)[0])


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, limits: Limits) -> Callable[[], bytes]:
    def read() -> bytes:
        if info.flag_bits & 1:
            raise KcdpError(f"{name} is encrypted", "an archive without a password", "unpack it first")
        if info.compress_type not in _METHODS:
            raise KcdpError(f"{name} is packed by method {info.compress_type}", "stored or deflated", "pack it again")
        if info.file_size > limits.file_bytes:
            raise KcdpError(
                f"{name} has {info.file_size:,} bytes", f"at most {limits.file_bytes:,}", "make it smaller first"
            )
        if info.file_size > max(_SMALL, limits.archive_ratio * info.compress_size):
            raise KcdpError(
                f"{name} unpacks to more than {limits.archive_ratio} times its size", "a picture", "leave it out"
            )
        try:
            with archive.open(info) as entry:  # any number of threads: zipfile locks the file between them
                return entry.read(info.file_size + 1)
        except MemoryError:
            raise KcdpError(f"{name} needs more memory than there is", fix="make it smaller first") from None
        except Exception as error:  # a wrong checksum, cut off, a header that is not there, and nearly anything else
            raise KcdpError(
                f"{name} is truncated or damaged ({error or type(error).__name__})", "a whole file", "pack it again"
            ) from None

    return read


def _leads_outside(path: str) -> bool:
    parts = path.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or re.match("[A-Za-z]:", path) is not None


def _hidden(path: str) -> bool:
    """Files that archiving programs add: ``__MACOSX/``, ``.DS_Store``."""
    parts = path.replace("\\", "/").split("/")
    return any(part == "__MACOSX" or (part.startswith(".") and part not in (".", "..")) for part in parts)
