"""The one way a picture becomes the array a model takes: training, calibration and device share it.

Only numpy and Pillow. What the device sees is therefore byte for byte what evaluation saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from kcdp.errors import KcdpError, nearest

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_FITS = ("pad", "squash")


@dataclass(frozen=True)
class PreprocessSpec:
    """How pictures are brought to the model's size. Travels inside the bundle.

    Attributes:
        size: side of the square the model takes, in pixels.
        resize_filter: "nearest", "bilinear", "bicubic" or "lanczos".
        fit: "pad" keeps the proportions and fills up to a square; "squash" stretches (as published).
        background: RGB, 0..255, under transparency and in the padding.
        value_range: the range that 0..255 is mapped to *inside* the graph, (-1, 1) for the VAE.
    """

    size: int
    resize_filter: str = "bicubic"
    fit: str = "pad"
    background: tuple[int, int, int] = (255, 255, 255)
    value_range: tuple[float, float] = (-1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "background", tuple(self.background))
        object.__setattr__(self, "value_range", tuple(float(v) for v in self.value_range))
        if not isinstance(self.size, int) or isinstance(self.size, bool) or not 8 <= self.size <= 4096:
            raise KcdpError(f"preprocess.size is {self.size!r}", "a whole number from 8 to 4096")
        if self.resize_filter not in _FILTERS:
            hint = nearest(str(self.resize_filter), _FILTERS)
            raise KcdpError(
                f"preprocess.resize_filter is {self.resize_filter!r}{hint}", f"one of {', '.join(_FILTERS)}"
            )
        if self.fit not in _FITS:
            raise KcdpError(
                f"preprocess.fit is {self.fit!r}{nearest(str(self.fit), _FITS)}", f"one of {', '.join(_FITS)}"
            )
        if len(self.background) != 3 or not all(isinstance(c, int) and 0 <= c <= 255 for c in self.background):
            raise KcdpError(
                f"preprocess.background is {self.background!r}", "three whole numbers 0..255 (red, green, blue)"
            )
        if len(self.value_range) != 2 or not self.value_range[0] < self.value_range[1]:
            raise KcdpError(f"preprocess.value_range is {self.value_range!r}", "two numbers, the lower one first")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``from_dict`` is the inverse."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> PreprocessSpec:
        """Raises KcdpError on a field this version does not know."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(data) - known)
        if unknown or "size" not in data:
            raise KcdpError(
                f"preprocess spec has the fields {sorted(data)}",
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
        return np.asarray(rgb, dtype=np.uint8)

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
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I;16", "I;16L", "I;16B", "I;16N", "I"):
        wide = np.asarray(image).astype(np.int64)
        # Pillow opens 16-bit PNG as I;16 and some 16-bit TIFF as I; both hold 0..65535.
        image = Image.fromarray((np.clip(wide, 0, 65535) >> 8).astype(np.uint8), "L")
    elif image.mode == "F":
        image = Image.fromarray(np.clip(np.nan_to_num(np.asarray(image)), 0, 255).astype(np.uint8), "L")
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not has_alpha:
        return image.convert("RGB")
    if image.mode in ("La", "RGBa"):  # premultiplied: Pillow converts these one step at a time
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    rgba = image.convert("RGBA")
    canvas = Image.new("RGBA", rgba.size, (*background, 255))
    return Image.alpha_composite(canvas, rgba).convert("RGB")
