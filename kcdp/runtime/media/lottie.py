"""Telegram's .tgs stickers: gzip around a Lottie animation, drawn by rlottie.

Only called in a process of its own: rlottie trusts what it is given.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, NoReturn

import numpy as np
from PIL import Image

from kcdp.errors import KcdpError, require
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.media.limits import Limits
from kcdp.runtime.media.sampling import Gathered, choose_frames

_MOST_SIDE, _MOST_RATE, _DEEPEST = 16_384, 240.0, 100
#: A larger animation is drawn smaller: what is drawn has no pixels of its own, and Telegram's stickers are 512 x 512.
_DRAWN_SIDE = 1024


def library(name: str) -> Any:
    """The module that draws, or an error that says how to get it."""
    try:
        return require("rlottie_python", "stickers")
    except KcdpError as error:
        raise KcdpError(f"{name} is gzip data (perhaps a .tgs sticker), and {error.received}", fix=error.fix) from None


def read_frames(data: bytes, spec: PreprocessSpec, name: str, limits: Limits) -> tuple[np.ndarray, np.ndarray, int]:
    """As ``kcdp.runtime.media.frames.read_frames``, of a .tgs file's bytes, drawn at most 1,024 pixels wide or high."""
    animation = _checked(_unpacked(data, name, limits), name, limits)
    scale = min(1.0, _DRAWN_SIDE / max(animation["w"], animation["h"]))
    size = (max(1, round(animation["w"] * scale)), max(1, round(animation["h"] * scale)))
    count = max(1, round(animation["op"] - animation["ip"]))
    shares = choose_frames([1.0] * count, limits.sampled)
    gathered = Gathered()
    with library(name).LottieAnimation.from_data(json.dumps(animation)) as drawing:
        if not drawing.animation_p:
            _refuse(name, "rlottie cannot read it")
        for index, share in shares.items():
            drawn = drawing.lottie_animation_render(index, width=size[0], height=size[1])
            premultiplied = Image.frombytes("RGBa", size, drawn, "raw", "BGRa")
            gathered.add(spec.apply(premultiplied), share)
    return *gathered.arrays(), count


def _unpacked(data: bytes, name: str, limits: Limits) -> bytes:
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(data, limits.vector_bytes + 1)
    except zlib.error as error:
        _refuse(name, str(error))
    if len(text) > limits.vector_bytes:
        raise KcdpError(
            f"{name} unpacks to more than {limits.vector_bytes:,} bytes", "a .tgs sticker", "make it simpler first"
        )
    if not unpacker.eof or unpacker.unused_data:
        _refuse(name, "the gzip data " + ("goes on behind its end" if unpacker.eof else "ends too early"))
    return text


def _checked(text: bytes, name: str, limits: Limits) -> dict[str, Any]:
    """The animation, once its size, length and depth are plausible and it refers to no other file."""
    try:
        animation = json.loads(text.decode("utf-8"), parse_constant=lambda word: _refuse(name, f"it holds {word}"))
    except (ValueError, RecursionError) as error:
        raise KcdpError(f"{name} is gzip data, but no .tgs sticker ({error})", "a Lottie animation in it") from None
    if not isinstance(animation, dict) or not isinstance(animation.get("layers"), list):
        raise KcdpError(f"{name} is gzip data, but no .tgs sticker", "a Lottie animation in it")
    for key, low, high in (("w", 1, _MOST_SIDE), ("h", 1, _MOST_SIDE), ("fr", 0.1, _MOST_RATE),
                           ("ip", -1e6, 1e6), ("op", -1e6, 1e6)):  # fmt: skip
        value = animation.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            _refuse(name, f"its {key} is {value if isinstance(value, (int, float)) else type(value).__name__}")
    frames = animation["op"] - animation["ip"]
    if not 0 < frames <= limits.frames:
        raise KcdpError(f"{name} has {frames:g} frames", f"1 to {limits.frames}", "make it shorter first")
    _check_tree(animation, name)
    return animation


def _check_tree(animation: dict[str, Any], name: str) -> None:
    """Neither nested beyond what rlottie's recursion bears, nor with pictures that it would open by their path."""
    level: list[Any] = [animation]
    for _ in range(_DEEPEST):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            break
    else:
        _refuse(name, f"it is nested more than {_DEEPEST} times")
    assets = animation.get("assets", [])
    for asset in assets if isinstance(assets, list) else []:
        picture = asset.get("p") if isinstance(asset, dict) else None
        if picture is not None and not str(picture).startswith("data:"):
            _refuse(name, "it refers to a picture outside itself")


def _refuse(name: str, reason: str) -> NoReturn:
    raise KcdpError(f"{name} is truncated or damaged ({reason})", "a .tgs sticker", "copy it again")
