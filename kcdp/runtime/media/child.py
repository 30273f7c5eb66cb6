"""The other side of ``kcdp.runtime.media.worker``: reads stickers until its input ends."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from importlib import import_module
from typing import IO, Any

from kcdp.errors import KcdpError
from kcdp.preprocess import PreprocessSpec
from kcdp.runtime.media import lottie, video
from kcdp.runtime.media.limits import Limits
from kcdp.runtime.media.worker import receive, send

_READERS: dict[str, Any] = {"lottie": lottie, "video": video}


def main() -> None:
    """Answers one message after the other. Native code may print whatever it likes: that goes nowhere."""
    answers = os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-C is for the process that asks
    requests: IO[bytes] = sys.stdin.buffer
    while (message := receive(requests)) is not None:
        request, data = message
        if "memory" in request:
            _bound(request["memory"])
            send(answers, {})
            continue
        answer, payload = _answer(request, data)
        send(answers, answer, payload)


def _answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    name = request["name"]
    try:
        limits = Limits(**request["limits"])
        reader = _READERS[request["kind"]]
        reader.library(name)  # loading it is not the sticker's time
        with _timed(limits.seconds):
            pixels, weights, frames = reader.read_frames(data, PreprocessSpec.from_dict(request["spec"]), name, limits)
        return {"weights": weights.tolist(), "frames": frames}, pixels.tobytes()
    except KcdpError as error:
        return {"error": [error.received, error.expected, error.fix]}, b""
    except MemoryError:
        return {"error": [f"{name} needs more memory than a sticker may", "", "make it simpler or smaller first"]}, b""
    except Exception as error:
        reason = str(error) or type(error).__name__
        return {"error": [f"{name} is truncated or damaged ({reason})", "a whole sticker", "copy it again"]}, b""


@contextlib.contextmanager
def _timed(seconds: float) -> Any:
    """After so much processor time, all threads together, the process is ended by its signal."""
    if not hasattr(signal, "setitimer"):
        yield  # the other side looks at the clock
        return
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _bound(memory: int) -> None:
    """No more address space than that, and no core dumps."""
    try:
        resource: Any = import_module("resource")
    except ImportError:  # not on Windows
        return
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (most, most))
