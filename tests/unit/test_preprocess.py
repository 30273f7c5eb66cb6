"""PreprocessSpec: geometry to the pixel, every mode Pillow can hand over, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec, to_rgb

BACKGROUND = (10, 20, 30)


def fails(call) -> str:
    with pytest.raises(KcdpError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def solid(width: int, height: int, colour=(200, 100, 50), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (width, height), colour)


def rgb(image: Image.Image, background=BACKGROUND) -> list[list[int]]:
    """The pixels of ``to_rgb`` in reading order."""
    result = to_rgb(image, background)
    assert result.mode == "RGB"
    return np.asarray(result).reshape(-1, 3).tolist()


def png(width: int, depth: int, colour_type: int, row: bytes, **chunks: bytes) -> Image.Image:
    """A one-row PNG written by hand, opened by Pillow: bit depths and tRNS as the standard has them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *(chunk(name.encode(), data) for name, data in chunks.items())]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts)))


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (50, 100, (8, 0, 24, 32)),  # tall: 16 wide, padded left and right
        (100, 50, (0, 8, 32, 24)),  # wide
        (100, 100, (0, 0, 32, 32)),  # square: nothing is padded
        (8, 8, (0, 0, 32, 32)),  # enlarged
        (32, 32, (0, 0, 32, 32)),
        (1, 1, (0, 0, 32, 32)),
        (1, 1000, (15, 0, 16, 32)),  # a hair: one pixel wide, left of the middle
        (1000, 1, (0, 15, 32, 16)),
        (3, 2, (0, 5, 32, 26)),  # 21.33 high: 21, the odd row of padding below
        (31, 32, (0, 0, 31, 32)),
        (100, 55, (0, 7, 32, 25)),  # 17.6 high: 18
        (64, 5, (0, 15, 32, 17)),  # 2.5 high: 2, the even one
        (64, 7, (0, 14, 32, 18)),  # 3.5 high: 4
    ],
)
def test_padding_is_centred_to_the_pixel(width, height, box):
    out = PreprocessSpec(32, background=BACKGROUND).apply(solid(width, height))
    want = np.empty((32, 32, 3), np.uint8)
    want[:] = BACKGROUND
    left, top, right, bottom = box
    want[top:bottom, left:right] = (200, 100, 50)
    np.testing.assert_array_equal(out, want)


def test_squash_fills_the_square_whatever_the_proportions():
    spec = PreprocessSpec(32, fit="squash", background=BACKGROUND)
    out = spec.apply(solid(1000, 10))
    assert (out == (200, 100, 50)).all()
    padded = PreprocessSpec(32, background=BACKGROUND).apply(solid(1000, 10))
    assert (padded != out).any()


def test_axes_are_height_width_channel():
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[1, 6] = (255, 128, 7)  # row 1, column 6
    out = PreprocessSpec(8).apply(Image.fromarray(picture))
    np.testing.assert_array_equal(out, picture)


def test_output_is_a_contiguous_array_of_bytes_that_may_be_written_to():
    for fit in ("pad", "squash"):
        for size in (8, 33):
            out = PreprocessSpec(size, fit=fit).apply(solid(8, 8))
            assert out.shape == (size, size, 3) and out.dtype == np.uint8
            assert out.flags.writeable and out.flags.c_contiguous and out.flags.owndata


def test_the_picture_handed_in_is_left_as_it_is():
    picture = solid(9, 5, (1, 2, 3, 128), "RGBA")
    before = picture.tobytes()
    PreprocessSpec(16).apply(picture)[:] = 0
    assert (picture.tobytes(), picture.size, picture.mode) == (before, (9, 5), "RGBA")


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_resize_filters_are_pillows(name):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (50, 50, 3), dtype=np.uint8))
    want = np.asarray(picture.resize((16, 16), Image.Resampling[name.upper()]))
    np.testing.assert_array_equal(PreprocessSpec(16, name).apply(picture), want)


