"""Sessions: one graph, opened on one kind of runtime, that turns pictures into logits."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from kcdp.bundle import Bundle
from kcdp.errors import KcdpError
from kcdp.graph import TensorSpec, tagging_graph

#: Name, numpy's name of the type, and lengths (None where free) of an input or output.
Tensor: TypeAlias = tuple[str, str, tuple[int | None, ...]]


class NonFiniteLogits(KcdpError):
    """The graph gave NaN or infinity for some pictures of a batch.

    Attributes:
        rows: which pictures of the batch.
        logits: float32 [N, 6], all of the batch, the bad rows included.
    """

    def __init__(self, rows: Sequence[int], logits: np.ndarray) -> None:
        self.rows, self.logits = tuple(rows), logits
        super().__init__(
            f"the graph gave logits that are not finite for picture {', '.join(map(str, rows))} of the batch",
            "finite numbers",
            "export the bundle again in float32",
        )


class Session(ABC):
    """Checks what goes in and what comes out; a subclass implements ``_run``, ``_describe`` and ``_close``.

    ``run`` may be called from several threads at once. A session is a context manager.

    Args:
        bundle: an opened bundle.

    Attributes:
        why: what made ``kcdp.runtime.backends.registry`` take this backend; empty where nobody chose.
        streams: how many runs at once are worth it.

    Raises:
        KcdpError: the bundle's graph takes or gives something else than pictures and logits.
    """

    why = ""
    streams = 1

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.size = bundle.manifest.preprocess.size
        got = bundle.manifest.graph
        self.scaled = bool(bundle.manifest.scaling)
        self.batch = got.inputs[0].shape[0] if got.inputs and got.inputs[0].shape else None
        tokens = got.inputs[1].shape[1:] if len(got.inputs) == 2 and len(got.inputs[1].shape) == 3 else None
        want = tagging_graph(self.size, batch=self.batch, knowledge=tokens, scaled=self.scaled)  # type: ignore[arg-type]
        if got != want:
            raise KcdpError(
                f"{bundle.path} describes its graph as {_signature(got.inputs)} -> {_signature(got.outputs)}",
                f"{_signature(want.inputs)} -> {_signature(want.outputs)}",
                "export the bundle again",
            )
        self._inputs, self._output = got.inputs, got.outputs[0]
        self._closed = False

    @property
    def takes_knowledge(self) -> bool:
        """Whether the graph wants knowledge tokens beside the pictures."""
        return len(self._inputs) == 2

    def describe(self) -> dict[str, Any]:
        """What runs where and why, in plain JSON types: backend, version, provider, threads, streams, why, precision,
        input, output, and what else the backend knows."""
        return {
            **self._describe(),
            "streams": self.streams,
            "why": self.why,
            "precision": str(self.bundle.manifest.precision.get("default", "unknown")),
            "input": ", ".join(spec.describe() for spec in self._inputs),
            "output": self._output.describe(),
        }

    def run(self, images: np.ndarray, knowledge: np.ndarray | None = None) -> np.ndarray:
        """Logits of a batch. A graph of a fixed batch is run as often as it takes, the last time filled up.

        Args:
            images: uint8 [N, size, size, 3], height-width-channel, RGB, 0..255, as ``PreprocessSpec`` makes
                them. N may be 0.
            knowledge: float32 [N, T, W], for a bundle that takes it, see ``kcdp.runtime.text``; else None.

        Returns:
            float32 [N, 6] logits, columns in the order of ``kcdp.labels.LABELS``.

        Raises:
            KcdpError: wrong dtype or shape, a closed session, or a failure inside the runtime library.
            NonFiniteLogits: some logits are NaN or infinite.
        """
        self.check(images)
        self._check_knowledge(knowledge, len(images))
        if self._closed:
            raise KcdpError(f"the session of {self.bundle.path} is closed", fix="open the bundle again")
        if len(images) == 0:
            return np.empty((0, len(self.bundle.manifest.labels)), np.float32)
        feed = {"images": self._scale(images) if self.scaled else np.ascontiguousarray(images)}
        if knowledge is not None:
            feed["knowledge"] = np.ascontiguousarray(knowledge)
        try:
            logits = self._run(feed) if self.batch is None else self._run_fixed(feed, self.batch)
        except Exception:
            if self._closed:  # by another thread, meanwhile
                raise KcdpError(f"the session of {self.bundle.path} is closed", fix="open the bundle again") from None
            raise
        expected = (len(images), len(self.bundle.manifest.labels))
        if logits.dtype != np.float32 or logits.shape != expected:
            raise KcdpError(
                f"{self.bundle.model_path} gave {logits.dtype} {list(logits.shape)}",
                f"float32 {list(expected)}",
                "export the bundle again",
            )
        finite = np.isfinite(logits).all(axis=1)
        if not finite.all():
            raise NonFiniteLogits([int(row) for row in np.flatnonzero(~finite)], logits)
        return logits

    def check(self, images: np.ndarray) -> None:
        """Raises KcdpError unless ``images`` is what ``run`` takes."""
        expected = f"uint8 [N, {self.size}, {self.size}, 3]"
        if not isinstance(images, np.ndarray):
            raise KcdpError(f"images: received {type(images).__name__}", f"a numpy array, {expected}")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (self.size, self.size, 3):
            raise KcdpError(f"images: received {images.dtype} {list(images.shape)}", expected)

    def _check_knowledge(self, knowledge: np.ndarray | None, count: int) -> None:
        if not self.takes_knowledge:
            if knowledge is not None:
                raise KcdpError(f"knowledge given to {self.bundle.path}", "none: the bundle finds its knowledge itself")
            return
        expected = f"float32 [{count}, {self._inputs[1].shape[1]}, {self._inputs[1].shape[2]}]"
        if knowledge is None:
            raise KcdpError(
                f"no knowledge given to {self.bundle.path}", f"knowledge tokens {expected}",
                "make them from captions with kcdp.runtime.text.KnowledgeEncoder, or export with --knowledge implicit",
            )  # fmt: skip
        if knowledge.dtype != np.float32 or knowledge.shape != (count, *self._inputs[1].shape[1:]):
            raise KcdpError(f"knowledge: received {knowledge.dtype} {list(knowledge.shape)}", expected)

    def _scale(self, images: np.ndarray) -> np.ndarray:
        """Bytes to what a plain export takes: float32 [N, 3, size, size]."""
        scaling = self.bundle.manifest.scaling
        scale, shift = (np.array(scaling[key], np.float32).reshape(-1, 1, 1) for key in ("scale", "shift"))
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32) * scale + shift)

    def _run_fixed(self, feed: Mapping[str, np.ndarray], batch: int) -> np.ndarray:
        count, parts = len(feed["images"]), []
        for start in range(0, count, batch):
            chosen: Any = slice(start, start + batch)  # no copy
            if start + batch > count:
                chosen = np.minimum(np.arange(start, start + batch), count - 1)  # the last picture fills up
            parts.append(self._run({name: array[chosen] for name, array in feed.items()}))
        return parts[0][:count] if len(parts) == 1 else np.concatenate(parts)[:count]

    def close(self) -> None:
        """Free the graph. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *details: Any) -> None:
        self.close()

    def _library_failed(self, library: str, feed: Mapping[str, np.ndarray], error: Exception) -> KcdpError:
        """What is said when the library fails in a run."""
        return KcdpError(
            f"{library} failed on {self.bundle.model_path} with {len(feed['images'])} pictures ({first_line(error)})",
            fix="try a smaller batch, or export the bundle again",
        )

    @abstractmethod
    def _run(self, feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """The graph's inputs by name, contiguous, N >= 1 rows, in; float32 [N, 6] out."""

    @abstractmethod
    def _describe(self) -> dict[str, Any]:
        """backend, version, provider, threads."""

    @abstractmethod
    def _close(self) -> None:
        """Called once."""


def _signature(tensors: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {['N' if n is None else n for n in t.shape]}" for t in tensors) or "nothing"


def first_line(error: Exception) -> str:
    """A library's message on one line, without its error code and the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not _PLACE.match(line)]
    return _CODE.sub("", (told or [type(error).__name__])[0])


def compare_signature(path: Path, actual: Sequence[Tensor], declared: Sequence[TensorSpec], side: str) -> None:
    """Order: names, types, shapes; the first difference is reported.

    Args:
        path: of the graph.
        actual: name, numpy's name of the type, and lengths (None where free), as a library sees them.
        declared: of the manifest.
        side: "input" or "output".

    Raises:
        KcdpError: the graph is not what the manifest says.
    """
    again = "export the bundle again"
    got_names, want_names = [tensor[0] for tensor in actual], [spec.name for spec in declared]
    if got_names != want_names:
        raise KcdpError(f"{path} has the {side}s {got_names}", f"{want_names} as in the manifest", again)
    for (name, dtype, shape), spec in zip(actual, declared, strict=True):
        if (dtype, tuple(shape)) != (spec.dtype, spec.shape):
            dims = ", ".join("?" if n is None else str(n) for n in shape)
            raise KcdpError(
                f"{path} has the {side} {name} {dtype} [{dims}]", f"{spec.describe()} as in the manifest", again
            )


_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_PLACE = re.compile(r"^Exception from \S+:\d+:$")
