"""Decoders that hostile files can crash run in a process of their own, which may die or be ended without harm.

rlottie (of rlottie-python 1.3) overflows its stack where a composition holds itself, and of 1,500 damaged .tgs files
2 kept it busy for ever (``benchmarks/hostile.py --unguarded 1500``). libvpx and FFmpeg ended well on as many WebM
files, but they can neither be interrupted nor bounded in memory. So both get the bytes by a pipe in processes with
bounded memory and processor time, which are kept between stickers: starting one costs a quarter of a second.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
import threading
from dataclasses import asdict
from typing import IO, Any, cast

import numpy as np

from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.media.limits import Limits
from kcdp.runtime.processor import processors

#: A machine that is busy gives a process little time: by the clock, a sticker may take so many times its seconds.
_PATIENCE = 8.0
_START_SECONDS = 60.0
_CODE = "import sys; sys.path[:] = sys.argv[1:]; from kcdp.runtime.media.child import main; main()"
_LENGTHS = struct.Struct("<II")


def read_guarded(
    kind: str, data: bytes, spec: PreprocessSpec, name: str, limits: Limits
) -> tuple[np.ndarray, np.ndarray, int]:
    """``kcdp.runtime.media.KIND.read_frames`` in another process.

    Args:
        kind: "lottie" or "video".

    Returns:
        As ``kcdp.runtime.media.frames.read_frames``.

    Raises:
        KcdpError: what the reader raised; or it crashed, or took too long.
    """
    request = {"kind": kind, "name": name, "spec": spec.to_dict(), "limits": asdict(limits)}
    try:
        with _POOL.borrowed(limits.worker_bytes) as worker:
            answer, payload = worker.ask(request, data, name, limits.seconds)
    except _AnotherMayBeGuilty:
        with _POOL.borrowed(limits.worker_bytes, fresh=True) as worker:
            answer, payload = worker.ask(request, data, name, limits.seconds)
    if "error" in answer:
        raise KcdpError(*answer["error"])
    shares = np.array(answer["weights"], np.float32)
    pixels = np.frombuffer(payload, np.uint8).reshape(len(shares), spec.size, spec.size, 3)
    return pixels, shares, int(answer["frames"])


def send(stream: IO[bytes], header: dict[str, Any], payload: bytes = b"") -> None:
    """One message: the lengths of both parts, JSON, bytes."""
    text = json.dumps(header).encode()
    stream.write(_LENGTHS.pack(len(text), len(payload)) + text)
    stream.write(payload)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """What ``send`` wrote; None where the other side has gone."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    sizes = _LENGTHS.unpack(lengths)
    text, payload = (stream.read(size) for size in sizes)
    if (len(text), len(payload)) != sizes:
        return None
    return json.loads(text), payload


class _AnotherMayBeGuilty(KcdpError):
    """A process crashed that had read other stickers before, of which one may have spoiled its memory."""


class _Worker:
    def __init__(self, memory: int) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            raise KcdpError("this program has no Python interpreter of its own", "one, to read .tgs and WebM stickers")
        path = [os.path.abspath(entry) for entry in sys.path]
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _CODE, *path], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env={**os.environ, **one_thread},
        )  # fmt: skip
        self.owner, self.memory, self._asked = os.getpid(), memory, 0
        answer = self._exchange({"memory": memory}, b"", _START_SECONDS)
        if answer is None:
            self.end()
            raise KcdpError("the process that reads .tgs and WebM stickers does not start")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: dict[str, Any], data: bytes, name: str, seconds: float) -> tuple[dict[str, Any], bytes]:
        answer = self._exchange(request, data, seconds * _PATIENCE)
        self._asked += 1
        if answer is not None:
            return answer
        status = self.end()
        if status in (-signal.SIGKILL, -getattr(signal, "SIGPROF", 27), -getattr(signal, "SIGXCPU", 24)):
            raise KcdpError(f"{name} took longer than {seconds:g} s to decode", fix="make it simpler or shorter first")
        kind = _AnotherMayBeGuilty if self._asked > 1 else KcdpError
        raise kind(f"{name} is damaged: it made its decoder crash", "a whole sticker", "copy it again")

    def _exchange(self, request: dict[str, Any], data: bytes, seconds: float) -> tuple[dict[str, Any], bytes] | None:
        """The answer; None where the process has died, by itself or because its time was over."""
        stdin, stdout = cast("IO[bytes]", self._process.stdin), cast("IO[bytes]", self._process.stdout)
        alarm = threading.Timer(seconds, self._process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            send(stdin, request, data)
            return receive(stdout)
        except (OSError, ValueError):
            return None
        except BaseException:  # interrupted: its answer would be taken for that to the next question
            self._process.kill()
            self._process.wait()
            raise
        finally:
            alarm.cancel()

    def end(self) -> int:
        """Ends the process; its exit status, which is minus the signal's number."""
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError, ValueError):
                cast("IO[bytes]", stream).close()
        try:
            return self._process.wait(0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


class _Pool:
    """Processes that wait for work: as many as threads have asked at once, as many as there are processors at most."""

    def __init__(self) -> None:
        self._idle: list[_Worker] = []
        self._busy = 0
        self._most = processors()
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(self._most)

    @contextlib.contextmanager
    def borrowed(self, memory: int, fresh: bool = False) -> Any:
        with self._places:
            worker, retired = self._taken(memory, fresh)
            try:
                for one in retired:
                    one.end()
                worker = worker or _Worker(memory)
                yield worker
            finally:
                kept = worker is not None and worker.alive and worker.owner == os.getpid()
                with self._lock:
                    self._busy -= 1
                    if worker is not None and kept:
                        self._idle.append(worker)
                if worker is not None and not kept:
                    worker.end()

    def _taken(self, memory: int, fresh: bool) -> tuple[_Worker | None, list[_Worker]]:
        """A waiting process of that memory, if there is one; those to end, so that a new one is not one too many."""
        with self._lock:
            self._busy += 1
            retired = [worker for worker in self._idle if not worker.alive]
            self._idle = [worker for worker in self._idle if worker not in retired]
            for place, worker in enumerate(self._idle):
                if worker.memory == memory and not fresh:
                    return self._idle.pop(place), retired
            while self._idle and len(self._idle) + self._busy > self._most:
                retired.append(self._idle.pop(0))
        return None, retired

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()


_POOL = _Pool()
atexit.register(lambda: _POOL.close())


def _forget_in_a_fork() -> None:
    """A forked process shares the pipes with its parent; it starts processes of its own instead."""
    global _POOL
    _POOL = _Pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_a_fork)
