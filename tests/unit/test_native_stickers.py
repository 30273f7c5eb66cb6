"""Vector and video stickers: drawn with their transparency, bounded before that, and harmless when they crash."""

from __future__ import annotations

import gzip
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_threads import in_threads
from sticker_files import av, lottie, rlottie_python, tgs, webm

import kcdp
from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.media import lottie as lottie_reader
from kcdp.runtime.media import video as video_reader
from kcdp.runtime.media import worker
from kcdp.runtime.media.frames import read_frames
from kcdp.runtime.media.limits import LIMITS, Limits

SPEC = PreprocessSpec(64)
needs_rlottie = pytest.mark.skipif(rlottie_python is None, reason="rlottie-python is not installed")
needs_av = pytest.mark.skipif(av is None, reason="av is not installed")


def reason(data: bytes, **options: Any) -> str:
    with pytest.raises(KcdpError) as caught:
        read_frames(data, SPEC, name="x", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_rlottie
def test_a_tgs_sticker_is_drawn_on_the_background() -> None:
    pixels, weights, frames = read_frames(tgs(), SPEC)
    assert pixels.shape == (8, 64, 64, 3) and frames == 60 and np.allclose(weights, 1 / 8)
    middles = []
    for frame in pixels:
        square = np.abs(frame.astype(int) - [255, 128, 128]).max(axis=2) <= 2  # red, half transparent, on white
        rows, columns = np.nonzero(square)
        assert set(np.unique(rows)) <= set(range(21, 43)) and 300 < square.sum() < 480
        assert (frame[~square] >= [250, 120, 120]).all()
        middles.append(columns.mean())
    # frames 3, 11, 18, ... of 60, while the middle goes from 10 to 54 of 64 columns
    assert np.allclose(middles, [9.5 + 44 * int(7.5 * part + 3.75) / 60 for part in range(8)], atol=1)
    dark = PreprocessSpec(64, background=(0, 0, 0))
    assert read_frames(tgs(), dark)[0][0, 0, 0].tolist() == [0, 0, 0]


@needs_rlottie
def test_a_tgs_sticker_of_one_frame_and_of_few() -> None:
    assert read_frames(tgs(lottie(1)), SPEC)[0].shape == (1, 64, 64, 3)
    pixels, weights, frames = read_frames(tgs(lottie(4)), SPEC)
    assert len(pixels) == frames == 4 and np.allclose(weights, 1 / 4)
    still = lottie()
    still["layers"][0]["ks"]["p"] = {"k": [256, 256, 0]}
    pixels, weights, frames = read_frames(tgs(still), SPEC)
    assert len(pixels) == 1 and weights.tolist() == [1.0] and frames == 60


@needs_rlottie
def test_a_large_tgs_sticker_is_drawn_smaller() -> None:
    """The same drawing at sixteen times the size is the same sticker; a wide one keeps its proportions."""
    big = lottie(w=8192, h=8192)
    for layer in big["layers"]:
        layer["ks"]["s"] = {"k": [1600, 1600, 100]}
        for key in layer["ks"]["p"]["k"][:1]:
            key["s"], key["e"] = ([16 * x for x in key[end]] for end in ("s", "e"))
    difference = np.abs(read_frames(tgs(big), SPEC)[0].astype(int) - read_frames(tgs(), SPEC)[0])
    assert difference.mean() < 1
    wide = read_frames(tgs(lottie(w=4096, h=1024)), PreprocessSpec(64, background=(0, 0, 0)))[0]
    rows = np.nonzero(wide.max(axis=(0, 2, 3)))[0]
    assert rows.min() >= 24 and rows.max() < 40, "a quarter of the square"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "x is gzip data, but no .tgs sticker; expected a Lottie animation in it"),
        ({}, "x is gzip data, but no .tgs sticker; expected a Lottie animation in it"),
        (lottie(w="512"), "x is truncated or damaged (its w is str); expected a .tgs sticker; copy it again"),
        (lottie(h=1e9), "x is truncated or damaged (its h is 1000000000.0)"),
        (lottie(fr=0), "x is truncated or damaged (its fr is 0)"),
        (lottie(op=float("nan")), "x is truncated or damaged (it holds NaN)"),
        (lottie(op=0), "x has 0 frames; expected 1 to 2000; make it shorter first"),
        (lottie(op=99999), "x has 99999 frames; expected 1 to 2000"),
        (lottie(assets=[{"p": "passwd", "u": "/etc/"}]), "x is truncated or damaged (it refers to a picture outside"),
    ],
)
def test_what_a_tgs_sticker_may_not_be(content: Any, message: str) -> None:
    with pytest.raises(KcdpError) as caught:
        lottie_reader.read_frames(tgs(content), SPEC, "x", LIMITS)
    assert str(caught.value).startswith(message)


