"""A bundle tried on every backend that is here: does it run, how far are its logits apart, how long takes a batch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median

import numpy as np

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.runtime.backends.choice import Choice, against
from kcdp.runtime.backends.options import DEFAULTS
from kcdp.runtime.backends.registry import BACKENDS, choose, open_session
from kcdp.runtime.session import Session, first_line

#: Pictures of the batch, where the bundle takes any number.
PICTURES = 4
#: Timed runs after the first, and seconds after which no further one is begun.
_RUNS, _SECONDS = 5, 3.0


@dataclass(frozen=True)
class Trial:
    """One backend.

    Attributes:
        backend: its name.
        ran: whether it gave logits.
        reason: why not; empty where it ran.
        pictures: of the batch.
        milliseconds: of the batch, the median of some runs after the first.
        difference: largest, of any logit, from the first backend that ran; None for that one.
        facts: of ``Session.describe``.
    """

    backend: str
    ran: bool
    reason: str = ""
    pictures: int = 0
    milliseconds: float = 0.0
    difference: float | None = None
    facts: dict[str, object] | None = None


def choice_for(bundle: Bundle) -> tuple[Choice | None, str]:
    """What would be chosen, or None and why nothing can be."""
    try:
        return choose(bundle), ""
    except KcdpError as error:
        return None, str(error)


def try_all(bundle: Bundle, first: str = "") -> list[Trial]:
    """Every backend, the named one first; those that cannot run the bundle with the reason. Nothing is raised."""
    names = sorted(BACKENDS, key=lambda name: name != first)
    images, knowledge = _batch(bundle)
    trials: list[Trial] = []
    reference: np.ndarray | None = None
    for name in names:
        backend = BACKENDS[name]
        status = backend.status(DEFAULTS)
        if not status.usable:
            trials.append(Trial(name, False, f"{status.state}: {status.reason}"))
            continue
        reason = against(bundle, backend, DEFAULTS, status)
        if reason:
            trials.append(Trial(name, False, reason))
            continue
        try:
            with open_session(bundle, name) as session:
                logits, milliseconds = _time(session, images, knowledge)
                facts = session.describe()
        except KcdpError as error:
            trials.append(Trial(name, False, str(error)))
        except Exception as error:  # a library's own: one line, like any other reason
            trials.append(Trial(name, False, f"{type(error).__name__}: {first_line(error)}"))
        else:
            apart = None if reference is None else float(np.abs(logits - reference).max())
            reference = logits if reference is None else reference
            trials.append(Trial(name, True, "", len(images), milliseconds, apart, facts))
    return trials


def _batch(bundle: Bundle) -> tuple[np.ndarray, np.ndarray | None]:
    """Noise: uint8 [N, size, size, 3], and float32 tokens where the bundle takes them."""
    inputs, size = bundle.manifest.graph.inputs, bundle.manifest.preprocess.size
    generator = np.random.default_rng(0)
    count = inputs[0].shape[0] or PICTURES
    images = generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    if len(inputs) == 1:
        return images, None
    tokens = tuple(n or count for n in inputs[1].shape)
    return images, generator.standard_normal(tokens, dtype=np.float32)


def _time(session: Session, images: np.ndarray, knowledge: np.ndarray | None) -> tuple[np.ndarray, float]:
    logits, begun = session.run(images, knowledge), time.perf_counter()
    times: list[float] = []
    while not times or (len(times) < _RUNS and time.perf_counter() - begun < _SECONDS):
        start = time.perf_counter()
        session.run(images, knowledge)
        times.append(1e3 * (time.perf_counter() - start))
    return logits, median(times)
