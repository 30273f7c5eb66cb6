"""What surrounds the face in a drawn photograph: rooms, landscapes, cues that go with an emotion, and the camera.

In photographs much of an emotion lies outside the face (a rainy day, a party, a dark corridor). A cue is drawn only in
some of the pictures and now and then belongs to another emotion, so that it is a hint and no label.
Arrays are float32 [size, size, 3], RGB, 0..1.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from kcdp.data.drawing.geometry import ellipse
from kcdp.labels import LABELS

CUE_RATE = 0.4  # a cue of the picture's own emotion
STRAY_CUE_RATE = 0.08  # a cue of a random emotion

CUES: dict[str, tuple[str, ...]] = {
    "surprise": ("confetti", "balloons", "flash"),
    "happy": ("confetti", "balloons", "sun"),
    "disgust": ("haze", "flies"),
    "fear": ("night", "corridor"),
    "sad": ("rain", "fog"),
    "anger": ("embers", "storm"),
}

_WALLS = (
    (0.82, 0.78, 0.70), (0.62, 0.68, 0.72), (0.70, 0.60, 0.52), (0.52, 0.58, 0.50), (0.78, 0.74, 0.78),
    (0.45, 0.42, 0.44), (0.60, 0.50, 0.42), (0.86, 0.84, 0.82),
)  # fmt: skip


def choose_cue(emotion: str, rng: np.random.Generator) -> str:
    """A name out of ``CUES``, or "" where the scene says nothing."""
    draw, other = rng.random(), LABELS[rng.integers(len(LABELS))]
    if draw < CUE_RATE:
        names = CUES[emotion]
    elif draw < CUE_RATE + STRAY_CUE_RATE:
        names = CUES[other]
    else:
        return ""
    return names[rng.integers(len(names))]


def _rgb(colour: np.ndarray | tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(v) for v in np.clip(np.asarray(colour) * 255, 0, 255))


def _indoor(draw: ImageDraw.ImageDraw, n: int, rng: np.random.Generator) -> None:
    """Wall, and some of: window, shelf, picture, door, lamp."""
    wall = np.array(_WALLS[rng.integers(len(_WALLS))])
    draw.rectangle((0, 0, n, n), fill=_rgb(wall))
    for _ in range(int(rng.integers(2, 6))):
        x, y, w, h = (
            rng.uniform(-0.1, 0.9) * n,
            rng.uniform(-0.1, 0.8) * n,
            rng.uniform(0.1, 0.45) * n,
            rng.uniform(0.1, 0.6) * n,
        )
        draw.rectangle((x, y, x + w, y + h), fill=_rgb(wall * rng.uniform(0.5, 1.25) + rng.normal(0, 0.07, 3)))
    for _ in range(int(rng.integers(0, 5))):
        x, y, w = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(0.03, 0.1) * n
        draw.rectangle((x, y, x + w, y + 3 * w), fill=_rgb(rng.uniform(0.1, 0.8, 3)))
    if rng.random() < 0.3:
        x = rng.uniform(0, 0.8) * n
        draw.rectangle((x, 0.05 * n, x + 0.25 * n, 0.45 * n), fill=_rgb((0.93, 0.95, 1.0)))


def _outdoor(draw: ImageDraw.ImageDraw, n: int, rng: np.random.Generator) -> None:
    """Sky, and leaves, houses or hills below."""
    sky = np.array([0.62, 0.74, 0.88]) * rng.uniform(0.75, 1.1) + rng.normal(0, 0.04, 3)
    horizon = rng.uniform(0.3, 0.8) * n
    for k in range(8):
        draw.rectangle((0, k * n / 8, n, n), fill=_rgb(sky + (1 - sky) * 0.5 * k / 8))
    ground = np.array(((0.33, 0.45, 0.22), (0.5, 0.46, 0.38), (0.55, 0.5, 0.36))[rng.integers(3)])
    draw.rectangle((0, horizon, n, n), fill=_rgb(ground))
    houses = rng.random() < 0.4
    for _ in range(int(rng.integers(6, 14))):
        x, r = rng.uniform(-0.1, 1.1) * n, rng.uniform(0.06, 0.22) * n
        shade = rng.uniform(0.5, 1.3)
        if houses:
            draw.rectangle((x, horizon - 2.5 * r, x + r, n), fill=_rgb(np.array([0.55, 0.5, 0.47]) * shade))
        else:
            y = horizon + rng.uniform(-0.25, 0.4) * n
            draw.ellipse((x - r, y - r, x + r, y + r), fill=_rgb(np.array([0.32, 0.45, 0.24]) * shade))


def _behind(draw: ImageDraw.ImageDraw, n: int, cue: str, rng: np.random.Generator) -> None:
    """The parts of a cue that lie behind the person and out of focus."""
    if cue == "balloons":
        for _ in range(int(rng.integers(4, 8))):
            x, y, r = rng.uniform(0, n), rng.uniform(0, 0.6) * n, rng.uniform(0.07, 0.13) * n
            bright = [0.95, 0.25, rng.uniform(0.2, 0.9)]
            draw.line((x, y, x + 0.1 * r, y + 3 * r), fill=(230, 230, 230))
            draw.ellipse((x - r, y - 1.2 * r, x + r, y + 1.2 * r), fill=_rgb(rng.permutation(bright)))
    elif cue == "sun":
        x, y, r = rng.uniform(0.05, 0.95) * n, rng.uniform(0.02, 0.3) * n, 0.15 * n
        for k, warm in ((2.6, (255, 228, 160)), (1.7, (255, 240, 195)), (1.0, (255, 253, 235))):
            draw.ellipse((x - r * k, y - r * k, x + r * k, y + r * k), fill=warm)
    elif cue == "corridor":
        for k in range(7):
            shrink = 0.07 * k * n
            draw.rectangle(
                (shrink, shrink * 0.8, n - shrink, n - shrink * 0.6), fill=_rgb(np.full(3, 0.34 - 0.048 * k))
            )
    elif cue == "embers":
        for _ in range(18):
            x, r = rng.uniform(0, n), rng.uniform(0.05, 0.16) * n
            y = n * (1 - rng.uniform(0, 0.75) ** 1.5)
            draw.ellipse((x - r, y - 1.8 * r, x + r, y + r), fill=_rgb((0.95, rng.uniform(0.2, 0.6), 0.1)))
    elif cue == "flash":
        for _ in range(12):
            x, y, r = rng.uniform(0, n), rng.uniform(0, n), rng.uniform(0.02, 0.09) * n
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 250, 235))


def background(cue: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """An out-of-focus room or landscape in a cue's colours; float32 [size, size, 3], 0..1."""
    n = 64
    image = Image.new("RGB", (n, n))
    draw = ImageDraw.Draw(image)
    (_indoor if rng.random() < 0.5 else _outdoor)(draw, n, rng)
    _behind(draw, n, cue, rng)
    image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.7, 3.0))))
    array = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    slope = rng.uniform(-0.15, 0.15, 2).astype(np.float32)
    return array * (1 + slope[0] * ramp[None, :, None] + slope[1] * ramp[:, None, None])


