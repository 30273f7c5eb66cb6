"""Every format and awkward mode is decoded as Pillow would; every failure is one line that names file and reason."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile
from sticker_files import encoded, gradient, two_colours

from kcdp.decoding import ADDED_FORMATS, FORMATS, decode, picture_format, readable_formats, source_name
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec, to_rgb

SAMPLES: dict[str, bytes] = {
    **{f"PNG {mode}": encoded(gradient(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")},
    "PNG P transparent": encoded(two_colours(), "PNG", transparency=0),
    "PNG P alpha per colour": encoded(two_colours(), "PNG", transparency=b"\x00\x80"),
    "PNG RGB colour key": encoded(gradient(), "PNG", transparency=(0, 0, 255)),
    "PNG interlaced RGBA": encoded(gradient("RGBA"), "PNG", compress_level=0),
    **{f"JPEG {mode}": encoded(gradient(mode), "JPEG") for mode in ("RGB", "L", "CMYK")},
    "JPEG progressive": encoded(gradient(), "JPEG", progressive=True),
    "WebP lossy": encoded(gradient(), "WEBP"),
    "WebP lossless alpha": encoded(gradient("RGBA"), "WEBP", lossless=True),
    "GIF": encoded(gradient("P"), "GIF"),
    "GIF transparent": encoded(two_colours(), "GIF", transparency=0),
    "BMP RGB": encoded(gradient(), "BMP"),
    "BMP P": encoded(gradient("P"), "BMP"),
    "BMP 1": encoded(gradient("1"), "BMP"),
}
ONE_OF_EACH = ("PNG RGBA", "JPEG RGB", "WebP lossy", "WebP lossless alpha", "GIF", "BMP RGB")


@pytest.fixture()
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", SAMPLES)
def test_every_format_and_mode_is_what_pillow_makes_of_it(name: str, tmp_path: Path, no_warnings: None) -> None:
    file = tmp_path / "the extension says nothing.txt"
    file.write_bytes(SAMPLES[name])
    with Image.open(io.BytesIO(SAMPLES[name])) as opened:
        expected = np.asarray(to_rgb(opened))
    for source in (file, str(file), SAMPLES[name], bytearray(SAMPLES[name]), memoryview(SAMPLES[name])):
        assert np.array_equal(np.asarray(to_rgb(decode(source))), expected)


def test_the_samples_cover_every_format() -> None:
    assert {name.split()[0] for name in SAMPLES} == set(FORMATS)
    assert {name.split()[0] for name in ONE_OF_EACH} == set(FORMATS)


def test_transparency_falls_on_white() -> None:
    rgb = np.asarray(to_rgb(decode(SAMPLES["PNG P transparent"])))
    assert rgb[0, -1].tolist() == [255, 255, 255] and rgb[0, 0].tolist() == [0, 0, 255]
    half = np.asarray(to_rgb(decode(SAMPLES["PNG P alpha per colour"])))
    assert half[0, 0].tolist() == [127, 127, 255]
    gif = np.asarray(to_rgb(decode(SAMPLES["GIF transparent"])))
    assert gif[0, -1].tolist() == [255, 255, 255]


def test_sixteen_bits_keep_their_range() -> None:
    rgb = np.asarray(to_rgb(decode(SAMPLES["PNG I;16"])))
    assert rgb[0, 0, 0] == 0 and rgb[0, -1, 0] == 255 and 100 < rgb[0, 12, 0] < 160


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_rotation_survives_decoding(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 20, 20))
    decoded = decode(encoded(image, form, exif=exif.tobytes()))
    upright = to_rgb(decoded)
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5))[2] > 200 and upright.getpixel((10, 35))[0] > 200  # type: ignore[index]
    assert PreprocessSpec(16).apply(decoded).shape == (16, 16, 3)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0rubbish, no TIFF", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12", b"Exif\0\0"])
def test_broken_exif_counts_as_none(form: str, exif: bytes) -> None:
    data = encoded(gradient(), form, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow may say "Corrupt EXIF data"
        assert to_rgb(decode(data)).size == (24, 17)
        with Image.open(io.BytesIO(data)) as image:
            assert to_rgb(decode(image)).size == (24, 17)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_gives_its_first_frame(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    red, green, blue = to_rgb(decode(data)).getpixel((8, 8))  # type: ignore[misc]
    assert red > 240 and green < 15 and blue < 15


def test_of_an_open_animation_the_current_frame_counts() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    with Image.open(io.BytesIO(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert to_rgb(decode(image)).getpixel((8, 8)) == (0, 255, 0)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    image = decode(array)
    assert image.size == (7, 5) and np.array_equal(np.asarray(image), array.reshape(np.asarray(image).shape))
    assert np.array_equal(np.asarray(decode(array[:, ::-1])), np.asarray(image)[:, ::-1]), "a view with strides"


@pytest.mark.parametrize(
    "array",
    [np.zeros((5, 7, 3), np.float32), np.zeros((5, 7, 2), np.uint8), np.zeros((0, 7, 3), np.uint8),
     np.zeros((1, 5, 7, 3), np.uint8), np.zeros(5, np.uint8)],
)  # fmt: skip
def test_wrong_arrays(array: np.ndarray) -> None:
    with pytest.raises(KcdpError) as caught:
        decode(array)
    assert str(caught.value) == (
        f"<array>: received {array.dtype} {list(array.shape)}; expected uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"
    )


def test_wrong_type() -> None:
    with pytest.raises(KcdpError, match="<int>: received int; expected a path, a file's bytes, a Pillow image or"):
        decode(7)  # type: ignore[arg-type]
    with pytest.raises(KcdpError, match=r"<image> has no pixels \(0 x 5\)"):
        decode(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("lenient", [False, True])
def test_every_truncation_is_an_error_or_changes_nothing(
    name: str, lenient: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    whole, refused = SAMPLES[name], 0
    expected = np.asarray(to_rgb(decode(whole)))
    for length in range(len(whole)):
        try:
            image = decode(whole[:length], name="cut")
        except KcdpError as error:
            refused += 1
            assert str(error).startswith("cut ") and "\n" not in str(error)
        else:
            assert np.array_equal(np.asarray(to_rgb(image)), expected), f"{length} of {len(whole)} bytes"
    assert refused >= 0.8 * len(whole)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient, "Pillow's flag is put back"


def test_threads_do_not_lose_pillows_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cut = SAMPLES["JPEG RGB"][:-40]
    accepted: list[int] = []

    def work() -> None:
        for _ in range(30):
            try:
                decode(cut)
                accepted.append(1)
            except KcdpError:
                decode(SAMPLES["PNG RGBA"])

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not accepted and ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_flipped_bytes_never_raise_anything_else(name: str) -> None:
    rng = np.random.default_rng(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(150):
            data = np.frombuffer(SAMPLES[name], np.uint8).copy()
            places = rng.integers(0, len(data), 3)
            data[places] = rng.integers(0, 256, 3)
            try:
                decode(data.tobytes(), max_pixels=1_000_000)
            except KcdpError as error:
                assert "\n" not in str(error)


def test_flipped_exif_never_raises_anything_else() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif.get_ifd(0x8769)[0x9000] = b"0232"
    sample = encoded(gradient(), "PNG", exif=exif.tobytes())
    start = sample.index(b"eXIf") + 4
    length = struct.unpack(">I", sample[start - 8 : start - 4])[0]
    rng = np.random.default_rng(2)
    turned = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(400):
            data = np.frombuffer(sample, np.uint8).copy()
            data[start + rng.integers(0, length, 2)] = rng.integers(0, 256, 2)
            check = zlib.crc32(data[start - 4 : start + length].tobytes())
            data[start + length : start + length + 4] = list(struct.pack(">I", check))
            size = to_rgb(decode(data.tobytes())).size
            assert size in ((24, 17), (17, 24))
            turned += size == (17, 24)
    assert 50 < turned < 400


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (header, *chunks)
    )
    return b"\x89PNG\r\n\x1a\n" + body


HUGE: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: _png(20_000, 20_000, (b"IDAT", b"")),
    "GIF": lambda: b"GIF89a" + struct.pack("<HH", 20_000, 20_000) + b"\0\0\0,\0\0\0\0"
    + struct.pack("<HH", 20_000, 20_000) + b"\0\x02\0;",
    "BMP": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "JPEG": lambda: _resized_jpeg(20_000),
}  # fmt: skip


def _resized_jpeg(side: int) -> bytes:
    data = bytearray(SAMPLES["JPEG RGB"])
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("form", HUGE)
def test_too_many_pixels_are_refused_from_the_header(form: str, no_warnings: None) -> None:
    with pytest.raises(KcdpError) as caught:
        decode(HUGE[form](), name="bomb")
    assert str(caught.value) == (
        "bomb has 20000 x 20000 pixels (400.0 megapixels); expected at most 64 megapixels; make it smaller first"
    )


def test_the_pixel_limit_can_be_set_and_holds_for_open_images(no_warnings: None) -> None:
    assert decode(SAMPLES["WebP lossy"], max_pixels=24 * 17).size == (24, 17)
    for source in (SAMPLES["WebP lossy"], gradient()):
        with pytest.raises(KcdpError, match=r"has 24 x 17 pixels \(0\.0 megapixels\); expected at most 0\.000407 mega"):
            decode(source, max_pixels=24 * 17 - 1)


def test_a_text_bomb_is_an_error() -> None:
    bomb = _png(4, 4, (b"zTXt", b"comment\0\0" + zlib.compress(bytes(80_000_000))), (b"IDAT", zlib.compress(bytes(52))))
    try:
        image = decode(bomb, name="text.png")
    except KcdpError as error:
        assert str(error).lower().startswith("text.png is truncated or damaged (decompressed data too large")
    else:
        assert image.size == (4, 4)  # Pillow left the text alone


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty (0 bytes); expected a picture file; copy it again"),
        (b"hello, world", "is not a picture (it begins with b'hello, w'); expected " + readable_formats()),
        (b"BMW is not a bitmap, though it begins like one", "is not a picture (it begins with b'BMW is n')"),
        (b"II*\0rest", f"is a TIFF picture; expected {readable_formats()}; convert it first"),
        (b"\0\0\0\x1cftypisom", "is an MP4 or QuickTime video"),
        (b"\x1aE\xdf\xa3\x01", "is a WebM or Matroska video"),
        (b"\x1f\x8b\x08\0", "is gzip data (perhaps a .tgs sticker)"),
        (b"<SVG xmlns=", "is an SVG drawing"),
        (b"<!DOCTYPE HTML>", "is a web page (perhaps a failed download)"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer, not the picture itself"),
        (SAMPLES["PNG RGB"][:-60], "is truncated or damaged (image file is truncated"),
        (SAMPLES["JPEG RGB"][:-60], "is truncated or damaged (image file is truncated"),
        (SAMPLES["WebP lossy"][:60], "is truncated or damaged ("),
    ],
)
def test_messages_name_file_and_reason(content: bytes, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "sticker.png"
    file.write_bytes(content)
    with pytest.raises(KcdpError) as caught:
        decode(file)
    assert str(caught.value).startswith(f"{file} {reason}")


ADDED = {
    "AVIF": b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
}


@pytest.mark.parametrize("form", ADDED_FORMATS)
def test_a_format_whose_reader_is_not_installed_says_how_to_get_it(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other, (own, _, how) in ADDED_FORMATS.items():  # the other one is here
        monkeypatch.setitem(ADDED_FORMATS, other, (own, lambda here=other != form: here or None, how))
    with pytest.raises(KcdpError) as caught:
        decode(ADDED[form], name="x")
    article, install, other = {
        "AVIF": ("an", '--upgrade "Pillow>=11.3"', "HEIC"), "HEIC": ("a", '"kcdp[heif]"', "AVIF")
    }[form]  # fmt: skip
    assert str(caught.value) == (
        f"x is {article} {form} picture; expected PNG, JPEG, WebP, GIF, BMP or {other}; "
        f"convert it first, or run: pip install {install}"
    )


def test_messages_name_what_can_be_read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    here = [form for form, (_, find, _) in ADDED_FORMATS.items() if find() is not None]
    assert [form for form in ADDED_FORMATS if form in readable_formats()] == here
    for form, (accepts, _, fix) in list(ADDED_FORMATS.items()):
        monkeypatch.setitem(ADDED_FORMATS, form, (accepts, lambda: None, fix))
    assert readable_formats() == "PNG, JPEG, WebP, GIF or BMP"
    assert readable_formats(["TGS"]) == "PNG, JPEG, WebP, GIF, BMP or TGS"


def test_readers_that_are_missing_are_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("PIL.AvifImagePlugin", "pillow_heif"):
        monkeypatch.setitem(sys.modules, module, None)  # type: ignore[arg-type]
    assert [find() for _, find, _ in ADDED_FORMATS.values()] == [None, None]


@pytest.mark.parametrize(
    ("head", "form"),
    [
        *((data, form) for form, data in ADDED.items()),
        (b"\0\0\0\x18ftypmif1\0\0\0\0avifmif1", "AVIF"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0heicmif1", "HEIC"),
        (b"\0\0\0\x18ftypmsf1\0\0\0\0avismsf1", "AVIF"),
        (b"\0\0\0\x10ftypmif1\0\0\0\0avif", "HEIC"),
        (b"\0\0\0\x1cftypisom\0\0\0\0avif", None),
        (b"\0\0\0\x1cmoovavif", None),
        (SAMPLES["GIF"], "GIF"),
        (b"", None),
    ],
)
def test_formats_are_told_by_their_first_bytes(head: bytes, form: str | None) -> None:
    assert picture_format(head) == form


@pytest.mark.parametrize("form", ADDED_FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_added_formats(form: str, mode: str, no_warnings: None) -> None:
    reader = ADDED_FORMATS[form][1]()
    if reader is None:
        pytest.skip(f"no reader of {form} is installed")
    if form == "HEIC":
        pytest.importorskip("pillow_heif").register_heif_opener()
    data = encoded(gradient(mode, (48, 34)), "HEIF" if form == "HEIC" else form)
    assert picture_format(data) == form
    expected = np.asarray(to_rgb(reader(io.BytesIO(data))))
    assert np.array_equal(np.asarray(to_rgb(decode(data))), expected)
    difference = np.abs(expected.astype(int) - np.asarray(to_rgb(gradient(mode, (48, 34)))))
    assert expected.shape == (34, 48, 3) and difference.mean() < 12
    for length in (40, len(data) // 2, len(data) - 1):
        with pytest.raises(KcdpError, match="cut is truncated or damaged"):
            decode(data[:length], name="cut")
    with pytest.raises(KcdpError, match="has 48 x 34 pixels"):
        decode(data, max_pixels=48 * 34 - 1)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    cases = {
        tmp_path / "missing.png": "does not exist; expected a picture file",
        tmp_path: "is a folder; expected a picture file",
        tmp_path / "a\0b": "cannot be read: ",
        tmp_path / ("x" * 300): "cannot be read: File name too long",
    }
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        cases[tmp_path / "pipe.png"] = "is not a regular file; expected a picture file"
    for path, reason in cases.items():
        with pytest.raises(KcdpError) as caught:
            decode(path)
        assert str(caught.value).startswith(f"{path} {reason}")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret.png"
    file.write_bytes(SAMPLES["PNG RGB"])

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(KcdpError, match=r"secret\.png cannot be read: Permission denied; expected a picture file"):
        decode(file)


def test_the_picture_holds_no_open_file(tmp_path: Path) -> None:
    file = tmp_path / "a.gif"
    file.write_bytes(SAMPLES["GIF"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = decode(file)
        file.unlink()
        assert to_rgb(image).size == (24, 17)


def test_source_names(tmp_path: Path) -> None:
    assert source_name(Path("a/b.png")) == "a/b.png" and source_name(b"x", 3) == "<bytes 3>"
    assert source_name(np.zeros(1), 0) == "<array 0>" and source_name(gradient(), 2) == "<image 2>"
    file = tmp_path / "c.png"
    file.write_bytes(SAMPLES["PNG RGB"])
    with Image.open(file) as image:
        assert source_name(image, 2) == str(file)
