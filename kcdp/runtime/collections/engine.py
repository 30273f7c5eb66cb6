"""A collection through the workers: its tags in order, each once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kcdp import __version__
from kcdp.runtime.collections.items import Files
from kcdp.runtime.collections.ledger import Ledger
from kcdp.runtime.collections.options import CollectionOptions
from kcdp.runtime.collections.tables import Tables
from kcdp.runtime.collections.units import unpack
from kcdp.runtime.collections.worker import Worker
from kcdp.runtime.tagger import Tag

#: Bytes of pictures that one task has at most, about: so much is read and done again where a worker dies.
_TASK_BYTES = 8 << 20


def stream(
    ray: Any, collection: Files | Tables, model: str, options: CollectionOptions, *, start: int = 0
) -> Iterator[Tag]:
    """Tags of the items from number ``start`` on, in their order. Little more than what workers are at is in memory.

    A worker that dies is started anew, and what it had not given back is done again: the engine takes a task's result
    whole or not at all, and numbers are compared here.

    Args:
        ray: the module, connected: see ``kcdp.runtime.collections.cluster``.
        model: the bundle's folder.

    Raises:
        KcdpError: as ``Tagger.load`` and ``Tagger.finish`` in a worker; a table that cannot be read.
        RuntimeError: the engine lost or repeated something.
    """
    if start >= collection.count:
        return
    workers = options.workers or _workers_with_room(ray, options)
    # restarted and tried again without end, as are a pool's workers: which of them need not be, it says
    ledger = ray.remote(Ledger).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
    expected = start
    for table in _dataset(ray, collection, model, options, start, workers, ledger).iter_batches(
        batch_size=None, batch_format="pyarrow"
    ):
        for first, tags in unpack(table):
            if isinstance(tags, Exception):
                raise tags
            fresh = tags[max(0, start - first) :]
            if first + len(tags) - len(fresh) != expected:
                raise RuntimeError(f"rows from {first} on came where {expected} was next")
            expected += len(fresh)
            yield from fresh
    if expected != collection.count:
        raise RuntimeError(f"{expected} of {collection.count} rows came")


def _dataset(
    ray: Any, collection: Files | Tables, model: str, options: CollectionOptions, start: int, workers: int, ledger: Any
) -> Any:
    blocks = list(collection.blocks(start, options.batch_size, workers))
    data = ray.data.from_blocks(blocks)
    context = data.context  # this dataset's own
    context.execution_options.preserve_order = True
    context.target_max_block_size = _TASK_BYTES
    context.enable_progress_bars = False
    if collection.read is not None:
        # no processor is reserved for reading: workers may have them all, and would then wait for it for ever
        data = data.map_batches(
            collection.read, batch_size=None, batch_format="pyarrow", num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=min(workers, len(blocks))),
        )  # fmt: skip
    return data.map_batches(
        Worker, fn_constructor_args=(model, options, __version__, ledger), batch_size=None, batch_format="pyarrow",
        num_cpus=options.threads, num_gpus=options.gpus or None,
        compute=ray.data.ActorPoolStrategy(size=workers),
    )  # fmt: skip


def _workers_with_room(ray: Any, options: CollectionOptions) -> int:
    """As many as the cluster has processors and GPUs for now."""
    has = ray.cluster_resources()
    room = has.get("CPU", 0) // options.threads
    return int(max(1, min(room, has.get("GPU", 0) // options.gpus) if options.gpus else room))
