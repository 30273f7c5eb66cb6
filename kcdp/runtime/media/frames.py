"""From any sticker to the few small arrays that a model looks at."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
from PIL import Image, ImageFile

from kcdp.decoding import (
    Source,
    check_size,
    current_frame,
    decode,
    no_picture,
    opened_file,
    opened_picture,
    picture_format,
    source_name,
)
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.media.containers import Outline, outline
from kcdp.runtime.media.limits import LIMITS, Limits
from kcdp.runtime.media.sampling import Gathered, as_shown, choose_frames
from kcdp.runtime.media.worker import read_guarded

#: First bytes -> what reads it, in a process of its own: native code that was not written for hostile files.
_GUARDED = {b"\x1f\x8b": "lottie", b"\x1aE\xdf\xa3": "video"}
#: Kinds of them -> the package that has to be installed.
_STICKERS = {"TGS": "rlottie_python", "WebM": "av"}
#: Formats that cost by the byte as well as by the pixel, and how many bytes cost as much as one of AVIF.
_CODED = {"AVIF": 1, "HEIC": 1, "WebP": 5}
_HEAD_BYTES = 256


def read_frames(
    source: Source, spec: PreprocessSpec, *, name: str | None = None, limits: Limits = LIMITS
) -> tuple[np.ndarray, np.ndarray, int]:
    """The frames of one sticker, preprocessed. Any number of threads may do so at once.

    A still picture is read as training reads it, byte for byte. Of an animated GIF, PNG, WebP or AVIF, a .tgs or a
    WebM sticker, up to ``limits.sampled`` frames are kept, each composed on its whole canvas; the whole file is
    decoded for that, so that a damaged one is found out, but only those frames are preprocessed. What kind a file
    is, its content says, never its name. Of a HEIC file with several pictures the primary one counts.

    Args:
        source: a path, a file's bytes, a Pillow image (of an animation, its current frame), or a uint8 array
            [H, W], [H, W, 1], [H, W, 3] or [H, W, 4].
        spec: the model's preprocessing.
        name: what error messages call it; a path is its own name.
        limits: what is refused.

    Returns:
        pixels: uint8 [F, S, S, 3], RGB, in the order of first showing; frames that are equal once preprocessed are
            one.
        weights: float32 [F], sum 1: the share of time that each stands for, as browsers play it; see
            ``kcdp.runtime.media.sampling.choose_frames``.
        frames: how many frames the file has.

    Raises:
        KcdpError: whatever is wrong with the file, in one line; nothing else.
    """
    name = name or source_name(source)
    with _any_failure_in_one_line(name):
        if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
            return _read(_whole_file(source, name, limits), spec, name, limits)
        return _still(spec, decode(source, name=name, max_pixels=limits.pixels))


def stickers_here() -> list[str]:
    """Names of the kinds of stickers that are no pictures and can be read here."""
    return [kind for kind, package in _STICKERS.items() if find_spec(package) is not None]


def _read(data: bytes, spec: PreprocessSpec, name: str, limits: Limits) -> tuple[np.ndarray, np.ndarray, int]:
    for signature, kind in _GUARDED.items():
        if data.startswith(signature):
            return read_guarded(kind, data, spec, name, limits)
    form = picture_format(data[:_HEAD_BYTES])
    if data and form is None:
        raise no_picture(data[:_HEAD_BYTES], name, stickers_here())
    found = outline(data, form, name) if form else None
    if found is not None and (len(found.durations) > 1 or found.first):
        _check_length(len(found.durations), found.size, name, limits)
        with opened_picture(io.BytesIO(data), name, limits.pixels) as image:
            return _animation(image, found, spec, name, limits)
    if form in _CODED:
        _check_bytes(len(data), limits.coded_bytes * _CODED[form], name)
    if form == "AVIF":
        with opened_picture(io.BytesIO(data), name, limits.pixels) as image:
            count = getattr(image, "n_frames", 1)
            if count > 1:  # decoded twice
                _check_bytes(len(data), limits.coded_bytes // 2, name)
                _check_length(count, image.size, name, replace(limits, animation_pixels=limits.animation_pixels // 2))
                return _animation(image, Outline(image.size, _played(image, count)), spec, name, limits)
    return _still(spec, decode(data, name=name, max_pixels=limits.pixels))


def _still(spec: PreprocessSpec, picture: Image.Image) -> tuple[np.ndarray, np.ndarray, int]:
    return spec.apply(picture)[None], np.ones(1, np.float32), 1


def _animation(
    image: ImageFile.ImageFile, found: Outline, spec: PreprocessSpec, name: str, limits: Limits
) -> tuple[np.ndarray, np.ndarray, int]:
    count = len(found.durations)
    if image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) != count + found.first:
        raise KcdpError(f"{name} is truncated or damaged (frames are missing)", "a whole picture", "copy it again")
    shares = choose_frames(found.durations, limits.sampled)
    gathered = Gathered()
    for index in range(count):
        image.seek(index + found.first)
        check_size(image.size, name, limits.pixels)
        if index in shares:
            gathered.add(spec.apply(current_frame(image)), shares[index])
    image.load()  # the last frame, chosen or not: a truncated file is an error
    return *gathered.arrays(), count


def _played(image: ImageFile.ImageFile, count: int) -> tuple[float, ...]:
    """How long each frame shows, in ms, where only decoding tells."""
    durations = []
    for index in range(count):
        image.seek(index)
        image.load()
        durations.append(as_shown(float(image.info.get("duration", 0))))
    return tuple(durations)


def _check_length(frames: int, size: Sequence[int], name: str, limits: Limits) -> None:
    if frames > limits.frames:
        raise KcdpError(f"{name} has {frames} frames", f"at most {limits.frames}", "make it shorter first")
    pixels = frames * size[0] * size[1]
    if pixels > limits.animation_pixels:
        raise KcdpError(
            f"{name} has {frames} frames of {size[0]} x {size[1]} pixels ({pixels / 1e6:.1f} megapixels)",
            f"at most {limits.animation_pixels / 1e6:g} megapixels",
            "make it smaller or shorter first",
        )


def _whole_file(source: str | os.PathLike[str] | bytes | bytearray | memoryview, name: str, limits: Limits) -> bytes:
    if isinstance(source, (str, os.PathLike)):
        with opened_file(os.fspath(source), name) as stream:
            size = os.fstat(stream.fileno()).st_size
            data = stream.read(limits.file_bytes + 1) if size <= limits.file_bytes else b""
            size = max(size, len(data))
    else:
        size = memoryview(source).nbytes
        data = bytes(source) if size <= limits.file_bytes else b""
    _check_bytes(size, limits.file_bytes, name)
    return data


def _check_bytes(size: int, most: int, name: str) -> None:
    if size > most:
        raise KcdpError(f"{name} has {size:,} bytes", f"at most {most:,}", "make it smaller first")


@contextmanager
def _any_failure_in_one_line(name: str) -> Iterator[None]:
    """What comes out of a decoder on hostile bytes can be anything, running out of memory included."""
    try:
        yield
    except KcdpError:
        raise
    except MemoryError:
        raise KcdpError(f"{name} needs more memory than there is", fix="make it smaller first") from None
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise KcdpError(f"{name} cannot be read ({reason})", "a whole picture", "copy it again") from error
