"""Stills are what training makes of them, byte for byte; animations are the frames that play, weighted by time."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sticker_files import AVIF, BLUE, GREEN, RED, animated, encoded, gradient, moving, png_chunks, seeds, stills

from kcdp.decoding import ADDED_FORMATS, FORMATS, MAX_PIXELS, decode, picture_format, readable_formats
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.media import frames as frames_module
from kcdp.runtime.media.containers import outline
from kcdp.runtime.media.frames import read_frames
from kcdp.runtime.media.limits import LIMITS, Limits
from kcdp.runtime.media.sampling import as_shown, choose_frames

SPEC = PreprocessSpec(16)
STILLS = stills()
FORMS = ["GIF", "PNG", "WEBP", *(["AVIF"] if AVIF else [])]
LOSSLESS = ["GIF", "PNG", "WEBP"]
READABLE = readable_formats(frames_module.stickers_here())


def reason(source: Any, **options: Any) -> str:
    with pytest.raises(KcdpError) as caught:
        read_frames(source, SPEC, **{"name": "x", **options})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def colours(pixels: np.ndarray) -> list[tuple[int, ...]]:
    """The colour in the middle of each frame."""
    return [tuple(frame[8, 8]) for frame in pixels]


@pytest.mark.parametrize("name", STILLS)
def test_a_still_is_what_training_makes_of_it(name: str, tmp_path: Path) -> None:
    data = STILLS[name]
    file = tmp_path / "the ending says nothing.tgs"
    file.write_bytes(data)
    for spec in (SPEC, PreprocessSpec(33, resize_filter="bilinear", fit="squash", background=(9, 99, 200))):
        expected = spec.apply(decode(data))
        for source in (data, bytearray(data), memoryview(data), file, str(file), decode(data)):
            pixels, weights, frames = read_frames(source, spec)
            assert pixels.dtype == np.uint8 and pixels.shape == (1, spec.size, spec.size, 3) and frames == 1
            assert weights.dtype == np.float32 and weights.tolist() == [1.0]
            assert np.array_equal(pixels[0], expected)


def test_the_stills_are_many_and_of_every_format() -> None:
    assert len(STILLS) >= 90 and len({PreprocessSpec(64).apply(decode(d)).tobytes() for d in STILLS.values()}) >= 40
    found = {picture_format(data[:64]) for data in STILLS.values()}
    assert found == {*FORMATS, *(name for name, (_, find, _) in ADDED_FORMATS.items() if find() is not None)}


@pytest.mark.parametrize("form", FORMS)
def test_the_first_frame_is_what_training_makes_of_it(form: str) -> None:
    data = animated(form, moving(5), 70)
    pixels, _, frames = read_frames(data, SPEC)
    assert frames > 3 and np.array_equal(pixels[0], SPEC.apply(decode(data)))


@pytest.mark.parametrize("form", FORMS)
def test_frames_count_as_long_as_they_show(form: str) -> None:
    pixels, weights, frames = read_frames(animated(form, [RED, GREEN, BLUE], [100, 300, 600]), SPEC)
    assert frames == 3 and weights.dtype == np.float32
    assert np.allclose(weights, [0.1, 0.3, 0.6], atol=1e-6)
    assert [int(np.argmax(colour)) for colour in colours(pixels)] == [0, 1, 2]


@pytest.mark.parametrize("form", LOSSLESS)
def test_no_duration_counts_as_100_ms_as_in_browsers(form: str) -> None:
    _, weights, _ = read_frames(animated(form, [RED, GREEN, BLUE], [0, 300, 10]), SPEC)
    assert np.allclose(weights, [0.2, 0.6, 0.2])
    assert [as_shown(ms) for ms in (0, 10, 11, 20, 5000)] == [100, 100, 11, 20, 5000]


@pytest.mark.parametrize("form", LOSSLESS)
def test_equal_frames_are_one(form: str) -> None:
    data = animated(form, [RED, GREEN, RED, GREEN, BLUE], [100, 200, 300, 200, 200])
    pixels, weights, frames = read_frames(data, SPEC)
    assert frames == 5 and colours(pixels) == [RED[:3], GREEN[:3], BLUE[:3]]
    assert np.allclose(weights, [0.4, 0.4, 0.2])


@pytest.mark.parametrize("form", LOSSLESS)
def test_of_a_long_animation_equidistant_instants_are_seen(form: str) -> None:
    greys = [(10 * n, 10 * n, 10 * n, 255) for n in range(20)]
    durations = [20] * 10 + [400] + [20] * 9  # 780 ms, parts of 97.5 ms
    pixels, weights, frames = read_frames(animated(form, greys, durations), SPEC)
    assert frames == 20
    # 48.75 is in frame 2, 146.25 in 7, 243.75 to 536.25 in 10 (from 200 to 600), 633.75 in 12, 731.25 in 17
    assert [colour[0] // 10 for colour in colours(pixels)] == [2, 7, 10, 12, 17]
    assert np.allclose(weights, [1 / 8, 1 / 8, 4 / 8, 1 / 8, 1 / 8])


def test_choosing_frames_by_hand() -> None:
    assert choose_frames([1, 3], 8) == {0: 0.25, 1: 0.75}
    assert choose_frames([5], 1) == {0: 1.0}
    assert choose_frames([1, 1, 1, 1], 2) == {1: 0.5, 3: 0.5}  # instants 1 and 3: a frame begins, and shows
    assert choose_frames([10, 1, 1, 10], 3) == {
        0: pytest.approx(1 / 3),
        2: pytest.approx(1 / 3),
        3: pytest.approx(1 / 3),
    }
    assert choose_frames([1, 97, 1, 1], 2) == {1: 1.0}


@pytest.mark.parametrize("seed", range(20))
def test_choosing_frames_against_a_clock(seed: int) -> None:
    """Every millisecond of the playing time has its frame; the chosen ones show in the parts' middles."""
    rng = np.random.default_rng(seed)
    durations = (2 * rng.integers(1, 200, int(rng.integers(9, 60)))).tolist()
    most = int(rng.integers(1, 9))
    durations[-1] += (2 * most) - sum(durations) % (2 * most)
    timeline = np.repeat(np.arange(len(durations)), durations)
    instants = [(2 * part + 1) * len(timeline) // (2 * most) for part in range(most)]
    expected: dict[int, float] = {}
    for instant in instants:
        expected[int(timeline[instant])] = expected.get(int(timeline[instant]), 0) + 1 / most
    assert choose_frames(durations, most) == pytest.approx(expected)


@pytest.mark.parametrize("form", LOSSLESS)
@pytest.mark.parametrize("seed", range(4))
def test_frames_are_composed_on_the_whole_canvas(form: str, seed: int) -> None:
    """The encoder stores only what changes; what is read is the pictures that went in."""
    frames, options = moving(8, seed=seed), {"disposal": 2} if form == "GIF" else {}
    pixels, weights, count = read_frames(animated(form, frames, 50, **options), PreprocessSpec(40))
    expected = list(dict.fromkeys(PreprocessSpec(40).apply(frame).tobytes() for frame in frames))
    assert [frame.tobytes() for frame in pixels] == expected
    assert weights.sum() == pytest.approx(1, abs=1e-6) and count <= 8


@pytest.mark.parametrize("form", LOSSLESS)
def test_durations_are_read_as_pillow_reads_them(form: str) -> None:
    rng = np.random.default_rng(3)
    wanted = (10 * rng.integers(2, 100, 30)).tolist()
    data = animated(form, moving(30), wanted)
    found = outline(data, {"WEBP": "WebP"}.get(form, form), "x")
    assert found is not None and found.size == (40, 40) and found.first == 0
    with Image.open(io.BytesIO(data)) as image:
        shown = []
        for index in range(image.n_frames):  # type: ignore[attr-defined]
            image.seek(index)
            image.load()
            shown.append(image.info["duration"])
    assert list(found.durations) == shown and sum(shown) == sum(wanted) and len(shown) > 20


def test_an_animated_png_may_have_a_picture_that_does_not_play() -> None:
    data = animated("PNG", [RED, GREEN, BLUE], 100, default_image=True)
    assert tuple(np.asarray(decode(data).convert("RGB"))[0, 0]) == RED[:3]
    pixels, weights, frames = read_frames(data, SPEC)
    assert colours(pixels) == [GREEN[:3], BLUE[:3]] and weights.tolist() == [0.5, 0.5] and frames == 2
    pixels, _, frames = read_frames(animated("PNG", [RED, GREEN], 100, default_image=True), SPEC)
    assert colours(pixels) == [GREEN[:3]] and frames == 1


def test_an_animation_that_is_open_gives_its_current_frame() -> None:
    with Image.open(io.BytesIO(animated("GIF", [RED, GREEN], 100))) as image:
        image.seek(1)
        pixels, _, frames = read_frames(image, SPEC)
    assert colours(pixels) == [GREEN[:3]] and frames == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_animation_is_an_error(form: str) -> None:
    data = animated(form, moving(8), 50)
    for length in (len(data) // 3, len(data) // 2, len(data) - 30):
        assert "x is truncated or damaged (" in reason(data[:length])


def test_a_gif_without_its_last_byte_is_whole() -> None:
    data = animated("GIF", [RED, GREEN], 100)
    assert data.endswith(b";") and read_frames(data[:-1], SPEC)[2] == 2


def test_a_png_that_promises_more_frames_than_it_has() -> None:
    data = bytearray(animated("PNG", [RED, GREEN, BLUE], 100))
    start = data.index(b"acTL")
    data[start + 4 : start + 8] = struct.pack(">I", 4)
    data[start + 12 : start + 16] = struct.pack(">I", zlib.crc32(data[start : start + 12]))
    assert (
        reason(bytes(data)) == "x is truncated or damaged (frames are missing); expected a whole picture; copy it again"
    )


def long_gif(frames: int, side: int = 1) -> bytes:
    """As short as it can be."""
    frame = b"!\xf9\4\0\2\0\0\0" + b",\0\0\0\0" + struct.pack("<HH", side, side) + b"\0\2\2D\1\0"
    return b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


def test_limits_of_animations() -> None:
    assert read_frames(long_gif(500), SPEC)[2] == 500
    assert reason(long_gif(10_000)) == "x has 10000 frames; expected at most 2000; make it shorter first"
    limits = Limits(frames=3, animation_pixels=3 * 24 * 24, sampled=2)
    for form in LOSSLESS:
        pixels, weights, frames = read_frames(animated(form, [RED, GREEN, BLUE], 100), SPEC, limits=limits)
        assert frames == 3 and len(pixels) == 2 and weights.tolist() == [0.5, 0.5]
        assert reason(animated(form, [RED, GREEN, BLUE, RED], 100), limits=limits).startswith(
            "x has 4 frames; expected at"
        )
        assert reason(animated(form, [RED, GREEN, BLUE], 100, side=25), limits=limits) == (
            "x has 3 frames of 25 x 25 pixels (0.0 megapixels); expected at most 0.001728 megapixels; "
            "make it smaller or shorter first"
        )
    if AVIF:
        data = animated("AVIF", [RED, GREEN, BLUE, RED], 100)
        assert "x has 4 frames; expected at most 3" in reason(data, limits=limits)
        assert read_frames(data, SPEC, limits=Limits(animation_pixels=8 * 24 * 24))[2] == 4, "they are decoded twice"
        assert "at most 0.0023 megapixels" in reason(data, limits=Limits(animation_pixels=8 * 24 * 24 - 8))
        assert read_frames(data, SPEC, limits=Limits(coded_bytes=2 * len(data)))[2] == 4
        assert f"expected at most {len(data) - 1:,};" in reason(data, limits=Limits(coded_bytes=2 * len(data) - 1))


def test_limits_of_stills(tmp_path: Path) -> None:
    assert LIMITS.pixels <= MAX_PIXELS, "what is tagged could have been trained on"
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 6, 0, 0, 0)
    assert reason(png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))))) == (
        "x has 50000 x 50000 pixels (2500.0 megapixels); expected at most 32 megapixels; make it smaller first"
    )
    data = encoded(gradient(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        assert read_frames(source, SPEC, limits=Limits(file_bytes=len(data)))[2] == 1
        assert reason(source, limits=Limits(file_bytes=len(data) - 1)) == (
            f"x has {len(data)} bytes; expected at most {len(data) - 1}; make it smaller first"
        )
    assert "has 24 x 17 pixels" in reason(gradient(), limits=Limits(pixels=400))
    for name, share in (("AVIF RGB", 1), ("HEIC RGB", 1), ("WebP lossy", 5)):
        if data := STILLS.get(name, b""):
            most = -(-len(data) // share)
            assert read_frames(data, SPEC, limits=Limits(coded_bytes=most))[2] == 1
            assert f"at most {(most - 1) * share}; make it" in reason(data, limits=Limits(coded_bytes=most - 1))


def test_a_gif_whose_later_frame_widens_the_canvas() -> None:
    wide = b"!\xf9\4\0\2\0\0\0" + b",\0\0\0\0" + struct.pack("<HH", 65_000, 65_000) + b"\0\2\2D\1\0"
    data = long_gif(3)[:-1] + wide + b";"
    assert reason(data).startswith(
        "x has 4 frames of 65000 x 65000 pixels (16900.0 megapixels); expected at most 150 mega"
    )


def test_files_of_nothing_but_tiny_blocks() -> None:
    png = png_chunks((b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)))
    assert "x has more than 65536 chunks in it" in reason(png + png_chunks((b"teSt", b""))[8:] * 70_000)
    jpeg = encoded(gradient(), "JPEG")
    assert "x has more than 65536 segments in it" in reason(jpeg[:2] + b"\xff\xe5\0\2" * 70_000 + jpeg[2:])
    large = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    scans = large.count(b"\xff\xda")
    scan = large[large.rindex(b"\xff\xda") : -2]
    assert 2 < scans < 15 and read_frames(large, SPEC)[2] == 1
    assert read_frames(large[:-2] + scan * (31 - scans) + large[-2:], SPEC)[2] == 1
    assert "x has more than 31 scans in it" in reason(large[:-2] + scan * (32 - scans) + large[-2:])
    webp = encoded(gradient(), "WEBP")
    assert "x has more than 65536 chunks in it" in reason(webp + b"teSt\0\0\0\0" * 70_000)
    assert "x has more than 65536 frames in it" in reason(long_gif(70_000))
    assert "x has more than 1000000 blocks in it" in reason(long_gif(1)[:-1] + b"!\xfe" + b"\1x" * 1_000_001 + b"\0;")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x is empty (0 bytes); expected a picture file; copy it again"),
        (b"hello, world", f"x is not a picture (it begins with b'hello, w'); expected {READABLE}"),
        (b"PK\3\4rest", f"x is a ZIP archive; expected {READABLE}; convert it first"),
        (
            b"\0\0\0\x1cftypisom\0\0\0\0",
            f"x is an MP4 or QuickTime video; expected {READABLE}; convert",
        ),
        (7, "x: received int; expected a path, a file's bytes, a Pillow image or a uint8 array"),
        (np.zeros((2, 2)), "x: received float64 [2, 2]; expected uint8 [H, W]"),
    ],
)
def test_what_is_no_sticker(content: Any, message: str) -> None:
    assert reason(content).startswith(message)


