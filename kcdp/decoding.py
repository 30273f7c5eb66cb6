"""From a file, bytes, a Pillow image or an array to one whole picture, or one line that says why not.

A picture's format is told by its first bytes, never by its name. Only the formats listed in ``FORMATS`` reach a
decoder, those of ``ADDED_FORMATS`` where their reader is installed; the size is checked from the header before any
pixel is decoded, and a truncated file is an error whatever ``PIL.ImageFile.LOAD_TRUNCATED_IMAGES`` says.
"""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import IO, Any, TypeAlias, cast

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from kcdp.errors import KcdpError, require

#: What ``decode`` takes.
Source: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | np.ndarray"

#: Most pixels a picture may have, by default: 64 megapixels, 256 MB once decoded with transparency.
MAX_PIXELS = 64_000_000

_BMP_HEADERS = frozenset(bytes([size, 0, 0, 0]) for size in (12, 40, 52, 56, 64, 108, 124))

#: name -> (does a file beginning so have this format?, Pillow's reader)
FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[..., ImageFile.ImageFile]]] = {
    "PNG": (lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImagePlugin.PngImageFile),
    "JPEG": (lambda head: head.startswith(b"\xff\xd8\xff"), JpegImagePlugin.JpegImageFile),
    "WebP": (lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP", WebPImagePlugin.WebPImageFile),
    "GIF": (lambda head: head[:6] in (b"GIF87a", b"GIF89a"), GifImagePlugin.GifImageFile),
    "BMP": (lambda head: head[:2] == b"BM" and head[14:18] in _BMP_HEADERS, BmpImagePlugin.BmpImageFile),
}
_HEAD_BYTES = 256


def _brands(head: bytes) -> tuple[bytes, ...]:
    """The brands of an ISO base media file, the major one first; () of any other file (ISO/IEC 14496-12, 4.3)."""
    if head[4:8] != b"ftyp":
        return ()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return (head[8:12], *(head[start : start + 4] for start in range(16, end - 3, 4)))


def _is_avif(head: bytes) -> bool:
    brands = _brands(head)
    return bool(brands) and (brands[0] in _AVIF or (brands[0] in _ANY_CODEC and not _AVIF.isdisjoint(brands)))


def _is_heif(head: bytes) -> bool:
    brands = _brands(head)
    return bool(brands) and not _is_avif(head) and (brands[0] in _HEIF or brands[0] in _ANY_CODEC)


def _avif_reader() -> Callable[..., ImageFile.ImageFile] | None:
    try:
        plugin = import_module("PIL.AvifImagePlugin")
    except ImportError:  # Pillow before 11.3
        return None
    return plugin.AvifImageFile if plugin.SUPPORTED else None


def _heif_reader() -> Callable[..., ImageFile.ImageFile] | None:
    try:
        return cast("Callable[..., ImageFile.ImageFile]", require("pillow_heif", "heif").HeifImageFile)
    except KcdpError:
        return None


_AVIF = frozenset({b"avif", b"avis"})
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_ANY_CODEC = frozenset({b"mif1", b"msf1"})

#: name -> (does a file beginning so have this format?, what gives its reader or None, how to get that reader).
ADDED_FORMATS: dict[str, tuple[Callable[[bytes], bool], Callable[[], Any], str]] = {
    "AVIF": (_is_avif, _avif_reader, 'convert it first, or run: pip install --upgrade "Pillow>=11.3"'),
    "HEIC": (_is_heif, _heif_reader, 'convert it first, or run: pip install "kcdp[heif]"'),
}

#: Known by their first bytes only to name them: (offset, bytes, what it is).
_OTHER_KINDS = (
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (4, b"ftyp", "an MP4 or QuickTime video"),
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska video"),
    (0, b"\x1f\x8b", "gzip data (perhaps a .tgs sticker)"),
    (0, b"\xff\x0a", "a JPEG XL picture"),
    (4, b"JXL ", "a JPEG XL picture"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\0\0\1\0", "an icon file"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML or SVG file"),
    (0, b"<!doctype html", "a web page (perhaps a failed download)"),
    (0, b"<html", "a web page (perhaps a failed download)"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the picture itself"),
)


def decode(source: Source, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """One picture, wholly decoded; of an animation, the first frame.

    Args:
        source: a path; a file's bytes; a Pillow image (of an animation, its current frame); or an array,
            uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]: grey, RGB or RGBA, 0..255.
        name: what error messages call it; a path is its own name.
        max_pixels: width times height may not be more; checked before decoding.

    Returns:
        A Pillow image in the file's own mode, with its ``info`` (transparency, EXIF). It holds no open file.

    Raises:
        KcdpError: missing, a folder, empty, not a picture, another format, too large, truncated or damaged.
    """
    name = name or source_name(source)
    if isinstance(source, Image.Image):
        return _loaded(source, name, max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, name)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _first_frame(io.BytesIO(source), name, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        with opened_file(os.fspath(source), name) as stream:
            return _first_frame(stream, name, max_pixels)
    raise KcdpError(
        f"{name}: received {type(source).__name__}", "a path, a file's bytes, a Pillow image or a uint8 array"
    )


def source_name(source: object, index: int | None = None) -> str:
    """What rows and messages call a source: its path, or ``<bytes 3>`` for what has none."""
    if isinstance(source, (str, os.PathLike)):
        return str(os.fspath(source))
    if isinstance(source, Image.Image):
        if filename := getattr(source, "filename", ""):
            return os.fsdecode(filename)
        kind = "image"
    else:
        kind = "array" if isinstance(source, np.ndarray) else type(source).__name__
    return f"<{kind}>" if index is None else f"<{kind} {index}>"


def picture_format(head: bytes) -> str | None:
    """The key of ``FORMATS`` or ``ADDED_FORMATS`` that a file beginning so has; None: it is no picture known here."""
    accepting = {name: accepts for name, (accepts, _) in FORMATS.items()}
    accepting |= {name: accepts for name, (accepts, _, _) in ADDED_FORMATS.items()}
    return next((name for name, accepts in accepting.items() if accepts(head)), None)


@contextmanager
def opened_file(path: str, name: str) -> Iterator[IO[bytes]]:
    """The file, once it is known to be one: opening a named pipe would wait for ever."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            readable = os.access(path, os.R_OK | os.X_OK)
            raise KcdpError(f"{name} is a folder{'' if readable else ' that cannot be read'}", "a picture file")
        if not stat.S_ISREG(mode):
            raise KcdpError(f"{name} is not a regular file", "a picture file")
        stream = open(path, "rb")
    except FileNotFoundError:
        raise KcdpError(f"{name} does not exist", "a picture file") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise KcdpError(f"{name} cannot be read: {reason}", "a picture file") from None
    with stream:
        yield stream


@contextmanager
def opened_picture(stream: IO[bytes], name: str, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """A picture whose header has been read and whose size has been checked; no pixel is decoded yet.

    Whatever is raised inside by a damaged file becomes one line.

    Raises:
        KcdpError: not a picture, another format, too large, truncated or damaged.
    """
    try:
        head = stream.read(_HEAD_BYTES)
        stream.seek(0)
    except OSError as error:
        raise KcdpError(f"{name} cannot be read: {error.strerror or error}", "a picture file") from None
    reader = _reader(head, name)
    with _whole_pictures_only, _one_line(name), reader(stream) as image:
        check_size(image.size, name, max_pixels)
        yield image


def current_frame(image: ImageFile.ImageFile) -> Image.Image:
    """A plain image of the frame that an opened picture stands at, independent of its stream."""
    image.load()
    return _without_broken_exif(image.copy())


def _first_frame(stream: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    with opened_picture(stream, name, max_pixels) as image:
        return current_frame(image)


def _reader(head: bytes, name: str) -> Callable[..., ImageFile.ImageFile]:
    if not head:
        raise KcdpError(f"{name} is empty (0 bytes)", "a picture file", "copy it again")
    form = picture_format(head)
    if form in FORMATS:
        return FORMATS[form][1]
    if form is not None:
        _, find, fix = ADDED_FORMATS[form]
        reader = find()
        if reader is None:
            raise KcdpError(f"{name} is {'an' if form[0] in 'AEIO' else 'a'} {form} picture", readable_formats(), fix)
        return reader
    raise no_picture(head, name)


def no_picture(head: bytes, name: str, also: Iterable[str] = ()) -> KcdpError:
    """What is said of a file that begins so, where ``picture_format`` knows none.

    Args:
        also: names of formats that the caller reads by itself.
    """
    lower, expected = head.lower(), readable_formats(also)
    for offset, signature, kind in _OTHER_KINDS:
        if lower[offset:].startswith(signature.lower()):
            return KcdpError(f"{name} is {kind}", expected, "convert it first")
    return KcdpError(f"{name} is not a picture (it begins with {head[:8]!r})", expected)


def readable_formats(also: Iterable[str] = ()) -> str:
    """"PNG, JPEG, WebP, GIF, BMP or AVIF": what can be read here, and ``also``, in words."""
    added = [form for form, (_, find, _) in ADDED_FORMATS.items() if find() is not None]
    *names, last = [*FORMATS, *added, *also]
    return f"{', '.join(names)} or {last}"


def _loaded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    if 0 in image.size:
        raise KcdpError(f"{name} has no pixels ({image.width} x {image.height})", "a picture")
    check_size(image.size, name, max_pixels)
    with _whole_pictures_only, _one_line(name):
        image.load()
    return _without_broken_exif(image)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    expected = "uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise KcdpError(f"{name}: received {array.dtype} {list(array.shape)}", expected)
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array))


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raises KcdpError where width times height is more than ``max_pixels``."""
    width, height = size
    if width * height > max_pixels:
        raise KcdpError(
            f"{name} has {width} x {height} pixels ({width * height / 1e6:.1f} megapixels)",
            f"at most {max_pixels / 1e6:g} megapixels",
            "make it smaller first",
        )


def _without_broken_exif(image: Image.Image) -> Image.Image:
    """A picture whose EXIF block cannot be read counts as one without EXIF; Pillow would raise much later.

    It is also written: that is what turning a picture upright does with it.
    """
    try:
        image.getexif().tobytes()
    except Exception:  # Pillow's reader meets bytes from anywhere and raises anything
        image = image.copy()  # the caller's own image stays as it is
        for key in ("exif", "Raw profile type exif"):
            image.info.pop(key, None)
    return image


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    try:
        yield
    except KcdpError:
        raise
    except Exception as error:  # damaged files make Pillow's readers raise nearly anything
        reason = str(error) or type(error).__name__
        raise KcdpError(f"{name} is truncated or damaged ({reason})", "a whole picture", "copy it again") from error


class _WholePicturesOnly:
    """While any thread is inside, Pillow refuses truncated files; then its global flag is put back.

    With the flag set, the missing part of a picture would silently be grey.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = False

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self._inside += 1

    def __exit__(self, *details: Any) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._before


_whole_pictures_only = _WholePicturesOnly()