def grade(array: np.ndarray, cue: str) -> np.ndarray:
    """The light that a cue throws on the whole scene, person included."""
    if cue in ("rain", "fog", "storm"):
        grey = array.mean(axis=2, keepdims=True)
        veil, dim = {"rain": (0.1, 0.72), "fog": (0.34, 0.62), "storm": (0.04, 0.74)}[cue]
        return (grey * 0.6 + array * 0.4) * np.array([0.92, 0.97, 1.05], np.float32) * dim + veil
    if cue in ("night", "corridor"):
        return array * np.array([0.52, 0.57, 0.72], np.float32)
    if cue in ("haze", "flies"):
        veil = 0.16 if cue == "haze" else 0.05
        return array * np.array([0.80, 0.88, 0.60], np.float32) + np.array([0.5, 0.7, 0.2], np.float32) * veil
    if cue == "embers":
        return array * np.array([1.02, 0.74, 0.60], np.float32)
    if cue == "sun":
        return array * np.array([1.10, 1.04, 0.90], np.float32) + 0.03
    return array


def foreground(image: Image.Image, cue: str, rng: np.random.Generator) -> Image.Image:
    """Rain, paper shreds or flies between the camera and the person; RGB in, RGB out."""
    n = image.width
    layer = ImageDraw.Draw(image, "RGBA")
    if cue in ("rain", "storm"):
        slant = rng.uniform(-0.05, 0.05) * n
        for x, y, length in rng.uniform(0, 1, (40, 3)):
            end = (x * n + slant, (y + 0.05 + 0.08 * length) * n)
            layer.line((x * n, y * n, *end), fill=(225, 235, 245, 110), width=max(1, n // 128))
    elif cue == "confetti":
        for x, y, r, a, hue in rng.uniform(0, 1, (34, 5)):
            box = ellipse(x * n, y * n, (0.008 + 0.012 * r) * n, (0.004 + 0.012 * a) * n, n=8)
            colour = [(240, 60, 80), (250, 200, 50), (70, 160, 240), (90, 200, 110), (200, 90, 220)][int(hue * 5)]
            layer.polygon(box.ravel().tolist(), fill=(*colour, 230))
    elif cue == "flies":
        for x, y, r in rng.uniform(0, 1, (8, 3)):
            radius = (0.007 + 0.006 * r) * n
            layer.ellipse((x * n - radius, y * n - radius, x * n + radius, y * n + radius), fill=(20, 20, 16, 235))
            layer.ellipse((x * n, y * n - 2 * radius, x * n + 2.2 * radius, y * n), fill=(200, 205, 200, 120))
    return image


def camera(array: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Exposure, white balance, vignette, defocus, sensor noise and half-resolution colour, as a JPEG keeps it."""
    size = array.shape[0]
    ramp = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    vignette = 1 - rng.uniform(0.0, 0.22) * (ramp[:, None] + ramp[None, :])
    gain = (rng.uniform(0.88, 1.12) * (1 + rng.normal(0, 0.035, 3))).astype(np.float32)
    array = np.clip(array * (vignette.astype(np.float32)[..., None] * gain), 0, 1)
    gamma = rng.uniform(0.85, 1.15)
    saturation, blur, sigma = rng.uniform(0.75, 1.1), rng.uniform(0.25, 0.75), rng.uniform(0.008, 0.026)
    image = Image.fromarray((array**gamma * 255).astype(np.uint8))
    y, cb, cr = image.filter(ImageFilter.GaussianBlur(blur * size / 128)).convert("YCbCr").split()
    half = (size // 2, size // 2)
    cb, cr = (c.resize(half, Image.Resampling.BOX).resize(y.size, Image.Resampling.BILINEAR) for c in (cb, cr))
    table = (np.clip(128 + (np.arange(256) - 128) * saturation, 0, 255).astype(int) // 2 * 2).tolist()
    noise = rng.standard_normal((size, size), dtype=np.float32) * np.float32(sigma * 255)
    luma = np.clip(np.asarray(y, np.float32) + noise, 0, 255).astype(np.uint8)
    return Image.merge("YCbCr", (Image.fromarray(luma), cb.point(table), cr.point(table))).convert("RGB")
