"""What the packages say while they parse and build, kept and turned into one line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from kcdp.export.engine.package import Native

REPORT = "Layers:"

#: "ITensor::getDimensions: Error Code 4: API Usage Error (the reason. In checkType at /_src/x.cpp:456)"
_WRAPPED = re.compile(r"^.*?Error Code \d+: [\w ]+ \((?P<reason>.*)\)\s*$")
_PLACE = re.compile(r"\.? In \S+ at \S+:\d+$")
_FILE = re.compile(r"^\[?\w+\.(?:cpp|h)::\w+::\d+\]? *")
_SAYS_NOTHING = re.compile(r"cudaError|catchCudaError|^Invalid Node - |^In node \d+ with name|^\s*$")


@dataclass
class Messages:
    """Messages of one build.

    Attributes:
        errors, infos: in order.
        report: the builder's layer report, once it has come.
        interrupted: Ctrl-C was pressed while a message came.
    """

    errors: list[str] = field(default_factory=list)
    infos: list[str] = field(default_factory=list)
    report: str | None = None
    interrupted: bool = False

    def add(self, severity: str, text: str) -> None:
        """Keep a message. Of the verbose ones, which run into megabytes, only the layer report."""
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self.errors.append(text)
        elif severity == "INFO":
            self.infos.append(text)
        elif text.startswith(REPORT):
            self.report = text

    def reason(self) -> str:
        """The first error that says something, on one line."""
        reasons = [reason for reason in map(one_line, self.errors) if reason]
        return reasons[0] if reasons else "no reason was given"

    def bytes_of(self, what: str) -> int | None:
        """The number of "Total Weights Memory: 123 bytes"; None where it was not said."""
        found = [match for text in self.infos if (match := re.search(rf"{re.escape(what)}: (\d+) bytes", text))]
        return int(found[-1][1]) if found else None


def make_logger(trt: Native, messages: Messages) -> Native:
    """A logger that puts everything into ``messages``."""

    class Collector(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Native, text: str) -> None:
            try:
                messages.add(severity.name, text)
            except KeyboardInterrupt:  # one that leaves this callback is printed by the package and forgotten
                messages.interrupted = True

    return Collector()


def one_line(text: str) -> str:
    """A message without its source places and without the noise of a missing driver; empty where nothing is left."""
    kept = []
    for line in text.splitlines():
        if _SAYS_NOTHING.search(line):
            continue
        wrapped = _WRAPPED.match(line)
        line = wrapped["reason"] if wrapped else _FILE.sub("", line)
        kept.append(_PLACE.sub("", line).strip())
    return ". ".join(filter(None, kept))
