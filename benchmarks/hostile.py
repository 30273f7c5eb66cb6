"""Thousands of damaged stickers and the known bombs, read as ``kcdp tag`` reads them: crashes, slowest, peak memory.

    python benchmarks/hostile.py                      5,000 damaged files and the bombs
    python benchmarks/hostile.py --files 200 --unguarded 200

Files are damaged copies of sound ones of every kind, the same for the same ``--seed``. They are read in a process of
its own, so that a crash of native code is counted and not the end. ``--unguarded`` reads .tgs and WebM stickers once
more without the processes that guard them, to see what they are worth. The last line is one JSON object; with
``--out FILE`` it is also written there. Exit status 1 where anything crashed, hung or raised something else.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "unit"))
HANG_SECONDS = 60.0
SIDE = 224


def main() -> int:
    """Read everything; with ``--worker`` read a part of it and print a line for each file."""
    parser = argparse.ArgumentParser(description="Damaged stickers and bombs: crashes, slowest file, peak memory.")
    parser.add_argument("--files", type=int, default=5000, help="damaged files (default: 5000)")
    parser.add_argument("--unguarded", type=int, default=0, metavar="N", help="read N .tgs and N WebM files unguarded")
    parser.add_argument("--no-bombs", action="store_true", help="leave out the bombs")
    parser.add_argument("--seed", type=int, default=0, help="of the damage (default: 0)")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    parser.add_argument("--worker", metavar="TASK", help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return 0
    tasks = {"damaged": args.files, "bombs": 0 if args.no_bombs else len(BOMBS)}
    installed = {"tgs": find_spec("rlottie_python"), "webm": find_spec("av")}
    tasks |= {f"unguarded {kind}": args.unguarded for kind, spec in installed.items() if spec is not None}
    parts = {task: summary(list(run(args, task, count))) for task, count in tasks.items() if count}
    result = {"benchmark": "hostile", "date": time.strftime("%Y-%m-%d"), "seed": args.seed, "machine": machine(),
              "parts": parts}  # fmt: skip
    for task, part in parts.items():
        counts = [f"{key} {value}" for key, value in part.items() if not isinstance(value, (list, dict))]
        print(f"{task}: {', '.join(counts)}")
    if args.out:
        from kcdp.files import write_json

        write_json(args.out, result)
    print(json.dumps(result))
    guarded = [part for task, part in parts.items() if not task.startswith("unguarded")]
    return int(any(part["crashed"] or part["hung"] or part["raised"] for part in guarded))


def run(args: argparse.Namespace, task: str, count: int) -> Iterator[dict[str, Any]]:
    """A row for each file of a task; after a crash another process goes on behind the file that caused it."""
    done = 0
    while done < count:
        command = [sys.executable, __file__, "--worker", task, "--start", str(done), "--files", str(count),
                   "--seed", str(args.seed)]  # fmt: skip
        with tempfile.TemporaryFile("w+") as lines:
            process = subprocess.Popen(command, stdout=lines, stderr=subprocess.DEVNULL)
            rows, hung = watch(process, lines)
        yield from rows
        done += len(rows)
        if done < count:
            outcome = "hung" if hung else "crashed"
            yield {"name": f"{task} {done}", "outcome": outcome, "status": process.returncode, "seconds": 0.0}
            done += 1


def watch(process: subprocess.Popen[bytes], lines: Any) -> tuple[list[dict[str, Any]], bool]:
    """The rows that a process wrote until it ended; whether it had to be ended because no row came."""
    size, last, hung = 0, time.monotonic(), False
    while process.poll() is None:
        time.sleep(0.05)
        now = os.fstat(lines.fileno()).st_size
        if now != size:
            size, last = now, time.monotonic()
        if time.monotonic() - last > HANG_SECONDS:
            hung = True
            process.kill()
    lines.seek(0)
    return [json.loads(line) for line in lines.read().splitlines() if line.endswith("}")], hung


def work(args: argparse.Namespace) -> None:
    """Reads the files of a task from ``--start`` on."""
    import sticker_files

    warnings.simplefilter("ignore")
    seeds = sticker_files.seeds()
    reader = unguarded if args.worker.startswith("unguarded") else as_tagged
    with tempfile.TemporaryDirectory() as scratch:
        for index in range(args.start, len(BOMBS) if args.worker == "bombs" else args.files):
            if args.worker == "bombs":
                name = list(BOMBS)[index]
                data = BOMBS[name]()
            else:
                kind = args.worker.removeprefix("unguarded ") if args.worker != "damaged" else ""
                name, data = damaged_file(seeds, index, args.seed, kind)
            file = Path(scratch) / ("x.zip" if data[:2] == b"PK" else "x")
            file.write_bytes(data)
            del data
            print("made", flush=True)  # making it is no hanging
            forget_peak()
            started, spent = time.perf_counter(), time.process_time()
            outcome, reasons = outcomes(reader, file, name)
            row = {
                "name": name, "bytes": file.stat().st_size, "outcome": outcome, "reasons": reasons,
                "seconds": round(time.perf_counter() - started, 6),
                "cpu_seconds": round(time.process_time() - spent, 6),
                "peak_mib": peak_mib("self"), "decoder_peak_mib": decoder_peak_mib(),
            }  # fmt: skip
            print(json.dumps(row), flush=True)
            file.unlink()


def outcomes(reader: Callable[[Path, str], int], file: Path, name: str) -> tuple[str, list[str]]:
    """ "read", "refused" (in one line) or "raised", with the lines."""
    from kcdp.errors import KcdpError

    try:
        return ("read", []) if reader(file, name) else ("read", ["no stickers in it"])
    except KcdpError as error:
        reason = str(error).replace(str(file), "FILE")[:300]
        return ("refused" if "\n" not in str(error) else "raised"), [reason]
    except BaseException as error:
        return "raised", [f"{type(error).__name__}: {error}"[:300]]


def as_tagged(file: Path, name: str) -> int:
    """Number of stickers in a file; the first error is raised when all have been read."""
    from kcdp.errors import KcdpError
    from kcdp.preprocess import PreprocessSpec
    from kcdp.runtime import find_items
    from kcdp.runtime.media.frames import read_frames

    first, count = None, 0
    for item in find_items(file):
        count += 1
        try:
            if item.error is not None:
                raise item.error
            source = item.source() if callable(item.source) else item.source
            pixels, weights, frames = read_frames(source, PreprocessSpec(SIDE), name=item.name)
            if not (1 <= len(pixels) <= frames and abs(float(weights.sum()) - 1) < 1e-5):
                raise AssertionError(f"{len(pixels)} pictures of {frames} frames, weights {weights}")
        except KcdpError as error:
            first = first or error
    if first is not None:
        raise first
    return count


def unguarded(file: Path, name: str) -> int:
    """The same of one sticker, in this process."""
    from kcdp.preprocess import PreprocessSpec
    from kcdp.runtime.media import lottie, video
    from kcdp.runtime.media.limits import LIMITS

    data = file.read_bytes()
    reader = lottie if data[:2] == b"\x1f\x8b" else video
    reader.read_frames(data, PreprocessSpec(SIDE), name, LIMITS)
    return 1


def damaged_file(seeds: dict[str, bytes], index: int, seed: int, kind: str) -> tuple[str, bytes]:
    """The same file for the same seed and index; in turn of every kind that ``kind`` begins."""
    import sticker_files

    rng = np.random.default_rng([seed, index])
    names = [name for name in seeds if name.startswith(kind)]
    name = names[index % len(names)]
    if name.startswith("tgs") and rng.random() < 0.8:
        return f"{name} {index}", sticker_files.damaged_tgs(seeds[name], rng)
    return f"{name} {index}", sticker_files.damaged(seeds[name], list(seeds.values()), rng)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the slowest file, the most memory."""
    counts = Counter(row["outcome"] for row in rows)
    reasons = [reason for row in rows for reason in row.get("reasons", [])]
    timed = sorted(rows, key=lambda row: -row["seconds"])
    large, guarded = (
        max((row[key] for row in rows if row.get(key) is not None), default=None)
        for key in ("peak_mib", "decoder_peak_mib")
    )
    return {
        "files": len(rows), **{key: counts.get(key, 0) for key in ("read", "refused", "raised", "crashed", "hung")},
        "decoder_crashes_caught": sum("made its decoder crash" in reason for reason in reasons),
        "decoder_timeouts": sum("took longer than" in reason for reason in reasons),
        "slowest_seconds": timed[0]["seconds"], "median_seconds": timed[len(timed) // 2]["seconds"],
        "peak_mib": large, "decoder_peak_mib": guarded,
        "slowest": [{k: v for k, v in row.items() if k != "reasons"} for row in timed[:5]],
        "failures": [row for row in rows if row["outcome"] in ("raised", "crashed", "hung")][:50],
        "bombs": {row["name"]: {k: v for k, v in row.items() if k != "name"} for row in rows if row["name"] in BOMBS},
    }  # fmt: skip


def forget_peak() -> None:
    """The peak is that of the next file (Linux)."""
    if os.path.exists("/proc/self/clear_refs"):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_mib(process: str | int) -> float | None:
    """A process's most resident memory in MiB, this one's since ``forget_peak``; None where that is not known."""
    file = Path(f"/proc/{process}/status")
    lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmHWM")), None)


def decoder_peak_mib() -> float | None:
    """The same of the processes that guard decoders, as long as they live."""
    from kcdp.runtime.media import worker

    return max((peak_mib(idle._process.pid) or 0.0 for idle in worker._POOL._idle), default=None)


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":")[1].strip() if names else cpu
    packages = {}
    for name in ("numpy", "pillow", "pillow-heif", "rlottie-python", "av"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **packages}


