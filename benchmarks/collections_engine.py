"""``kcdp tag`` in one process beside ``--engine ray``: pictures a second, starting included.

    python benchmarks/collections_engine.py --model B.kcdp --pictures 4000 --workers 2 --out results/collections.json

Every worker and the plain run have one processor thread. Rows of both are compared. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measuring import cpu_name
from PIL import Image

from kcdp.files import write_json
from kcdp.runtime import Tagger, find_pictures
from kcdp.runtime.collections.options import CollectionOptions
from kcdp.runtime.collections.tagging import open_collection, stream_collection
from kcdp.runtime.tagger import Tag


def main() -> int:
    """Both, one after the other. Exit status 1 where a label differs."""
    parser = argparse.ArgumentParser(description="One process beside workers of Ray.")
    parser.add_argument("--model", type=Path, required=True, metavar="NAME.kcdp", help="the bundle")
    parser.add_argument("--pictures", type=int, default=4000, help="how many (default: 4000)")
    parser.add_argument("--size", type=int, default=128, help="their side (default: 128)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--out", type=Path, help="also write the JSON object here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(Path(folder), args.pictures, args.size)
        plain, expected = timed(plain_run(args.model, folder))
        options = CollectionOptions(workers=args.workers, object_store=200 << 20)
        ray, found = timed(stream_collection(open_collection(folder), args.model, options))
    equal = [(tag.path, tag.label) for tag in found] == [(tag.path, tag.label) for tag in expected]
    result = {
        "benchmark": "collections", "date": time.strftime("%Y-%m-%d"),
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(),
                    "load_before": round(os.getloadavg()[0], 1),
                    **{name: version(name) for name in ("kcdp", "onnxruntime", "ray")}},
        "settings": {"model": args.model.name, "pictures": args.pictures, "size": args.size, "workers": args.workers},
        "plain": plain, "ray": ray, "same_rows": equal,
    }  # fmt: skip
    print(json.dumps(result))
    if args.out:
        write_json(args.out, result)
    return 0 if equal else 1


def plain_run(model: Path, folder: str) -> Iterator[Tag]:
    """As ``kcdp tag --threads 1``."""
    with Tagger.load(model, threads=1) as tagger:
        yield from tagger.stream(find_pictures(folder))


def timed(tags: Iterator[Tag]) -> tuple[dict[str, float], list[Tag]]:
    """Seconds to the first tag and in all, pictures a second in all.

    Until the first tag comes, workers start, load the model and tag more than the first: no rate is told without that.
    """
    begun = time.perf_counter()
    found = [next(tags)]
    first = time.perf_counter() - begun
    found += tags
    seconds = time.perf_counter() - begun
    rate = round(len(found) / seconds, 1)
    return {"first_tag_s": round(first, 2), "seconds": round(seconds, 2), "pictures_per_s": rate}, found


def make_pictures(folder: Path, number: int, size: int) -> None:
    """Noisy ones of different colours."""
    random: Any = np.random.default_rng(0)
    for n in range(number):
        pixels = random.integers(0, 200, 3) + random.integers(0, 56, (size, size, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{n:06}.png", compress_level=1)


if __name__ == "__main__":
    sys.exit(main())
