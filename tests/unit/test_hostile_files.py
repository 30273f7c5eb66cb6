"""A few hundred damaged files of every kind: each is read, or is one line; none raises, hangs or ends the process."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from sticker_files import damaged, damaged_tgs, seeds

from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime import find_items
from kcdp.runtime.media.frames import read_frames
from kcdp.runtime.media.limits import Limits

SPEC = PreprocessSpec(24)
SEEDS = seeds()
#: Each of the slow ones may cost a process that has to be started again.
COUNTS = {"tgs": 40, "tgs rich": 40, "webm": 25, "webm vp8": 25}


def check(data: bytes, name: str) -> bool:
    """Whether it was read; that what came out is what is promised."""
    started = time.perf_counter()
    try:
        pixels, weights, frames = read_frames(data, SPEC, name=name, limits=Limits(seconds=1.0))
    except KcdpError as error:
        assert str(error).startswith(name) and "\n" not in str(error)
        return False
    finally:
        assert time.perf_counter() - started < 12
    assert pixels.dtype == np.uint8 and pixels.shape[1:] == (24, 24, 3) and 1 <= len(pixels) <= min(8, frames)
    assert weights.dtype == np.float32 and (weights > 0).all() and weights.sum() == pytest.approx(1, abs=1e-5)
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in SEEDS if name != "zip"])
def test_damaged_stickers(name: str) -> None:
    rng = np.random.default_rng(list(name.encode()))
    others, read, count = list(SEEDS.values()), 0, COUNTS.get(name, 60)
    for number in range(count):
        if name.startswith("tgs") and number % 2:
            read += check(damaged_tgs(SEEDS[name], rng), "x.tgs")
        else:
            read += check(damaged(SEEDS[name], others, rng), "x")
    assert read < count, "none of them was damaged"


def test_damaged_archives(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    file = tmp_path / "x.zip"
    rows = errors = 0
    for _ in range(150):
        file.write_bytes(damaged(SEEDS["zip"], list(SEEDS.values()), rng))
        for item in find_items(file):
            rows += 1
            try:
                if item.error is not None:
                    raise item.error
                source = item.source() if callable(item.source) else item.source
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    read_frames(source, SPEC, name=item.name)
            except KcdpError as error:
                errors += 1
                assert str(error).startswith(item.name) and "\n" not in str(error)
        assert list(tmp_path.iterdir()) == [file]
    assert rows > 150 and 75 < errors < rows
