"""What the parity gate asks of a runtime: outputs by name, and what was really executed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kcdp.errors import KcdpError
from kcdp.runtime.backends.options import SessionOptions
from kcdp.runtime.processor import processors

#: Numbers of one batch by name.
Feed = Mapping[str, np.ndarray]


class DoesNotRun(KcdpError):
    """The runtime refuses the graph, when it opens it or when it runs it: a failure of the graph, not of the user."""


@dataclass(frozen=True)
class Port:
    """An input or output as the runtime sees it.

    Attributes:
        dtype: numpy's name of the type.
        shape: lengths; None where an axis is free.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def describe(self) -> str:
        """``images uint8 [?, 96, 96, 3]``."""
        return f"{self.name} {self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"

    def accepts(self, array: np.ndarray) -> bool:
        """Whether an array has this type and shape."""
        same = len(array.shape) == len(self.shape) and array.dtype.name == self.dtype
        return same and all(n in (None, m) for n, m in zip(self.shape, array.shape, strict=True))


@dataclass(frozen=True)
class Executed:
    """What a runtime really does.

    Attributes:
        products: "Convolution bfloat16" -> how many: all matrix products, convolutions and attentions by the type that
            they run in.
        nodes: where -> how many nodes of all kinds; empty for a runtime that has one place only.
        strays: products that run elsewhere than asked for.
    """

    products: Mapping[str, int]
    nodes: Mapping[str, int] = field(default_factory=dict)
    strays: Collection[str] = ()

    def in_types(self, *types: str) -> int:
        """How many products run in one of these types."""
        return sum(count for name, count in self.products.items() if name.split()[-1] in types)

    def failures(self, precision: str) -> list[str]:
        """One line for each way in which it is not what the precision promises.

        float16 promises storage: no processor but a GPU's multiplies in it, and a graph that is wrong in it is found
        by the runtime "rounding".
        """
        found = []
        if self.strays:
            found.append(f"{len(self.strays)} products run elsewhere than asked for, one of them {min(self.strays)}")
        half = self.in_types("float16", "bfloat16")
        if precision == "float32" and half:
            found.append(f"{half} products run in half precision, expected none ({self.describe()})")
        if precision == "bfloat16" and not self.in_types("bfloat16"):
            found.append(f"no product runs in bfloat16 ({self.describe()})")
        if precision == "int8" and not self.in_types("int8", "uint8", "int16", "uint16"):
            found.append(f"no product runs in integers ({self.describe()})")
        return found

    def describe(self) -> str:
        """``Conv float32: 70, MatMul float32: 16``."""
        return ", ".join(f"{name}: {count}" for name, count in self.products.items()) or "no products at all"


def executed(
    rows: Iterable[tuple[str, str, str]], expected: str = "", products: Collection[str] = frozenset()
) -> Executed:
    """From one row for each node: kind, type, place.

    Args:
        expected: the place where products are to run; empty: anywhere.
        products: the kinds that are products.
    """
    counts: dict[str, int] = {}
    nodes: dict[str, int] = {}
    strays = []
    for kind, dtype, place in rows:
        if place:
            nodes[place] = nodes.get(place, 0) + 1
        if kind in products:
            name = f"{kind} {dtype}"
            counts[name] = counts.get(name, 0) + 1
            if expected and place != expected:
                strays.append(f"{kind} on {place or 'an unknown place'}")
    ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
    return Executed(ordered, dict(sorted(nodes.items())), tuple(strays))


class Runner(ABC):
    """One graph, opened on one runtime. A context manager; subclasses implement ``_run`` and ``_describe``.

    Attributes:
        name: of the runtime.
        precision: what the graph is run in, as in the tolerance table.
        inputs, outputs: in the order of the graph; empty where they are not known.
    """

    name: str = ""
    precision: str = "float32"
    inputs: tuple[Port, ...] = ()
    outputs: tuple[Port, ...] = ()

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """All outputs by name.

        Args:
            feed: every input by name, with the type and shape of ``inputs``.

        Raises:
            DoesNotRun: other inputs than the graph's, or the runtime failed.
        """
        wanted = {port.name: port for port in self.inputs}
        if self.inputs and (set(feed) != set(wanted) or not all(wanted[n].accepts(a) for n, a in feed.items())):
            fed = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in feed.items())
            raise DoesNotRun(
                f"{self.name} was fed {fed or 'nothing'}", ", ".join(port.describe() for port in self.inputs)
            )
        return self._run({name: np.ascontiguousarray(array) for name, array in feed.items()})

    @property
    def fixed_batch(self) -> int | None:
        """The number of pictures of a graph that takes no other; None: any."""
        return self.inputs[0].shape[0] if self.inputs else None

    def executed(self) -> Executed | None:
        """What runs in which type; None where it is not known, or not before the first run."""
        return None

    def failures(self) -> list[str]:
        """In which ways, after a run, it does not execute what the precision promises; one line each."""
        done = self.executed()
        return [] if done is None else done.failures(self.precision)

    def describe(self) -> dict[str, Any]:
        """Plain JSON types: runtime, version, place, threads, and what was executed, once that is known."""
        facts, done = {"runtime": self.name, **self._describe()}, self.executed()
        if done is not None:
            facts["products"] = dict(done.products)
            if done.nodes:
                facts["nodes"] = dict(done.nodes)
        return facts

    def close(self) -> None:
        """Free the graph."""
        return

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _run(self, feed: Feed) -> dict[str, np.ndarray]: ...

    def _describe(self) -> dict[str, Any]:
        return {}


class FunctionRunner(Runner):
    """Anything that turns a feed into outputs: an engine, or a stand-in.

    Args:
        batch: the only number of pictures it takes; None: any.
    """

    def __init__(self, name: str, function: Callable[[Feed], dict[str, np.ndarray]], batch: int | None = None) -> None:
        self.name, self._function, self._batch = name, function, batch

    @property
    def fixed_batch(self) -> int | None:
        return self._batch

    def _run(self, feed: Feed) -> dict[str, np.ndarray]:
        return self._function(feed)


def threads_or_all(threads: int | None) -> int:
    """The number given, or as many as this process may use.

    Raises:
        KcdpError: not a number of threads; see ``kcdp.runtime.backends.options``.
    """
    return SessionOptions(threads=threads).threads or processors()


def first_line(error: Exception, most: int = 300) -> str:
    """A library's message on one line, not too long."""
    return " ".join(str(error).split())[:most] or type(error).__name__
