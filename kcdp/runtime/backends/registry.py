"""All backends by name, and a session on one of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from kcdp.bundle import Bundle
from kcdp.engine_file import MODULES, SUFFIX
from kcdp.errors import KcdpError, nearest, require
from kcdp.runtime.backends.base import ABSENT, Backend
from kcdp.runtime.backends.choice import Choice, pick
from kcdp.runtime.backends.compiled_graph import CPU, GPU, NPU, OpenVinoBackend
from kcdp.runtime.backends.engine_choice import bundle_of_engine
from kcdp.runtime.backends.engines import EngineBackend
from kcdp.runtime.backends.options import AUTO, DEFAULTS, SessionOptions, check_options
from kcdp.runtime.backends.provider_backend import OnnxRuntimeBackend
from kcdp.runtime.backends.providers import PROVIDERS
from kcdp.runtime.names import find_model
from kcdp.runtime.processor import processors
from kcdp.runtime.session import Session

_ALL: tuple[Backend, ...] = (
    *map(OnnxRuntimeBackend, PROVIDERS.values()), *map(OpenVinoBackend, (CPU, GPU, NPU)), *map(EngineBackend, MODULES),
)  # fmt: skip
#: Of bundles of up to so many bytes, so many runs go on side by side at most.
SMALL_BYTES, MOST_STREAMS = 500_000_000, 4
#: name -> backend.
BACKENDS: Mapping[str, Backend] = MappingProxyType({backend.name: backend for backend in _ALL})


def open_model(path: str | os.PathLike[str]) -> Bundle:
    """A bundle's folder, or its name (see ``kcdp.runtime.names``), or an engine with its description beside it.

    Raises:
        KcdpError: nothing of that, or damaged.
    """
    path = find_model(path)
    return bundle_of_engine(path) if Path(path).suffix == SUFFIX else Bundle.open(os.fspath(path))


def choose(bundle: Bundle | str | os.PathLike[str], *, options: SessionOptions = DEFAULTS) -> Choice:
    """Which backend ``open_session`` would take, why, and why not the others.

    Args:
        bundle: as ``open_session`` takes it.

    Raises:
        KcdpError: not a bundle; none can run it here: every reason is named.
    """
    return pick(bundle if isinstance(bundle, Bundle) else open_model(bundle), BACKENDS, check_options(options))


def open_session(
    bundle: Bundle | str | os.PathLike[str], backend: str = AUTO, *, options: SessionOptions = DEFAULTS,
    many: bool = False,
) -> Session:  # fmt: skip
    """Open a bundle on a backend.

    Args:
        bundle: opened, or its path or name; or the path of an engine.
        backend: a key of ``BACKENDS``, or "auto": the best that is here, see ``choose``. One that fails when it is
            opened is an error, and no other is tried.
        many: for a long stream of pictures: where ``options`` leaves it open and the graph is small, several runs go on
            side by side, see ``side_by_side``. One picture alone then takes longer.

    Returns:
        A session; its ``describe()`` tells which backend it is on, and why.

    Raises:
        KcdpError: not a bundle; an unknown backend, or one that is not here (with the install line); an option that it
            does not have; a bundle that it cannot run; or it would compute elsewhere than asked.
    """
    check_options(options)
    if not isinstance(bundle, Bundle):
        bundle = open_model(bundle)
    why = "asked for by name"
    if backend == AUTO:
        try:
            choice = choose(bundle, options=options)
        except KcdpError:
            if all(row.status(options).state == ABSENT for row in _ALL):
                require("onnxruntime", "runtime")  # nothing at all is installed: one advice is better than a list
            raise
        backend, why = choice.backend, choice.why
    else:
        _check_named(bundle, backend, options)
    if many:
        options = side_by_side(bundle, BACKENDS[backend], options)
    session = BACKENDS[backend].open(bundle, options)
    session.why = why
    return session


def side_by_side(bundle: Bundle, backend: Backend, options: SessionOptions) -> SessionOptions:
    """The options with as many streams as make many pictures fast: a small graph divided among threads waits for the
    slowest of them after each operator, and those who decode pictures make one the slowest. Runs side by side do not
    wait; each takes memory of its own, so large graphs have one.
    """
    size = sum(file.stat().st_size for file in bundle.path.iterdir() if file.is_file()) if bundle.path.is_dir() else 0
    if "streams" not in backend.options or options.streams is not None or size > SMALL_BYTES:
        return options
    return replace(options, streams=min(MOST_STREAMS, options.threads or processors()))


def _check_named(bundle: Bundle, name: str, options: SessionOptions) -> None:
    if name not in BACKENDS:
        known = f"one of {AUTO}, {', '.join(BACKENDS)}"
        raise KcdpError(f"backend {name!r}{nearest(str(name), BACKENDS)}", known)
    row = BACKENDS[name]
    foreign = [option for option in options.given() if option not in row.options]
    if foreign:
        given = " and ".join(f"{option}={getattr(options, option)!r}" for option in foreign)
        able = {option: ", ".join(other.name for other in _ALL if option in other.options) for option in foreign}
        raise KcdpError(
            f"{given} for the backend {name}", f"options that it takes: {', '.join(sorted(row.options))}",
            "; ".join(f"{option} is taken by {names}" for option, names in able.items()),
        )  # fmt: skip
    status = row.status(options)
    if not status.usable:
        raise KcdpError(f"the backend {name} is {status.state}: {status.reason}", fix=status.fix)
    if (reason := row.unfit(bundle, options)) is not None:
        raise reason