def test_transparency_is_composited_before_resizing():
    """Hidden colours must not bleed: red lies under the transparent pixels beside an opaque white stripe."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:] = (255, 0, 0, 0)
    pixels[:, ::2] = (255, 255, 255, 255)
    picture = Image.fromarray(pixels)
    out = PreprocessSpec(16, "bilinear").apply(picture)
    assert (out == 255).all()  # white on white
    # The twin: the other order leaves a red tint, so the test above can fail.
    late = to_rgb(Image.fromarray(np.stack([
        np.asarray(Image.fromarray(pixels[:, :, c]).resize((16, 16), Image.Resampling.BILINEAR)) for c in range(4)
    ], axis=2)))  # fmt: skip
    assert (np.asarray(late)[:, :, 1] < 250).all()


def test_half_transparent_pixels_mix_with_the_background():
    assert rgb(solid(1, 1, (200, 100, 50, 128), "RGBA"), (0, 0, 0)) == [[100, 50, 25]]
    assert rgb(solid(1, 1, (200, 100, 50, 0), "RGBA")) == [list(BACKGROUND)]
    assert rgb(solid(1, 1, (200, 100, 50, 255), "RGBA")) == [[200, 100, 50]]


def test_the_default_background_is_white():
    out = PreprocessSpec(8).apply(Image.new("RGBA", (4, 8)))
    assert (out == 255).all()


EXIF_ROTATIONS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", EXIF_ROTATIONS)
def test_exif_orientation_is_honoured(orientation):
    stored = np.random.default_rng(1).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(stored).save(file, "PNG", exif=exif)
    upright = np.ascontiguousarray(EXIF_ROTATIONS[orientation](stored))
    np.testing.assert_array_equal(np.asarray(to_rgb(Image.open(file))), upright)
    np.testing.assert_array_equal(
        PreprocessSpec(16, background=BACKGROUND).apply(Image.open(file)),
        PreprocessSpec(16, background=BACKGROUND).apply(Image.fromarray(upright)),
    )


def test_exif_turns_transparent_palettes_and_wide_greys_too():
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn: the row becomes a column
    palette = png(2, 8, 3, bytes([0, 1]), PLTE=bytes([255, 0, 0, 0, 255, 0]), tRNS=bytes([255, 0]))
    wide = png(2, 16, 0, struct.pack(">HH", 0x1234, 7), tRNS=struct.pack(">H", 7))
    for image, first in ((palette, [255, 0, 0]), (wide, [0x12] * 3)):
        image.load()
        image.info["exif"] = exif.tobytes()
        assert to_rgb(image, BACKGROUND).size == (1, 2)
        assert rgb(image) == [first, [*BACKGROUND]]


def test_palettes():
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255])
    assert rgb(png(3, 8, 3, bytes([0, 1, 2]), PLTE=palette)) == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    got = rgb(png(3, 8, 3, bytes([0, 1, 2]), PLTE=palette, tRNS=bytes([0, 128])), (0, 0, 0))
    assert got == [[0, 0, 0], [0, 128, 0], [0, 0, 255]]  # entries without alpha are opaque


def test_palette_with_one_transparent_colour():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 0)
    assert rgb(image) == [[255, 0, 0], [0, 255, 0]]
    image.info["transparency"] = 1
    assert rgb(image) == [[255, 0, 0], [*BACKGROUND]]


def test_palette_with_alpha():
    image = Image.new("PA", (1, 1), (0, 0))
    assert rgb(image) == [[*BACKGROUND]]


def test_grey_and_grey_with_alpha():
    assert rgb(solid(1, 1, 77, "L")) == [[77, 77, 77]]
    assert rgb(solid(1, 1, (77, 255), "LA")) == [[77, 77, 77]]
    assert rgb(solid(1, 1, (77, 0), "LA")) == [[*BACKGROUND]]
    assert rgb(png(2, 8, 0, bytes([5, 6]), tRNS=struct.pack(">H", 6))) == [[5, 5, 5], [*BACKGROUND]]


def test_premultiplied_alpha():
    straight = solid(1, 1, (200, 100, 50, 128), "RGBA")
    assert rgb(straight.convert("RGBa")) == rgb(straight) == [[105, 60, 40]]
    grey = solid(1, 1, (200, 128), "LA")
    assert rgb(grey.convert("La"), (0, 0, 0)) == rgb(grey, (0, 0, 0)) == [[100, 100, 100]]


def test_a_transparent_rgb_colour():
    row = bytes([1, 2, 3, 4, 5, 6])
    assert rgb(png(2, 8, 2, row)) == [[1, 2, 3], [4, 5, 6]]
    assert rgb(png(2, 8, 2, row, tRNS=struct.pack(">HHH", 4, 5, 6))) == [[1, 2, 3], [*BACKGROUND]]


WIDE = (0, 255, 256, 0x80FF, 65535)
NARROW = [[0] * 3, [0] * 3, [1] * 3, [0x80] * 3, [255] * 3]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_16_bit_greys_keep_their_upper_byte(mode):
    order = {"I;16B": ">", "I;16N": "="}.get(mode, "<")
    assert rgb(Image.frombytes(mode, (5, 1), np.array(WIDE, f"{order}u2").tobytes())) == NARROW


def test_16_bit_png_with_and_without_a_transparent_grey():
    row = struct.pack(">5H", *WIDE)
    assert png(5, 16, 0, row).mode == "I;16"
    assert rgb(png(5, 16, 0, row)) == NARROW
    got = rgb(png(5, 16, 0, row, tRNS=struct.pack(">H", 255)))
    assert got == [[0] * 3, [*BACKGROUND], *NARROW[2:]]  # 255 is transparent, 0 with the same upper byte is not


def test_32_bit_integers_are_read_as_16_bit_and_clipped():
    values = np.array([[-5, 0, 255, 256, 65535, 65536, 2**31 - 1]], np.int32)
    assert [p[0] for p in rgb(Image.fromarray(values))] == [0, 0, 0, 1, 255, 255, 255]


def test_floats_are_clipped_and_nan_is_black():
    values = np.array([[np.nan, -3.0, 0.4, 77.0, 254.9, 300.0, np.inf, -np.inf]], np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # casting NaN to a byte is undefined, and numpy says so
        assert [p[0] for p in rgb(Image.fromarray(values))] == [0, 0, 0, 77, 254, 255, 255, 0]


def test_one_bit():
    assert rgb(png(2, 1, 0, bytes([0b01000000]))) == [[0] * 3, [255] * 3]
    assert rgb(png(2, 1, 0, bytes([0b01000000]), tRNS=struct.pack(">H", 1))) == [[0] * 3, [*BACKGROUND]]


def test_inks_and_other_colour_spaces():
    assert rgb(solid(1, 1, (0, 0, 0, 0), "CMYK")) == [[255, 255, 255]]
    assert rgb(solid(1, 1, (0, 255, 255, 0), "CMYK")) == [[255, 0, 0]]
    assert rgb(solid(1, 1, (128, 128, 128), "YCbCr")) == [[128, 128, 128]]
    assert rgb(solid(1, 1, (85, 255, 255), "HSV")) == [[0, 255, 0]]
    assert min(rgb(solid(1, 1, (255, 128, 128), "LAB"))[0]) >= 253  # full lightness, no colour


SIZES = "a whole number from 8 to 4096"
FILTERS = "one of nearest, bilinear, bicubic, lanczos"
COLOURS = "three whole numbers 0..255 (red, green, blue)"
RANGES = "two finite numbers, the lower one first"


@pytest.mark.parametrize(
    ("field", "value", "found", "expected"),
    [
        ("size", 7, "7", SIZES),
        ("size", 4097, "4097", SIZES),
        ("size", 32.0, "32.0", SIZES),
        ("size", True, "True", SIZES),
        ("size", "32", "'32'", SIZES),
        ("resize_filter", "bicubik", "'bicubik' (did you mean 'bicubic'?)", FILTERS),
        ("resize_filter", None, "None", FILTERS),
        ("fit", "pat", "'pat' (did you mean 'pad'?)", "one of pad, squash"),
        ("background", (0, 0, 256), "(0, 0, 256)", COLOURS),
        ("background", (0, 0), "(0, 0)", COLOURS),
        ("background", (0, 0, 0.5), "(0, 0, 0.5)", COLOURS),
        ("background", "white", "'white'", COLOURS),
        ("value_range", (1, 1), "(1, 1)", RANGES),
        ("value_range", (0, float("nan")), "(0, nan)", RANGES),
        ("value_range", (0, float("inf")), "(0, inf)", RANGES),
        ("value_range", 1, "1", RANGES),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(field, value, found, expected):
    message = fails(lambda: PreprocessSpec(**{"size": 32, field: value}))
    assert message == f"preprocess.{field} is {found}; expected {expected}"


@pytest.mark.parametrize("size", [8, 4096])
def test_the_smallest_and_the_largest_size_are_allowed(size):
    assert PreprocessSpec(size).size == size


@pytest.mark.parametrize(
    "spec",
    [PreprocessSpec(32), PreprocessSpec(64, "lanczos", "squash", (1, 2, 3), (0.0, 1.0)), PreprocessSpec(8, "nearest")],
)
def test_round_trip_through_json(spec):
    plain = json.loads(json.dumps(spec.to_dict()))
    assert PreprocessSpec.from_dict(plain) == spec
    assert PreprocessSpec.from_dict({**plain, "size": spec.size + 1}) != spec


def test_lists_become_tuples_so_that_specs_can_be_compared():
    assert PreprocessSpec(32, background=[1, 2, 3]) == PreprocessSpec(32, background=(1, 2, 3))


@pytest.mark.parametrize("data", [{}, {"fit": "pad"}, {"size": 32, "crop": 1}, [], None, "32"])
def test_a_spec_from_elsewhere_is_refused(data):
    message = fails(lambda: PreprocessSpec.from_dict(data))
    assert message.startswith("preprocess spec is ") and message.endswith("update kcdp, or export the bundle again")


def test_a_batch_is_its_pictures_one_by_one():
    spec = PreprocessSpec(16)
    pictures = [solid(5, 9, (1, 2, 3)), solid(9, 5, (7, 8, 9, 40), "RGBA"), solid(1, 1, 250, "L")]
    batch = spec.apply_batch(pictures)
    assert batch.shape == (3, 16, 16, 3) and batch.dtype == np.uint8
    for row, picture in zip(batch, pictures, strict=True):
        np.testing.assert_array_equal(row, spec.apply(picture))


def test_an_empty_batch_has_the_right_shape():
    batch = PreprocessSpec(16).apply_batch([])
    assert batch.shape == (0, 16, 16, 3) and batch.dtype == np.uint8
