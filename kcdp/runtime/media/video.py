"""WebM stickers: VP9 or VP8 with an alpha channel, decoded by libvpx through PyAV.

FFmpeg's own VP9 decoder drops the alpha channel, libvpx's keeps it. Only called in a process of its own.
"""

from __future__ import annotations

import io
from itertools import pairwise
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from kcdp.errors import KcdpError, require
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.media.limits import Limits
from kcdp.runtime.media.sampling import Gathered, choose_frames

_DECODERS = {"vp9": "libvpx-vp9", "vp8": "libvpx"}
_SEGMENT = b"\x18\x53\x80\x67"


def library(name: str) -> Any:
    """The module that decodes, or an error that says how to get it."""
    try:
        return require("av", "stickers")
    except KcdpError as error:
        raise KcdpError(f"{name} is a WebM or Matroska video, and {error.received}", fix=error.fix) from None


def read_frames(data: bytes, spec: PreprocessSpec, name: str, limits: Limits) -> tuple[np.ndarray, np.ndarray, int]:
    """As ``kcdp.runtime.media.frames.read_frames``, of a WebM file's bytes. Its sound is left alone."""
    av = library(name)
    if _missing_bytes(data):
        _refuse(name, f"{_missing_bytes(data)} bytes are missing")
    try:
        with av.open(io.BytesIO(data), format="matroska") as container:
            if not container.streams.video:
                raise KcdpError(f"{name} is a WebM or Matroska file without pictures", "a WebM sticker")
            stream = container.streams.video[0]
            codec = stream.codec_context.name if stream.codec_context is not None else "unknown to FFmpeg"
            if codec not in _DECODERS:
                raise KcdpError(f"{name} holds video of the kind {codec}", "VP9 or VP8", "convert it first")
            packets = []
            for packet in container.demux(stream):
                if packet.size:
                    packets.append(packet)
                if len(packets) > 2 * limits.frames:
                    break
            return _decoded(av, _DECODERS[codec], packets, spec, name, limits)
    except av.error.FFmpegError as error:
        _refuse(name, error.strerror or type(error).__name__)


def _decoded(
    av: Any, decoder: str, packets: list[Any], spec: PreprocessSpec, name: str, limits: Limits
) -> tuple[np.ndarray, np.ndarray, int]:
    shown = [packet for packet in packets if decoder != "libvpx" or bytes(packet)[0] & 0x10]  # VP8 has hidden frames
    if not shown:
        _refuse(name, "it has no frames")
    if len(shown) > limits.frames:
        raise KcdpError(f"{name} has more than {limits.frames} frames", f"at most {limits.frames}", "make it shorter")
    shares = choose_frames(_durations(shown, name), limits.sampled)
    context = av.CodecContext.create(decoder, "r")
    context.thread_count = 1
    gathered, index = Gathered(), 0
    for packet in [*packets, None]:
        for frame in context.decode(packet):
            pixels = frame.width * frame.height
            if pixels > limits.pixels or pixels * len(shown) > limits.animation_pixels:
                raise KcdpError(
                    f"{name} has {len(shown)} frames of {frame.width} x {frame.height} pixels",
                    f"at most {limits.animation_pixels / 1e6:g} megapixels", "make it smaller or shorter first",
                )  # fmt: skip
            if index in shares:
                gathered.add(spec.apply(Image.fromarray(frame.to_ndarray(format="rgba"))), shares[index])
            index += 1
    if index != len(shown):
        _refuse(name, f"{index} of {len(shown)} frames can be decoded")
    return *gathered.arrays(), index


def _durations(packets: list[Any], name: str) -> list[float]:
    """From each frame to the next; the last as long as it says, or as the others on average."""
    times = [packet.pts for packet in packets]
    if None in times:
        _refuse(name, "a frame has no time")
    steps = [float(after - before) for before, after in pairwise(times)]
    if any(step <= 0 for step in steps):
        _refuse(name, "its frames are out of order")
    last = float(packets[-1].duration or 0)
    return [*steps, last if last > 0 else sum(steps) / len(steps) if steps else 1.0]


def _missing_bytes(data: bytes) -> int:
    """How far the file ends before its Segment does, by the Segment's own length (RFC 8794, RFC 9559); 0 if unsaid."""
    start = data.find(_SEGMENT, 0, 4096) + len(_SEGMENT)
    if start < len(_SEGMENT) or start >= len(data):
        return 0
    width = 9 - data[start].bit_length() if data[start] else 9
    length = int.from_bytes(data[start : start + width], "big") & ((1 << 7 * width) - 1)
    if width > 8 or length == (1 << 7 * width) - 1:  # a stream whose length was not known when it was written
        return 0
    return max(0, start + width + length - len(data))


def _refuse(name: str, reason: str) -> NoReturn:
    raise KcdpError(f"{name} is truncated or damaged ({reason})", "a WebM sticker", "copy it again")
