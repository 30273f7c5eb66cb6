"""Stickers made on the spot: still, animated, vector, video, archives; and ways to damage them."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from kcdp.decoding import ADDED_FORMATS

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:
    pillow_heif = None
try:
    import av
except ImportError:
    av = None
try:
    import rlottie_python
except ImportError:
    rlottie_python = None

AVIF = ADDED_FORMATS["AVIF"][1]() is not None
Colour = tuple[int, ...]
RED, GREEN, BLUE = (255, 0, 0, 255), (0, 255, 0, 255), (0, 0, 255, 255)


def gradient(mode: str = "RGB", size: tuple[int, int] = (24, 17)) -> Image.Image:
    """A picture in which no two corners are alike."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    rgba = np.stack([x, y, 255 - x, np.where(x + y > 200, 255, 60)], axis=-1).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((x * 257).astype(np.uint16))
    return Image.fromarray(rgba).convert(mode)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=form, **options)
    return stream.getvalue()


def two_colours() -> Image.Image:
    """A palette picture: red, and on the left half blue."""
    image = Image.new("P", (12, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (0, 0, 6, 8))
    return image


def turned(orientation: int) -> bytes:
    """EXIF that asks for an orientation, 1 to 8."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def png_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, with their lengths and checksums."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def raw_png(samples: np.ndarray, colour_type: int, *, interlaced: bool = False) -> bytes:
    """A PNG that Pillow does not write: 16 bits a channel, Adam7. Samples: uint8 or uint16 [H, W, channels]."""
    height, width = samples.shape[:2]
    depth = 8 * samples.dtype.itemsize
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    rows = b""
    for left, top, across, down in passes if interlaced else ((0, 0, 1, 1),):
        part = samples[top::down, left::across]
        if part.size:
            rows += b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in part)
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, int(interlaced))
    return png_chunks((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def top_down_bmp() -> bytes:
    """Rows from the top, as a negative height says."""
    data = bytearray(encoded(gradient("RGB", (24, 16)), "BMP"))
    data[22:26] = struct.pack("<i", -16)
    return bytes(data)


def animated(
    form: str, frames: Sequence[Colour | Image.Image], durations: int | Sequence[int], *, side: int = 24, **options: Any
) -> bytes:
    """GIF, PNG, WEBP or AVIF; frames are colours or RGBA pictures, durations are in ms."""
    images = [f if isinstance(f, Image.Image) else Image.new("RGBA", (side, side), f) for f in frames]
    if form == "WEBP":
        options = {"lossless": True, "exact": True, **options}
    if form == "AVIF":
        options = {"quality": 100, "subsampling": "4:4:4", "speed": 10, **options}
    duration = durations if isinstance(durations, int) else list(durations)
    return encoded(images[0], form, save_all=True, append_images=images[1:], duration=duration, loop=0, **options)


def moving(count: int, side: int = 40, seed: int = 0) -> list[Image.Image]:
    """Frames of which each changes a part of the one before, some of it to transparent; alpha is 0 or 255."""
    rng = np.random.default_rng(seed)
    canvas = np.zeros((side, side, 4), np.uint8)
    frames = []
    for _ in range(count):
        left, top = rng.integers(0, side - 8, 2)
        colour = [*rng.integers(0, 256, 3), 255] if rng.random() < 0.8 else [0, 0, 0, 0]
        canvas[top : top + rng.integers(4, 20), left : left + rng.integers(4, 20)] = colour
        frames.append(Image.fromarray(canvas.copy()))
    return frames


def lottie(frames: int = 60, **changes: Any) -> dict[str, Any]:
    """A square that moves from the left to the right edge, half transparent."""
    place = {"p": {"k": [0, 0]}, "a": {"k": [0, 0]}, "s": {"k": [100, 100]}, "r": {"k": 0}, "o": {"k": 100}}
    square = {
        "ty": "gr",
        "it": [
            {"ty": "rc", "p": {"k": [0, 0]}, "s": {"k": [160, 160]}, "r": {"k": 0}},
            {"ty": "fl", "c": {"k": [1, 0, 0, 1]}, "o": {"k": 100}},
            {"ty": "tr", **place},
        ],
    }
    ease = {"i": {"x": [1], "y": [1]}, "o": {"x": [0], "y": [0]}}
    moves = {"a": 1, "k": [{"t": 0, "s": [80, 256, 0], "e": [432, 256, 0], **ease}, {"t": frames}]}
    still = {"o": {"k": 50}, "a": {"k": [0, 0, 0]}, "s": {"k": [100, 100, 100]}, "r": {"k": 0}}
    layer = {"ty": 4, "ip": 0, "op": frames, "st": 0, "ks": {"p": moves, **still}, "shapes": [square]}
    return {"v": "5.5.2", "fr": 60, "ip": 0, "op": frames, "w": 512, "h": 512, "layers": [layer], **changes}


def rich_lottie(frames: int = 30) -> dict[str, Any]:
    """One of each thing that a Lottie animation may hold: paths, gradients, strokes, masks, mattes, compositions."""
    ease = {"i": {"x": [0.6], "y": [1]}, "o": {"x": [0.3], "y": [0]}}
    turning = {"a": 1, "k": [{"t": 0, "s": [0], "e": [360], **ease}, {"t": frames}]}
    place = {"p": {"k": [256, 256, 0]}, "a": {"k": [0, 0, 0]}, "s": {"k": [100, 100, 100]}, "o": {"k": 90}}
    corners = [[-99, -99], [99, 0], [0, 99]]
    path = {"i": [[0, 0], [10, 0], [0, 9]], "o": [[0, 0], [0, 10], [9, 0]], "v": corners, "c": True}
    bent = {**path, "v": [[-90, -90], [120, 0], [0, 120]]}
    gradient = {"p": 2, "k": {"k": [0, 1, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0.5]}}
    shapes = [
        {"ty": "gr", "nm": "g", "it": [
            {"ty": "sh", "ks": {"a": 1, "k": [{"t": 0, "s": [path], "e": [bent], **ease}, {"t": frames}]}},
            {"ty": "gf", "t": 1, "g": gradient, "s": {"k": [0, 0]}, "e": {"k": [99, 99]}, "o": {"k": 80}},
            {"ty": "st", "c": {"k": [0, 0, 1, 1]}, "o": {"k": 70}, "w": {"k": 9}, "lc": 2, "lj": 2, "ml": 4,
             "d": [{"n": "d", "v": {"k": 20}}, {"n": "g", "v": {"k": 9}}, {"n": "o", "v": {"k": 3}}]},
            {"ty": "tr", "p": {"k": [9, 9]}, "a": {"k": [0, 0]}, "s": {"k": [90, 90]}, "r": turning, "o": {"k": 100}}]},
        {"ty": "gr", "it": [
            {"ty": "sr", "sy": 1, "pt": {"k": 5}, "p": {"k": [0, 0]}, "r": {"k": 0}, "ir": {"k": 40}, "is": {"k": 0},
             "or": {"k": 90}, "os": {"k": 10}},
            {"ty": "el", "p": {"k": [20, 20]}, "s": {"k": [60, 40]}},
            {"ty": "tm", "s": {"k": 10}, "e": turning, "o": {"k": 0}, "m": 1},
            {"ty": "gs", "t": 2, "g": gradient, "s": {"k": [0, 0]}, "e": {"k": [50, 50]}, "h": {"k": 10}, "a": {"k": 0},
             "o": {"k": 100}, "w": {"k": 4}, "lc": 1, "lj": 1},
            {"ty": "rp", "c": {"k": 3}, "o": {"k": 0}, "m": 1,
             "tr": {"p": {"k": [40, 0]}, "a": {"k": [0, 0]}, "s": {"k": [80, 80]}, "r": {"k": 10}, "so": {"k": 100},
                    "eo": {"k": 50}}},
            {"ty": "tr", "p": {"k": [0, 0]}, "a": {"k": [0, 0]}, "s": {"k": [99, 99]}, "r": {"k": 0}, "o": {"k": 99}}]},
    ]  # fmt: skip
    mask = {"mode": "a", "inv": False, "pt": {"k": path}, "o": {"k": 100}, "x": {"k": 0}}
    common = {"ip": 0, "op": frames, "st": 0, "sr": 1}
    layers = [
        {"ty": 4, "ind": 1, "td": 1, **common, "ks": {**place, "r": turning}, "shapes": shapes},
        {"ty": 0, "ind": 2, "tt": 1, "refId": "c", "w": 512, "h": 512, **common, "ks": {**place, "r": {"k": 0}},
         "tm": {"a": 1, "k": [{"t": 0, "s": [0], "e": [0.5], **ease}, {"t": frames}]}},
        {"ty": 4, "ind": 3, "parent": 4, **common, "ks": {**place, "r": {"k": 5}}, "shapes": shapes,
         "hasMask": True, "masksProperties": [mask]},
        {"ty": 3, "ind": 4, **common, "ks": {**place, "r": turning}},
        {"ty": 1, "ind": 5, "sw": 100, "sh": 100, "sc": "#00ff00", **common, "ks": {**place, "r": turning}},
    ]  # fmt: skip
    inner = [{"ty": 4, "ind": 1, **common, "ks": {**place, "r": {"k": 0}}, "shapes": shapes[:1]}]
    markers = [{"cm": "start", "tm": 0, "dr": 9}]
    return lottie(frames, layers=layers, assets=[{"id": "c", "layers": inner}], markers=markers)


def tgs(content: Any = None) -> bytes:
    """Any JSON as a .tgs file; by default that of ``lottie``."""
    return gzip.compress(json.dumps(lottie() if content is None else content).encode(), mtime=0)


def webm(
    count: int = 10,
    size: tuple[int, int] = (64, 64),
    *,
    codec: str = "libvpx-vp9",
    alpha: bool = True,
    container: str = "webm",
) -> bytes:
    """Red above; below transparent in the first half of the frames, then half transparent and ever greener."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        video = output.add_stream(codec, rate=30)
        video.width, video.height = size
        video.pix_fmt = "yuva420p" if alpha else "yuv420p"
        if alpha:
            video.options = {"auto-alt-ref": "0"}  # libvpx can do no other with alpha
        for index in range(count):
            pixels = np.zeros((size[1], size[0], 4), np.uint8)
            pixels[: size[1] // 2] = RED
            pixels[size[1] // 2 :] = (0, 200 * index // count, 0, 0 if index < count // 2 else 128)
            for packet in video.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")):
                output.mux(packet)
        for packet in video.encode():
            output.mux(packet)
    return stream.getvalue()


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def stills() -> dict[str, bytes]:
    """Awkward still pictures of every format."""
    rgba, deep = np.asarray(gradient("RGBA")), np.asarray(gradient("RGBA")).astype(np.uint16) * 257
    files = {f"PNG {mode}": encoded(gradient(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")}
    files |= {
        "PNG P transparent": encoded(two_colours(), "PNG", transparency=0),
        "PNG P alpha per colour": encoded(two_colours(), "PNG", transparency=b"\x00\x80"),
        "PNG RGB colour key": encoded(gradient(), "PNG", transparency=(0, 0, 255)),
        "PNG L colour key": encoded(gradient("L"), "PNG", transparency=29),
        "PNG I;16 colour key": encoded(gradient("I;16"), "PNG", transparency=0),
        "PNG 1 colour key": encoded(gradient("1"), "PNG", transparency=255),
        "PNG palette of 1 bit": encoded(two_colours(), "PNG", bits=1),
        "PNG palette of 2 bits": encoded(two_colours(), "PNG", bits=2),
        "PNG palette of 4 bits": encoded(two_colours(), "PNG", bits=4),
        "PNG RGB 16 bits": raw_png(deep[..., :3], 2),
        "PNG RGBA 16 bits": raw_png(deep, 6),
        "PNG LA 16 bits": raw_png(deep[..., 2:], 4),
        "PNG L 16 bits": raw_png(deep[..., :1], 0),
        "PNG interlaced RGBA": raw_png(rgba, 6, interlaced=True),
        "PNG interlaced RGB": raw_png(rgba[..., :3], 2, interlaced=True),
        "PNG interlaced L": raw_png(rgba[..., :1], 0, interlaced=True),
        "PNG stored": encoded(gradient("RGBA"), "PNG", compress_level=0),
        "PNG fully transparent": encoded(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), "PNG"),
        "PNG with text": encoded(gradient(), "PNG", pnginfo=_text()),
        "PNG one animated frame": animated("PNG", [RED], 100),
    }
    files |= {f"JPEG turned {n}": encoded(gradient(), "JPEG", exif=turned(n)) for n in range(1, 9)}
    files |= {f"PNG turned {n}": encoded(gradient("RGBA"), "PNG", exif=turned(n)) for n in (2, 6, 8)}
    files |= {f"WebP turned {n}": encoded(gradient(), "WEBP", exif=turned(n)) for n in (3, 5)}
    files |= {
        **{f"JPEG {mode}": encoded(gradient(mode), "JPEG") for mode in ("RGB", "L", "CMYK", "YCbCr")},
        "JPEG progressive": encoded(gradient(), "JPEG", progressive=True),
        "JPEG progressive L": encoded(gradient("L"), "JPEG", progressive=True),
        "JPEG 4:4:4": encoded(gradient(), "JPEG", subsampling=0),
        "JPEG 4:2:2": encoded(gradient(), "JPEG", subsampling=1),
        "JPEG quality 1": encoded(gradient(), "JPEG", quality=1),
        "JPEG with restarts": encoded(gradient("RGB", (80, 64)), "JPEG", restart_marker_rows=1),
        "JPEG with a comment": encoded(gradient(), "JPEG", comment=b"x" * 9000),
        "JPEG with bytes behind its end": encoded(gradient(), "JPEG") + b"rest" * 99,
        "JPEG with broken EXIF": encoded(gradient(), "JPEG", exif=b"Exif\0\0rubbish, no TIFF"),
        "WebP lossy": encoded(gradient(), "WEBP"),
        "WebP lossy alpha": encoded(gradient("RGBA"), "WEBP"),
        "WebP lossless": encoded(gradient(), "WEBP", lossless=True),
        "WebP lossless alpha": encoded(gradient("RGBA"), "WEBP", lossless=True),
        "WebP quality 1": encoded(gradient(), "WEBP", quality=1),
        "WebP one animated frame": animated("WEBP", [RED], 100),
        **{f"GIF {mode}": encoded(gradient(mode), "GIF") for mode in ("P", "L", "1", "RGB", "RGBA")},
        "GIF transparent": encoded(two_colours(), "GIF", transparency=0),
        "GIF not interlaced": encoded(gradient("P"), "GIF", interlace=0),
        "GIF interlaced": encoded(gradient("P"), "GIF", interlace=1),
        "GIF one animated frame": animated("GIF", [RED], 100),
        "GIF with a comment": encoded(gradient("P"), "GIF", comment=b"x" * 2000),
        **{f"BMP {mode}": encoded(gradient(mode), "BMP") for mode in ("RGB", "RGBA", "P", "L", "1")},
        "BMP from the top": top_down_bmp(),
    }
    for form in ("PNG", "JPEG", "WEBP", "GIF", "BMP"):
        for size in ((1, 1), (1, 300), (300, 1), (2500, 3)):
            files[f"{form} {size[0]} x {size[1]}"] = encoded(gradient("RGB", size), form)
    files["PNG large"] = encoded(Image.new("RGBA", (1800, 1200), (1, 2, 3, 128)), "PNG", compress_level=1)
    if AVIF:
        files |= {f"AVIF {mode}": encoded(gradient(mode), "AVIF", speed=10) for mode in ("RGB", "RGBA", "L")}
        files["AVIF turned"] = encoded(gradient(), "AVIF", speed=10, exif=turned(6))
    if pillow_heif is not None:
        files |= {f"HEIC {mode}": encoded(gradient(mode, (48, 34)), "HEIF") for mode in ("RGB", "RGBA", "L")}
        files["HEIC turned"] = encoded(gradient("RGB", (48, 34)), "HEIF", exif=turned(6))
        files["HEIC two pictures"] = encoded(
            gradient("RGB", (48, 34)), "HEIF", save_all=True, append_images=[Image.new("RGB", (48, 34))]
        )
    return files


def _text() -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Comment", "x" * 5000, zip=True)
    info.add_itxt("Title", "\N{GRINNING FACE}" * 50)
    return info


def seeds() -> dict[str, bytes]:
    """One or more sound files of every kind that is read, to be damaged."""
    kept = ("PNG RGBA", "PNG P transparent", "PNG interlaced RGBA", "PNG turned 6", "JPEG RGB", "JPEG progressive",
            "JPEG turned 6", "WebP lossy alpha", "WebP lossless alpha", "GIF transparent", "BMP P", "BMP RGBA",
            "AVIF RGBA", "HEIC RGBA")  # fmt: skip
    known = stills()
    files = {name: known[name] for name in kept if name in known}
    files |= {f"animated {form}": animated(form, moving(12), 50) for form in ("GIF", "PNG", "WEBP")}
    if AVIF:
        files["animated AVIF"] = animated("AVIF", moving(5), 50, quality=50)
    if rlottie_python is not None:
        files["tgs"], files["tgs rich"] = tgs(), tgs(rich_lottie())
    if av is not None:
        files["webm"] = webm()
        files["webm vp8"] = webm(codec="libvpx", alpha=False)
    inside = {"a.png": known["PNG RGBA"], "d/b.webp": known["WebP lossy"], "emoji.txt": b'{"a": "\xe2\x98\x95"}'}
    files["zip"] = zipped(inside)
    return files


_NUMBERS = (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff")


def damaged(data: bytes, others: Sequence[bytes], rng: np.random.Generator) -> bytes:
    """Bits flipped, bytes overwritten, cut, doubled or removed pieces, a header of another file, large numbers."""
    way = int(rng.integers(8))
    changed = bytearray(data)
    if way in (0, 1, 2):
        for place in rng.integers(0, len(data), 1 + int(rng.integers(1 + 8 * way))):
            changed[place] ^= 1 << int(rng.integers(8)) if way else int(rng.integers(1, 256))
    elif way == 3:
        del changed[int(rng.integers(1, len(data))) :]
    elif way == 4:
        start, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
        changed[start:start] = changed[start : start + length] * int(rng.integers(1, 9))
    elif way == 5:
        start = int(rng.integers(len(data)))
        del changed[start : start + int(rng.integers(1, 64))]
    elif way == 6:
        head = int(rng.integers(1, 64))
        changed[:head] = others[int(rng.integers(len(others)))][:head]
    else:
        for place in rng.integers(0, max(1, min(200, len(data) - 4)), 2):
            changed[place : place + 4] = _NUMBERS[int(rng.integers(len(_NUMBERS)))]
    return bytes(changed)


def damaged_tgs(data: bytes, rng: np.random.Generator) -> bytes:
    """Damage inside the gzip data, which its checksum would otherwise find: bytes of the JSON, or its values."""
    text = gzip.decompress(data)
    if rng.random() < 0.3:
        return gzip.compress(damaged(text, [text], rng), mtime=0)
    content = json.loads(text)
    for _ in range(int(rng.integers(1, 4))):
        _change_a_value(content, rng)
    return gzip.compress(json.dumps(content).encode(), mtime=0)


_VALUES: tuple[Any, ...] = (
    -1,
    0,
    1e30,
    -1e30,
    2**31,
    2**63,
    1e-9,
    None,
    True,
    "",
    "x",
    [],
    {},
    [1],
    [[]],
    {"k": []},
    1.5,
)


def _change_a_value(content: Any, rng: np.random.Generator) -> None:
    """Walks down to a random place and replaces, removes or doubles what is there."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        if not keys:
            return
        below = [key for key in keys if isinstance(content[key], (dict, list)) and content[key]]
        if below and rng.random() < 0.85:
            content = content[below[int(rng.integers(len(below)))]]
            continue
        key = keys[int(rng.integers(len(keys)))]
        child = content[key]
        way = rng.random()
        if way < 0.65:
            content[key] = _VALUES[int(rng.integers(len(_VALUES)))]
        elif way < 0.85:
            del content[key]
        elif isinstance(content, list):
            content.append(child)
        else:
            content[str(rng.choice(["ty", "k", "s", "e", "t", "ks", "shapes", "refId", "p"]))] = child
        return
