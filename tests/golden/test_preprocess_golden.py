"""What preprocessing gives, byte for byte, against SHA-256 values recorded in ``preprocess.json``.

A change of any of them changes what every trained model and every shipped bundle sees. Where that is meant, record
anew and say so in the changelog:

    KCDP_RECORD_GOLDEN=1 python -m pytest tests/golden/test_preprocess_golden.py

A recording run fails, so that it cannot be mistaken for a passed one. A missing value is a failure, never a skip.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kcdp.preprocess import PreprocessSpec

GOLDEN = Path(__file__).with_name("preprocess.json")
RECORD = "KCDP_RECORD_GOLDEN"

SPECS = {
    "32 pad": PreprocessSpec(32),
    "64 pad": PreprocessSpec(64),
    "32 squash bilinear": PreprocessSpec(32, "bilinear", "squash"),
    "64 pad lanczos on green": PreprocessSpec(64, "lanczos", background=(0, 160, 80)),
    "32 pad nearest on black": PreprocessSpec(32, "nearest", background=(0, 0, 0)),
    "64 squash": PreprocessSpec(64, fit="squash"),
}


def noise(height: int, width: int, channels: int, seed: int) -> np.ndarray:
    """uint8 from the raw bits of PCG64, whose stream no numpy version changes."""
    raw = np.random.PCG64(seed).random_raw(height * width * channels)
    return (raw & 255).astype(np.uint8).reshape(height, width, channels)


def waves(height: int, width: int) -> np.ndarray:
    """Smooth RGB: whole-number arithmetic only."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([(3 * x + y) % 256, (x * y) % 256, (5 * y + 2 * x) // 3 % 256], axis=2).astype(np.uint8)


def disc(height: int, width: int) -> np.ndarray:
    """uint8 alpha: opaque in the middle, a soft edge, nothing outside."""
    y, x = np.mgrid[0:height, 0:width]
    inside = (height * width) // 6 - (y - height // 2) ** 2 - (x - width // 2) ** 2
    return np.clip(inside, 0, 255).astype(np.uint8)


def with_alpha(rgb: np.ndarray) -> np.ndarray:
    return np.dstack([rgb, disc(*rgb.shape[:2])])


def palette(transparency: bytes | int | None = None) -> Image.Image:
    image = Image.fromarray(noise(40, 56, 1, 7)[:, :, 0] % 16).convert("P")
    image.putpalette(noise(1, 16, 3, 8).tobytes())
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


def turned(orientation: int) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(waves(70, 30))
    image.info["exif"] = exif.tobytes()
    return image


def pictures() -> dict[str, Image.Image]:
    """name -> a picture; every mode and shape that a decoder may hand over."""
    grey = waves(45, 81)[:, :, 0]
    return {
        "noise, as large as the model": Image.fromarray(noise(32, 32, 3, 0)),
        "noise, large": Image.fromarray(noise(200, 200, 3, 1)),
        "noise, tall": Image.fromarray(noise(97, 41, 3, 2)),
        "noise, wide": Image.fromarray(noise(33, 150, 3, 3)),
        "waves, small": Image.fromarray(waves(11, 13)),
        "waves, large": Image.fromarray(waves(301, 287)),
        "one pixel": Image.fromarray(noise(1, 1, 3, 4)),
        "a hair": Image.fromarray(noise(400, 1, 3, 5)),
        "transparent, noise": Image.fromarray(with_alpha(noise(64, 80, 3, 6))),
        "transparent, waves": Image.fromarray(with_alpha(waves(120, 90))),
        "transparent, all of it": Image.fromarray(np.dstack([waves(20, 20), np.zeros((20, 20), np.uint8)])),
        "premultiplied": Image.fromarray(with_alpha(waves(50, 50))).convert("RGBa"),
        "palette": palette(),
        "palette, one transparent colour": palette(3),
        "palette with alpha": palette(bytes(range(0, 256, 16))),
        "grey": Image.fromarray(grey),
        "grey with alpha": Image.fromarray(np.dstack([grey, disc(45, 81)])),
        "grey, 16 bits": Image.fromarray(grey.astype(np.uint16) * 251 + 17),
        "grey, float": Image.fromarray(grey.astype(np.float32) * 1.25 - 20),
        "black and white": Image.fromarray(grey > 100),
        "inks": Image.fromarray(with_alpha(waves(48, 60))).convert("RGB").convert("CMYK"),
        "turned by EXIF, 6": turned(6),
        "turned by EXIF, 7": turned(7),
    }


def digest(picture: Image.Image, spec: PreprocessSpec) -> str:
    return hashlib.sha256(spec.apply(picture).tobytes()).hexdigest()


def measure() -> dict[str, dict[str, str]]:
    return {name: {key: digest(picture, spec) for key, spec in SPECS.items()} for name, picture in pictures().items()}


@pytest.fixture(scope="module")
def golden() -> dict[str, dict[str, str]]:
    if os.environ.get(RECORD):
        GOLDEN.write_text(json.dumps(measure(), indent=2) + "\n", encoding="utf-8")
        pytest.fail(f"{GOLDEN.name} was recorded anew; look at its diff, then run again without {RECORD}")
    if not GOLDEN.is_file():
        pytest.fail(f"{GOLDEN} is missing; restore it, or record it with {RECORD}=1")
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_the_recording_covers_exactly_these_pictures_and_specs(golden):
    assert len(golden) == 23
    assert set(golden) == set(pictures())
    assert all(set(row) == set(SPECS) for row in golden.values())


@pytest.mark.parametrize("name", pictures())
def test_preprocessing_is_what_was_recorded(golden, name):
    picture = pictures()[name]
    assert {key: digest(picture, spec) for key, spec in SPECS.items()} == golden[name]


def test_the_specs_are_told_apart_by_their_values(golden):
    for name in ("noise, tall", "transparent, waves"):
        assert len(set(golden[name].values())) == len(SPECS)


def test_one_changed_pixel_is_noticed(golden):
    pixels = noise(32, 32, 3, 0)
    pixels[16, 16, 0] ^= 128
    for key, spec in SPECS.items():
        assert digest(Image.fromarray(pixels), spec) != golden["noise, as large as the model"][key]