def _png(width: int, height: int, rows: bytes, *more: tuple[bytes, bytes], colour: int = 6) -> bytes:
    import sticker_files

    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    return sticker_files.png_chunks((b"IHDR", header), *more, (b"IDAT", zlib.compress(rows)), (b"IEND", b""))


def _gif(frames: int, side: int, width: int = 1) -> bytes:
    frame = b"!\xf9\4\0\2\0\0\0" + b",\0\0\0\0" + struct.pack("<HH", width, width) + b"\0\2\2D\1\0"
    return b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0\0\0\0\xff\xff\xff" + frame * frames + b";"


def _jpeg(scans: int) -> bytes:
    """A progressive picture of 5,580 x 5,580 pixels whose last scan is repeated."""
    import sticker_files
    from PIL import Image

    data = sticker_files.encoded(Image.new("RGB", (5580, 5580), (9, 99, 199)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def _still(form: str, tiles: int = 11, **options: Any) -> bytes:
    """A picture of noise, half transparent where that can be; of 31 megapixels, if not of fewer tiles."""
    import sticker_files
    from PIL import Image

    mode = "RGB" if form == "JPEG" else "RGBA"
    tile = np.random.default_rng(0).integers(0, 256, (508, 508, len(mode)), dtype=np.uint8)
    return sticker_files.encoded(Image.fromarray(np.tile(tile, (tiles, tiles, 1))), form, **options)


def _noise(form: str, frames: int, **options: Any) -> bytes:
    """Animated noise of 512 x 512 pixels: little to compress, everything changes."""
    import sticker_files
    from PIL import Image

    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (4, 512, 512, 4), dtype=np.uint8)
    noise[..., 3] |= 0xF0
    few = [Image.fromarray(frame, "RGBA") for frame in noise]
    if form != "GIF":
        return sticker_files.animated(form, [few[n % 4] for n in range(frames)], 40, **options)
    data = sticker_files.animated(form, few, 40, **options)
    start = data.index(b"!\xf9\4")
    return data[:start] + data[start:-1] * (frames // 4) + b";"


def _tgs(**changes: Any) -> bytes:
    import sticker_files

    return sticker_files.tgs(sticker_files.lottie(**changes))


def _nested_compositions(levels: int, copies: int) -> bytes:
    import sticker_files

    still = {"o": {"k": 99}, "p": {"k": [0, 0, 0]}, "a": {"k": [0, 0, 0]}, "s": {"k": [100, 100, 100]}, "r": {"k": 0}}

    def layers(level: int) -> list[dict[str, Any]]:
        one = {"ty": 0, "refId": f"c{level}", "ip": 0, "op": 60, "st": 0, "w": 512, "h": 512, "ks": still}
        return [one] * copies

    shapes = sticker_files.lottie()["layers"]
    assets = [{"id": f"c{n}", "layers": layers(n - 1) if n else shapes} for n in range(levels)]
    return _tgs(assets=assets, layers=layers(levels - 1))


def _zip(files: dict[str, bytes]) -> bytes:
    import sticker_files

    return sticker_files.zipped(files)


def _lying_zip() -> bytes:
    data = bytearray(_zip({"bomb.png": bytes(500_000_000)}))
    for start, offset in ((0, 22), (data.index(b"PK\1\2"), 24)):
        data[start + offset : start + offset + 4] = struct.pack("<I", 100)
    return bytes(data)


def _zip_in_zips(levels: int) -> bytes:
    data = _zip({f"{n}.png": bytes(10_000_000) for n in range(10)})
    for level in range(levels):
        data = _zip({f"{level}-{n}.zip": data for n in range(10)})
    return data


#: name -> what makes it.
BOMBS: dict[str, Callable[[], bytes]] = {
    "png 50,000 x 50,000": lambda: _png(50_000, 50_000, bytes(1_000_000)),
    "png text of 200 MB": lambda: _png(4, 4, bytes(68), (b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000)))),
    "png of 6 million chunks": lambda: _png(1, 1, bytes(5))[:-12] + b"\0\0\0\0teSt\xd9\x8d\xd9\xae" * 6_000_000,
    "png of 31 megapixels": lambda: _still("PNG", compress_level=1),
    "jpeg of 31 megapixels": lambda: _still("JPEG"),
    "webp of 31 megapixels": lambda: _still("WEBP", lossless=True, method=0, quality=0),
    "avif of 31 megapixels": lambda: _still("AVIF", speed=10, quality=9),
    "heic of 2 megapixels": lambda: _still("HEIF", 3, quality=5),
    "jpeg of 2,000 scans": lambda: _jpeg(2000),
    "jpeg of 31 megapixels and 15 scans": lambda: _jpeg(5),
    "jpeg of 10 million segments": lambda: b"\xff\xd8" + b"\xff\xe5\0\2" * 10_000_000 + b"\xff\xd9",
    "gif of 10,000 frames": lambda: _gif(10_000, 512, 512),
    "gif of 2,000 frames of 1 x 1": lambda: _gif(2000, 1),
    "gif of 5 million frames": lambda: _gif(5_000_000, 1),
    "gif of 60 million blocks": lambda: _gif(1, 1)[:-1] + b"!\xfe" + b"\1x" * 60_000_000 + b"\0;",
    "gif that widens to 65,535 x 65,535": lambda: _gif(3, 1)[:-1] + _gif(1, 1, 65_535)[19:],
    "gif of noise, 340 frames": lambda: _noise("GIF", 340),
    "png of noise, 120 frames": lambda: _noise("PNG", 120, compress_level=1),
    "webp of noise, 26 frames": lambda: _noise("WEBP", 26, method=0, quality=0),
    "webp of noise, lossy, 95 frames": lambda: _noise("WEBP", 95, method=0, quality=40, lossless=False, exact=False),
    "avif of noise, 40 frames": lambda: _noise("AVIF", 40, speed=10, quality=35, subsampling="4:2:0"),
    "tgs that unpacks to 1 GB": lambda: gzip.compress(bytes(1_000_000_000)),
    "tgs of 4 MB of numbers": lambda: _tgs(x=[0] * 1_390_000),
    "tgs nested 3,000 times": lambda: gzip.compress(b'{"layers":' + b"[" * 3000 + b"]" * 3000 + b"}"),
    "tgs of a million compositions": lambda: _nested_compositions(6, 10),
    "tgs that holds itself": lambda: _tgs(assets=[{"id": "c", "layers": [{"ty": 0, "refId": "c", "op": 60, "ks": {}}]}],
                                          layers=[{"ty": 0, "refId": "c", "op": 60, "ks": {}}]),
    "tgs of 4,096 x 4,096": lambda: _tgs(w=4096, h=4096),
    "zip bomb, 1 GB in 1 MB": lambda: _zip({f"{n}.png": bytes(100_000_000) for n in range(10)}),
    "zip bomb, 1.1 GB in 1.1 MB": lambda: _zip({f"{n}.png": bytes(100_000_000) for n in range(11)}),
    "zip whose sizes lie": _lying_zip,
    "zip in zips": lambda: _zip_in_zips(3),
    "zip of 60,000 entries": lambda: _zip({f"{n}.png": b"" for n in range(60_000)}),
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
