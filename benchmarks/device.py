"""What the runtime costs a device: installed size, start, first tag, memory over thousands of pictures, throughput.

    python benchmarks/device.py --model B.kcdp [--pictures 5000] [--work DIR] [--out FILE]

An environment with only ``kcdp[runtime]`` is made from this checkout (pip fetches the rest). Pictures are drawn by
``synthetic:stickers`` and saved as PNG and WebP in several sizes. Everything is measured in processes of that
environment: the installed size without pip and without the model; ``import kcdp.runtime`` and the first row of
``kcdp tag`` from the start of the process (best and median of 7: the files are in the system's cache); the peak memory
of one process that tags all pictures; and, for each kind of picture, at the same batch size and in turn, pictures a
second of the whole command's pipeline, of the bare session, one run after the other on all cores, and of as many runs
side by side as the pipeline has.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measuring import machine

ROOT = Path(__file__).resolve().parents[1]
KINDS = (("PNG", 48), ("PNG", 96), ("PNG", 512), ("WebP", 512))  # faces, emoji, stickers
ROUNDS = 3
#: Run in the other environment: bundle, folder, batch size -> pictures a second of the pipeline and of the session.
THROUGHPUT = """
import json, sys, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from kcdp.runtime import Tagger, find_items, open_session
bundle, folder, batch, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
items = list(find_items([folder]))
def rate(work, pictures):
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < 2.0:
        work()
        count += pictures
    return count / (time.perf_counter() - start)
with open_session(bundle) as session, Tagger.load(bundle, batch_size=batch, many=True) as tagger:
    images = np.concatenate([tagger.prepare(item).pixels for item in items[:batch]])
    images = np.concatenate([images] * (batch // len(images) + 1))[:batch]
    streams = tagger.session.streams
    several, pool = [images] * 8 * streams, ThreadPoolExecutor(streams)
    session.run(images)
    tagger.tag(items[: batch * streams])
    found = {"pipeline": [], "session": [], "side_by_side": []}
    for _ in range(rounds):
        found["session"].append(rate(lambda: session.run(images), batch))
        found["side_by_side"].append(rate(lambda: list(pool.map(tagger.session.run, several)), batch * len(several)))
        found["pipeline"].append(rate(lambda: tagger.tag(items), len(items)))
    print(json.dumps({**found, "backend": session.describe()["backend"], "streams": streams,
                      "stats": tagger.stats.lines()}))
"""


def main() -> int:
    """Make the environment and the pictures, measure, print, write."""
    parser = argparse.ArgumentParser(description="What the runtime costs a device.")
    parser.add_argument("--model", type=Path, required=True, help="a bundle")
    parser.add_argument("--pictures", type=int, default=5000, help="for the memory (default: 5000)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--work", type=Path, help="keep the environment and the pictures here")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        python = environment(work / "env")
        folders = {f"{form} {side}": draw(work / f"{form}{side}", form, side, 200) for form, side in KINDS}
        many = draw(work / "many", "PNG", 128, args.pictures)
        result = {
            "benchmark": "device", "date": time.strftime("%Y-%m-%d"), "machine": machine(),
            "model_mb": sum(f.stat().st_size for f in args.model.iterdir()) / 1e6,
            "installed_mb": installed(python), **started(python, args.model, many),
            "tagging": tagged(python, args.model, many),
            "throughput": {kind: throughput(python, args, folder) for kind, folder in folders.items()},
        }  # fmt: skip
    for name, value in result.items():
        print(f"{name:<14}{json.dumps(value)}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def environment(folder: Path) -> Path:
    """A virtual environment with ``kcdp[runtime]``; its Python."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{ROOT}[runtime]"], check=True)
    return python


def draw(folder: Path, form: str, side: int, count: int) -> Path:
    """Drawn stickers as files of one format and size; a few hundred drawings, repeated."""
    if folder.exists():
        return folder
    from PIL import Image

    from kcdp.data.registry import open_dataset

    stickers = open_dataset(f"synthetic:stickers?n={min(count, 400)}&size=128&seed=11")
    folder.mkdir(parents=True)
    for number in range(len(stickers)):
        picture = stickers.image(number).resize((side, side), Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:05}.{form.lower()}", format=form)
    names = sorted(folder.iterdir())
    for number in range(len(names), count):
        (folder / f"{number:05}.{form.lower()}").write_bytes(names[number % len(names)].read_bytes())
    return folder


def installed(python: Path) -> dict[str, float]:
    """Megabytes on disk of what pip put there, itself left out, whole and by package."""
    packages = next((python.parents[1] / "lib").glob("python*/site-packages"))
    own = [entry for entry in packages.iterdir() if entry.is_dir() and not entry.name.startswith(("pip", "setuptools"))]
    found = {entry.name: sum(f.stat().st_size for f in entry.rglob("*") if f.is_file()) / 1e6 for entry in own}
    largest = sorted(found.items(), key=lambda item: -item[1])[:6]
    return {"all": sum(found.values()), **dict(largest)}


def started(python: Path, model: Path, pictures: Path) -> dict[str, Any]:
    """Seconds of ``import kcdp.runtime`` inside the process, and of a whole process that tags one picture."""
    probe = "import time; s = time.perf_counter(); import kcdp.runtime; print(time.perf_counter() - s)"
    imports = [float(output([python, "-c", probe])) for _ in range(7)]
    one = next(iter(sorted(pictures.iterdir())))
    tags = []
    for _ in range(7):
        start = time.perf_counter()
        output([python, "-m", "kcdp", "tag", one, "--model", model, "--format", "jsonl"])
        tags.append(time.perf_counter() - start)
    return {"import_s": {"best": min(imports), "median": median(imports)},
            "first_tag_s": {"best": min(tags), "median": median(tags)}}  # fmt: skip


def tagged(python: Path, model: Path, pictures: Path) -> dict[str, Any]:
    """All of a folder by one process: its peak resident memory, and the time."""
    command = [str(python), "-m", "kcdp", "tag", str(pictures), "--model", str(model), "--format", "jsonl"]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said = process.stderr.read().decode().strip().splitlines() if process.stderr else []
    assert process.returncode == 0, said
    return {"pictures": len(list(pictures.iterdir())), "seconds": time.perf_counter() - start,
            "peak_mib": usage.ru_maxrss / 1024, "said": said[-1:]}  # fmt: skip


def throughput(python: Path, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Pictures a second of the pipeline and of the bare session, medians of rounds in turn."""
    found = json.loads(output([python, "-c", THROUGHPUT, args.model, folder, args.batch_size, ROUNDS]))
    pipeline, session, several = (median(found[key]) for key in ("pipeline", "session", "side_by_side"))
    return {"pipeline": pipeline, "session": session, "share": pipeline / session, "side_by_side": several,
            "share_side_by_side": pipeline / several, "streams": found["streams"], "backend": found["backend"],
            "stats": found["stats"]}  # fmt: skip


def output(command: list[Any]) -> str:
    """What a command prints; it has to succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True, env=environment).stdout


if __name__ == "__main__":
    sys.exit(main())
