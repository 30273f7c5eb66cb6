"""What a server counts, for Prometheus, in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from kcdp.errors import require

#: stage -> what it spans.
STAGES = {
    "receive": "the body, from the first byte to the last",
    "decode": "one picture, from its bytes to the graph's input",
    "wait": "one picture, until its run of the graph begins",
    "graph": "one run of the graph and what makes tags of it",
    "request": "a request to /v1/tag, from its head to its answer",
}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 128)


class Metrics:
    """Counters and histograms.

    Args:
        queue_length: gives the number of pictures that are being decoded or wait.

    Raises:
        KcdpError: prometheus_client is not installed.
    """

    def __init__(self, queue_length: Callable[[], int]) -> None:
        library = require("prometheus_client", "serve")
        self._library, self.registry = library, library.CollectorRegistry(auto_describe=True)
        own = {"registry": self.registry}
        library.ProcessCollector(**own)
        self.requests = library.Counter("kcdp_requests", "Requests answered.", ("path", "status"), **own)
        self.pictures = library.Counter("kcdp_pictures", "Pictures whose row was made, failed ones included.", **own)
        self.failures = library.Counter("kcdp_picture_failures", "Pictures whose row is an error.", **own)
        self.dropped = library.Counter("kcdp_pictures_dropped", "Pictures whose request had gone away.", **own)
        self.batch_failures = library.Counter("kcdp_batch_failures", "Runs of the graph that failed.", **own)
        self.batches = library.Histogram(
            "kcdp_batch_size", "Frames that shared a run of the graph; a still picture has one.", buckets=_SIZES, **own
        )
        self.stages = library.Histogram(
            "kcdp_stage_seconds", "; ".join(f"{k}: {v}" for k, v in STAGES.items()), ("stage",), buckets=_SECONDS, **own
        )
        library.Gauge("kcdp_queue_length", "Pictures being decoded or waiting.", **own).set_function(queue_length)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """The time that the block takes, one of ``STAGES``; where it raises, too."""
        start = perf_counter()
        try:
            yield
        finally:
            self.took(stage, perf_counter() - start)

    def took(self, stage: str, seconds: float) -> None:
        """One duration of a stage."""
        self.stages.labels(stage).observe(seconds)

    def page(self) -> tuple[bytes, str]:
        """The text that Prometheus reads, and its content type."""
        return self._library.generate_latest(self.registry), str(self._library.CONTENT_TYPE_LATEST)
