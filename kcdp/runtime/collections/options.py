"""How a collection is tagged: workers and what each has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kcdp.errors import KcdpError
from kcdp.runtime.processor import processors

_OBJECT_STORE = 512 << 20


@dataclass(frozen=True)
class CollectionOptions:
    """Settings of ``tag_collection``.

    Attributes:
        workers: processes that tag, each with a model of its own; None: as many as this machine's cores have room for.
        batch_size: pictures that go through the graph at once.
        threads: processor threads of a worker; so many cores are reserved for it. Of a backend that has no such
            option, those that read pictures.
        gpus: GPUs reserved for a worker, perhaps a part of one; without a reservation it sees none.
        backend: as ``Tagger.load`` takes it.
        load: more arguments of ``Tagger.load``, ``options`` included.
        address: of a running cluster, "auto" for the one that this machine belongs to; None: one on this machine,
            which is started and ended. Every machine needs the same version of kcdp, and the model and the pictures
            under the same paths.
        object_store: bytes of shared memory for pictures between reading and tagging, where one is started. Of files
            only the paths travel.
        part_rows: rows of a Parquet file that is written, rounded up to whole batches.

    Raises:
        KcdpError: a number that makes no sense.
    """

    workers: int | None = None
    batch_size: int = 16
    threads: int = 1
    gpus: float = 0.0
    backend: str = "auto"
    load: Mapping[str, Any] = field(default_factory=dict)
    address: str | None = None
    object_store: int = _OBJECT_STORE
    part_rows: int = 10_000

    def __post_init__(self) -> None:
        least = {"workers": 1, "batch_size": 1, "threads": 1, "object_store": 100 << 20, "part_rows": 1}
        for name, smallest in least.items():
            value = getattr(self, name)
            if name == "workers" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
                raise KcdpError(f"{name} is {value!r}", f"a whole number from {smallest}")
        if isinstance(self.gpus, bool) or not isinstance(self.gpus, (int, float)) or not 0 <= self.gpus < 1 << 16:
            raise KcdpError(f"gpus is {self.gpus!r}", "a number from 0")

    @property
    def local_workers(self) -> int:
        """``workers``, or how many have room on this machine."""
        return self.workers or max(1, processors() // self.threads)

    @property
    def batches_of_a_part(self) -> int:
        """``part_rows`` in batches."""
        return -(-self.part_rows // self.batch_size)
