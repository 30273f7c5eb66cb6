"""The one way a picture becomes the array a model takes: training, calibration and device share it.

Only numpy and Pillow. What the device sees is therefore byte for byte what evaluation saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from kcdp.errors import KcdpError, nearest

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FITS = ("pad", "squash")
#: Least and largest side, in pixels.
SIZES = (8, 4096)


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_range(value: Any) -> bool:
    if not isinstance(value, tuple) or len(value) != 2:
        return False
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6 for v in value)
    return numbers and value[0] < value[1]


#: (field, what it must be, how to tell)
_FIELD_CHECKS: tuple[tuple[str, str, Callable[[Any], bool]], ...] = (
    ("size", f"a whole number from {SIZES[0]} to {SIZES[1]}", lambda v: _whole(v, *SIZES)),
    ("resize_filter", f"one of {', '.join(_FILTERS)}", lambda v: isinstance(v, str) and v in _FILTERS),
    ("fit", f"one of {', '.join(_FITS)}", lambda v: isinstance(v, str) and v in _FITS),
    ("background", "three whole numbers 0..255 (red, green, blue)",
     lambda v: isinstance(v, tuple) and len(v) == 3 and all(_whole(c, 0, 255) for c in v)),
    ("value_range", "two finite numbers, the lower one first", _is_range),
)  # fmt: skip


@dataclass(frozen=True)
class PreprocessSpec:
    """How pictures are brought to the model's size. Travels inside the bundle.

    Attributes:
        size: side of the square the model takes, in pixels.
        resize_filter: "nearest", "bilinear", "bicubic" or "lanczos".
        fit: "pad" keeps the proportions and fills up to a square; "squash" stretches.
        background: RGB, 0..255, under transparency and in the padding.
        value_range: the range that 0..255 is mapped to *inside* the graph, (-1, 1) for the VAE.
    """

    size: int
    resize_filter: str = "bicubic"
    fit: str = "pad"
    background: tuple[int, int, int] = (255, 255, 255)
    value_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        for name in ("background", "value_range"):
            value = getattr(self, name)
            object.__setattr__(self, name, tuple(value) if isinstance(value, (list, tuple)) else value)
        for name, expected, right in _FIELD_CHECKS:
            value = getattr(self, name)
            if not right(value):
                words = _FILTERS if name == "resize_filter" else _FITS if name == "fit" else ()
                raise KcdpError(f"preprocess.{name} is {value!r}{nearest(str(value), words)}", expected)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` is the inverse."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PreprocessSpec:
        """Raises KcdpError on a field this version does not know."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or set(data) - known or "size" not in data:
            raise KcdpError(
                f"preprocess spec is {sorted(data) if isinstance(data, dict) else data!r}",
                f"size and any of {sorted(known)}",
                "update kcdp, or export the bundle again",
            )
        return cls(**data)

    def apply(self, image: Image.Image) -> np.ndarray:
        """One picture for the graph.

        Args:
            image: any Pillow image, any mode; of an animation, the current frame.

        Returns:
            uint8 [size, size, 3], height-width-channel, RGB, 0..255.
        """
        rgb = to_rgb(image, self.background)
        target = (self.size, self.size)
        if self.fit == "squash":
            rgb = rgb.resize(target, _FILTERS[self.resize_filter])
        else:
            scale = self.size / max(rgb.size)
            width, height = (max(1, round(side * scale)) for side in rgb.size)
            rgb = rgb.resize((width, height), _FILTERS[self.resize_filter])
            if (width, height) != target:
                square = Image.new("RGB", target, self.background)
                square.paste(rgb, ((self.size - width) // 2, (self.size - height) // 2))
                rgb = square
        return np.array(rgb, dtype=np.uint8)

    def apply_batch(self, images: Sequence[Image.Image]) -> np.ndarray:
        """uint8 [N, size, size, 3]; see ``apply``. N may be 0."""
        if not images:
            return np.empty((0, self.size, self.size, 3), np.uint8)
        return np.stack([self.apply(image) for image in images])


def to_rgb(image: Image.Image, background: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Any Pillow image as upright RGB, transparency composited on the background at full size.

    EXIF rotation is honoured first. 16-bit and float greys are brought to 8 bits (16-bit by their full
    range, float by clipping to 0..255). CMYK, LAB, YCbCr and HSV go through Pillow's own conversion.

    Returns:
        RGB, 8 bits a channel, in the picture's own size (sides swapped where EXIF says so).
    """
    image.load()
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would be copied as it is
        image = ImageOps.exif_transpose(image)
    transparency = image.info.get("transparency")
    if image.mode == "1" and transparency == 1:  # white, in Pillow before 12.1, which stores it as 255
        image = image.copy()
        image.info["transparency"] = 255
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        # Pillow opens 16-bit PNG as I;16 and some 16-bit TIFF as I; both hold 0..65535.
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = (wide >> 8).astype(np.uint8)
        if isinstance(transparency, int):  # PNG's tRNS: this grey value is transparent
            grey = np.stack([grey, np.where(wide == transparency, 0, 255).astype(np.uint8)], axis=2)
        image = Image.fromarray(grey)
    elif image.mode == "F":
        image = Image.fromarray(np.clip(np.nan_to_num(np.asarray(image)), 0, 255).astype(np.uint8))
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not has_alpha:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts these one step at a time
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*background, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")


def picture_hash(image: Image.Image) -> str:
    """Names a picture by what it shows: 32 lower-case hexadecimal digits.

    The first half of the SHA-256 over width, height (each 8 bytes, big-endian) and the RGB bytes of ``to_rgb``:
    the same for a picture in another lossless container, in another mode of the same colours, or turned by EXIF.
    """
    rgb = to_rgb(image)
    digest = hashlib.sha256(b"".join(side.to_bytes(8, "big") for side in rgb.size))
    digest.update(rgb.tobytes())
    return digest.hexdigest()[:32]