def test_stickers_are_named_where_they_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for packages, more in ((("rlottie_python",), ["TGS"]), (("av", "rlottie_python"), ["TGS", "WebM"]), ((), [])):
        monkeypatch.setattr(frames_module, "find_spec", lambda name, here=packages: name in here or None)
        assert reason(b"hello, world").endswith(f"; expected {readable_formats(more)}")


def test_no_failure_gets_out_as_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, message in (
        (MemoryError(), "x needs more memory than there is; make it smaller first"),
        (RecursionError("too deep"), "x cannot be read (too deep); expected a whole picture; copy it again"),
        (struct.error(), "x cannot be read (error); expected a whole picture; copy it again"),
    ):

        def fail(*_: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(PreprocessSpec, "apply", fail)
        assert reason(encoded(gradient(), "PNG")) == message


def test_limits_are_checked() -> None:
    for field in fields(Limits):
        for value in (0, -1, "8", None, True, 1.5 if field.name != "seconds" else float("nan"), 1 << 50):
            if field.name == "archive_nesting" and value == 0:
                continue
            with pytest.raises(KcdpError, match=rf"limits\.{field.name} is .*; expected a (whole )?number from"):
                Limits(**{field.name: value})
    assert Limits(seconds=1, archive_nesting=0).sampled == 8


def test_the_seeds_are_sound() -> None:
    """What the damaging tests start from is read without complaint."""
    for name, data in seeds().items():
        if name != "zip":
            assert read_frames(data, SPEC, name=name)[0].shape[1:] == (16, 16, 3)
