"""Progress of a build, and the way to stop it."""

from __future__ import annotations

from typing import Any

from kcdp.errors import KcdpError, require
from kcdp.export.engine.messages import Messages
from kcdp.export.engine.package import Native


class BuildProgress:
    """A bar over the builder's phases, and whether Ctrl-C was pressed.

    A Python signal handler runs only inside the builder's callbacks; there the interrupt is noted, and the builder is
    told to stop.

    Args:
        show: draw a bar, where tqdm is installed.
        messages: of the same build; an interrupt may have come with one of them.
    """

    def __init__(self, show: bool, messages: Messages | None = None) -> None:
        self.interrupted = False
        self._messages = messages or Messages()
        self._bar: Any = None
        self._depth: dict[str, int] = {}
        if show:
            try:
                self._bar = require("tqdm", "train").tqdm(desc="build", unit=" steps", leave=False)
            except KcdpError:
                self._bar = None  # a bar is no reason to ask for an extra

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins, perhaps inside another."""
        self._depth[phase] = 0 if parent is None else self._depth.get(parent, 0) + 1
        if self._bar is not None and self._depth[phase] <= 1:
            self._bar.set_description(phase.lower())
            self._bar.reset(total=steps)

    def step(self, phase: str) -> bool:
        """A step of a phase is done. Returns False to stop the build."""
        if self._bar is not None and self._depth.get(phase, 0) <= 1:
            self._bar.update()
        return not (self.interrupted or self._messages.interrupted)

    def finish(self, phase: str) -> None:
        """A phase ends."""
        self._depth.pop(phase, None)

    def close(self) -> None:
        """Take the bar away; raises KeyboardInterrupt where Ctrl-C stopped the build."""
        if self._bar is not None:
            self._bar.close()
        if self.interrupted or self._messages.interrupted:
            raise KeyboardInterrupt


def make_monitor(trt: Native, progress: BuildProgress) -> Native:
    """The package's own interface in front of a ``BuildProgress``."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            try:
                progress.start(phase, parent, steps)
            except KeyboardInterrupt:
                progress.interrupted = True

        def step_complete(self, phase: str, step: int) -> bool:
            try:
                return progress.step(phase)
            except KeyboardInterrupt:
                progress.interrupted = True
                return False

        def phase_finish(self, phase: str) -> None:
            try:
                progress.finish(phase)
            except KeyboardInterrupt:
                progress.interrupted = True

    return Monitor()