def test_gzip_data_that_is_no_tgs_sticker() -> None:
    deep = json.loads("[" * 200 + "]" * 200)
    for data, message in (
        (gzip.compress(bytes(100 << 20)), "x unpacks to more than 4,194,304 bytes; expected a .tgs sticker; make it"),
        (gzip.compress(b"hello"), "x is gzip data, but no .tgs sticker (Expecting value: line 1 column 1"),
        (gzip.compress(b"\xff\xfe"), "x is gzip data, but no .tgs sticker ('utf-8' codec can't decode"),
        (gzip.compress(b"[" * 100_000), "x is gzip data, but no .tgs sticker ("),
        (tgs({"layers": []}), "x is truncated or damaged (its w is NoneType)"),
        (tgs(lottie(x=deep)), "x is truncated or damaged (it is nested more than 100 times)"),
        (tgs()[:-9], "x is truncated or damaged (the gzip data ends too early)"),
        (tgs() + tgs(), "x is truncated or damaged (the gzip data goes on behind its end)"),
        (b"\x1f\x8b\x08\xff" + bytes(20), "x is truncated or damaged ("),
    ):
        with pytest.raises(KcdpError) as caught:
            lottie_reader.read_frames(data, SPEC, "x", LIMITS)
        assert str(caught.value).startswith(message)


