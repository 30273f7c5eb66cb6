"""Ray, started quietly and ended, or joined and left."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kcdp.errors import KcdpError, require
from kcdp.runtime.collections.options import CollectionOptions

#: Seconds that a cluster has to answer.
_PATIENCE = 10.0
_NATIVE_LEVEL = "RAY_BACKEND_LOG_LEVEL"


@contextmanager
def cluster(options: CollectionOptions) -> Iterator[Any]:
    """Yields the module ``ray``, connected. What was connected before stays so; what this starts, it ends.

    Raises:
        KcdpError: Ray is not installed, there is no cluster at the address, or no machine of it has room for a worker.
    """
    ray = require("ray", "ray")
    try:
        require("ray.data", "ray")
    except ImportError as error:  # Ray alone, without what its part for data needs
        raise KcdpError(f"Ray Data cannot be loaded ({error})", fix='run: pip install "kcdp[ray]"') from None
    started = not ray.is_initialized()
    if not started and options.address is not None:
        raise KcdpError(f"the address {options.address}, where this process is connected to Ray already", "no address")
    try:
        if started:
            with _native_log_off():
                _start(ray, options)
        with _quiet():
            _check_room(ray, options)
            yield ray
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any, options: CollectionOptions) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if options.address is None:
        # processors are counted, not measured: as many as the workers ask for. "local": whatever RAY_ADDRESS says
        ray.init(
            address="local", num_cpus=options.local_workers * options.threads, include_dashboard=False,
            object_store_memory=options.object_store, **quiet,
        )  # fmt: skip
        return
    try:
        _call(options.address)
        ray.init(address=options.address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()
        raise KcdpError(
            f"no cluster answers at {options.address} ({reason[0] if reason else type(error).__name__})",
            "the address of a running one", "start it with: ray start --head, and where it "
            "asks for a token, set RAY_AUTH_MODE=token",
        ) from error  # fmt: skip


def _call(address: str) -> None:
    """Whether anything listens there; Ray itself would ask for minutes. Raises OSError, ValueError."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()


def _check_room(ray: Any, options: CollectionOptions) -> None:
    """A worker that has room nowhere would be waited for without end."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted = {"CPU": options.threads, "GPU": options.gpus}
    if not any(all(machine.get(name, 0) >= number for name, number in wanted.items()) for machine in machines):
        most = {name: max(machine.get(name, 0) for machine in machines) for name in wanted}
        raise KcdpError(
            f"a worker asks for {options.threads} processors and {options.gpus:g} GPUs",
            f"at most {most['CPU']:g} and {most['GPU']:g}, as the largest machine has them",
        )


@contextmanager
def _native_log_off() -> Iterator[None]:
    """Ray's C++ side logs to the terminal, errors that are none too. It is told not to, and the line that says so is
    left out.

    A level that the user has set stays.
    """
    if _NATIVE_LEVEL in os.environ:
        yield
        return
    os.environ[_NATIVE_LEVEL] = "fatal"
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            del os.environ[_NATIVE_LEVEL]
        held.seek(0)  # not where it failed: the exception says why
        for line in held:
            if _NATIVE_LEVEL.encode() not in line:
                os.write(2, line)


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of Ray Data's log on the terminal; its files are written as always. Errors arrive as exceptions."""
    consoles = [
        handler for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
    ]  # fmt: skip
    levels = [handler.level for handler in consoles]
    for handler in consoles:
        handler.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for handler, level in zip(consoles, levels, strict=True):
            handler.setLevel(level)
