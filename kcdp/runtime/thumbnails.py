"""Small pictures of what was tagged, read again for sheets and pages."""

from __future__ import annotations

import base64
import io

from PIL import Image, features

from kcdp.decoding import decode
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec, to_rgb
from kcdp.runtime.items import Readable
from kcdp.runtime.media.frames import read_frames

#: Side of what has no pixels of its own.
DRAWN = 160


def first_picture(source: Readable, name: str) -> Image.Image:
    """The picture on white, as the model sees transparency; of an animation the first frame. RGB.

    Raises:
        KcdpError: it cannot be read (any more).
    """
    data = source() if callable(source) else source
    try:
        return to_rgb(decode(data, name=name))
    except KcdpError:  # vector and video stickers are no pictures to it
        pixels, _, _ = read_frames(data, PreprocessSpec(DRAWN), name=name)
        return Image.fromarray(pixels[0])


def data_uri(picture: Image.Image, side: int) -> tuple[str, tuple[int, int]]:
    """A picture as text that a page can hold, WebP or else JPEG, and its width and height.

    Args:
        side: neither is larger; a smaller picture keeps its size.
    """
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    form = "WEBP" if features.check("webp") else "JPEG"
    buffer = io.BytesIO()
    small.save(buffer, format=form, quality=80)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f"data:image/{form.lower()};base64,{text}", small.size