@needs_av
@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_a_webm_sticker_keeps_its_transparency(codec: str) -> None:
    pixels, weights, frames = read_frames(webm(6, codec=codec), SPEC)
    assert frames == 6 and weights.sum() == pytest.approx(1)
    assert np.abs(pixels[:, 10, 10].astype(int) - [255, 0, 0]).max() < 12, "red above"
    assert (pixels[0][48, 10] > 245).all(), "transparent below, on white"
    last = pixels[-1][48, 10].astype(int)
    assert np.abs(last - [127, 127 + 166 // 2, 127]).max() < 20, "half transparent green on white"
    black = read_frames(webm(6, codec=codec), PreprocessSpec(64, background=(0, 0, 0)))[0]
    assert (black[0][48, 10] < 10).all() and np.abs(black[-1][48, 10].astype(int) - [0, 83, 0]).max() < 20


@needs_av
def test_a_webm_sticker_is_sampled_and_an_opaque_one_is_read() -> None:
    pixels, weights, frames = read_frames(webm(30, alpha=False), SPEC)
    assert frames == 30 and len(pixels) <= 8 and weights.sum() == pytest.approx(1)
    assert np.abs(pixels[:, 10, 10].astype(int) - [255, 0, 0]).max() < 12
    greens = pixels[:, 48, 10, 1].astype(int)
    assert (np.diff(greens) >= 0).all() and greens[0] < 40 and greens[-1] > 150


@needs_av
def test_limits_of_a_webm_sticker() -> None:
    data = webm(10)
    assert reason(data, limits=Limits(frames=9)) == "x has more than 9 frames; expected at most 9; make it shorter"
    assert reason(data, limits=Limits(animation_pixels=40_000)) == (
        "x has 10 frames of 64 x 64 pixels; expected at most 0.04 megapixels; make it smaller or shorter first"
    )
    for length in (40, len(data) // 2, len(data) - 1):
        assert reason(data[:length]).startswith("x is truncated or damaged (")
    assert "bytes are missing" in reason(data[:-1])
    other = webm(3, codec="mpeg4", alpha=False, container="matroska")
    assert reason(other) == "x holds video of the kind mpeg4; expected VP9 or VP8; convert it first"


@pytest.mark.parametrize(("reader", "package", "message"), [
    (lottie_reader, "rlottie_python", "x is gzip data (perhaps a .tgs sticker), and the package 'rlottie_python'"),
    (video_reader, "av", "x is a WebM or Matroska video, and the package 'av' is not installed; run: pip install"),
])  # fmt: skip
def test_what_is_not_installed_says_how_to_get_it(
    reader: Any, package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(KcdpError) as caught:
        reader.library("x")
    assert str(caught.value).startswith(message) and str(caught.value).endswith('run: pip install "kcdp[stickers]"')


@needs_rlottie
def test_an_error_comes_over_as_it_was_raised() -> None:
    assert reason(gzip.compress(b"[]")) == "x is gzip data, but no .tgs sticker; expected a Lottie animation in it"


@needs_rlottie
def test_a_sticker_that_takes_too_long() -> None:
    """Compositions that hold each other ten times over, six levels deep: a million squares."""
    content = lottie()
    assets = []
    for level in range(6):
        inner = content["layers"] if level == 0 else [_precomposed(f"c{level - 1}") for _ in range(10)]
        assets.append({"id": f"c{level}", "layers": inner})
    content = lottie(assets=assets, layers=[_precomposed("c5") for _ in range(10)])
    message = reason(tgs(content), limits=Limits(seconds=0.3))
    assert message in (
        "x took longer than 0.3 s to decode; make it simpler or shorter first",
        "x is damaged: it made its decoder crash; expected a whole sticker; copy it again",  # out of memory before
    )
    assert read_frames(tgs(), SPEC)[2] == 60, "the next sticker is not affected"


def _precomposed(name: str) -> dict[str, Any]:
    still = {"o": {"k": 100}, "p": {"k": [0, 0, 0]}, "a": {"k": [0, 0, 0]}, "s": {"k": [100, 100, 100]}, "r": {"k": 0}}
    return {"ty": 0, "refId": name, "ip": 0, "op": 60, "st": 0, "w": 512, "h": 512, "ks": still}


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_crash_is_an_error_of_that_sticker() -> None:
    one = worker._Worker(LIMITS.worker_bytes)
    os.kill(one._process.pid, signal.SIGSEGV)
    one._process.wait()
    assert not one.alive
    with pytest.raises(KcdpError) as caught:
        one.ask({"kind": "lottie"}, b"", "x", 1.0)
    assert str(caught.value) == "x is damaged: it made its decoder crash; expected a whole sticker; copy it again"


def test_an_answer_that_is_cut_off_is_none() -> None:
    whole = io.BytesIO()
    worker.send(whole, {"frames": 1}, bytes(1000))
    data = whole.getvalue()
    assert worker.receive(io.BytesIO(data)) == ({"frames": 1}, bytes(1000))
    for length in (0, 3, 10, len(data) - 1000, len(data) - 1):
        assert worker.receive(io.BytesIO(data[:length])) is None


@needs_rlottie
@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_after_a_crash_a_sticker_is_tried_again_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What crashed may have been spoilt by a sticker before; a second crash is this sticker's own."""
    read_frames(tgs(), SPEC)
    exchange, struck = worker._Worker._exchange, []

    def crash(times: int) -> None:
        def once_more(self: Any, request: dict[str, Any], data: bytes, seconds: float) -> Any:
            if "kind" in request and len(struck) < times:
                struck.append(1)
                os.kill(self._process.pid, signal.SIGSEGV)
                self._process.wait()
            return exchange(self, request, data, seconds)

        struck.clear()
        monkeypatch.setattr(worker._Worker, "_exchange", once_more)

    crash(1)
    assert read_frames(tgs(), SPEC)[2] == 60 and len(struck) == 1
    crash(2)
    assert reason(tgs()) == "x is damaged: it made its decoder crash; expected a whole sticker; copy it again"
    assert read_frames(tgs(), SPEC)[2] == 60 and len(struck) == 2


@needs_rlottie
def test_an_interrupted_question_is_not_answered_later(monkeypatch: pytest.MonkeyPatch) -> None:
    read_frames(tgs(), SPEC)

    def interrupt(stream: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(worker, "receive", interrupt)
        read_frames(tgs(), SPEC)
    assert read_frames(tgs(lottie(3)), SPEC)[2] == 3


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_process_that_hangs_is_ended() -> None:
    one = worker._Worker(LIMITS.worker_bytes)
    os.kill(one._process.pid, signal.SIGSTOP)
    with pytest.raises(KcdpError, match=r"x took longer than 0\.05 s to decode; make it simpler or shorter first"):
        one.ask({"kind": "lottie"}, bytes(1 << 20), "x", 0.05)
    assert not one.alive


@needs_rlottie
def test_threads_and_processes_share_nothing_they_should_not() -> None:
    expected = read_frames(tgs(), SPEC)[0]
    wrong: list[int] = []

    def work(_: int) -> None:
        for _ in range(3):
            if not np.array_equal(read_frames(tgs(), SPEC)[0], expected):
                wrong.append(1)

    in_threads(work, range(4))
    assert not wrong and 1 <= len(worker._POOL._idle) <= worker.processors() and worker._POOL._busy == 0
    idle = worker._POOL._idle[0]
    os.kill(idle._process.pid, signal.SIGTERM)
    idle._process.wait()
    assert np.array_equal(read_frames(tgs(), SPEC)[0], expected), "one that has died meanwhile is not asked"


def test_never_more_processes_than_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "processors", lambda: 2)
    pool, memory, seen = worker._Pool(), LIMITS.worker_bytes, []
    try:
        for bytes_, fresh in ((memory, False), (memory, True), (memory, True), (memory + 1, False), (memory, False)):
            with pool.borrowed(bytes_, fresh) as one:
                seen.append(one)
                assert one.alive and one.memory == bytes_ and len(pool._idle) <= 1
        assert len(pool._idle) == 2 and pool._busy == 0
        assert seen[4] is seen[2], "asked for that memory, it waits"
        assert len({id(one) for one in seen}) == 4 and [one.alive for one in seen] == [False, False, True, True, True]
        with pytest.raises(KeyboardInterrupt), pool.borrowed(memory):
            raise KeyboardInterrupt
        assert len(pool._idle) == 2 and pool._busy == 0
    finally:
        pool.close()
    assert not any(one.alive for one in seen)


@needs_rlottie
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_starts_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.tgs").write_bytes(tgs())
    code = (
        "import os, sys\n"
        "from kcdp.preprocess import PreprocessSpec\n"
        "from kcdp.runtime.media import worker\n"
        "from kcdp.runtime.media.frames import read_frames\n"
        "read = lambda: read_frames(sys.argv[1], PreprocessSpec(8))[2]\n"
        "assert read() == 60 and len(worker._POOL._idle) == 1\n"
        "if (child := os.fork()) == 0:\n"
        "    os._exit(0 if not worker._POOL._idle and read() == 60 else 3)\n"
        "assert os.waitpid(child, 0)[1] == 0 and read() == 60\n"
    )
    root = str(Path(kcdp.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.tgs")], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
