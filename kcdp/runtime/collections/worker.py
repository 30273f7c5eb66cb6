"""A worker: one process with one tagger, through which units of items go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kcdp import __version__
from kcdp.errors import KcdpError, require
from kcdp.runtime.collections.ledger import TRIES
from kcdp.runtime.collections.units import pack, unpack
from kcdp.runtime.items import Prepared

if TYPE_CHECKING:
    from kcdp.runtime.collections.options import CollectionOptions
    from kcdp.runtime.items import Item
    from kcdp.runtime.tagger import Tag, Tagger


class Worker:
    """Made once in each process; called with tables of units, gives tables of their tags.

    A mistake that ends the run (a bundle that is not on this machine) is a unit's content and not an exception, which
    would arrive as pages of a traceback through three processes.

    Args:
        model: the bundle's folder.
        options: of the run.
        version: of kcdp where the run was started.
        ledger: see ``kcdp.runtime.collections.ledger``.
    """

    def __init__(self, model: str, options: CollectionOptions, version: str, ledger: Any) -> None:
        self._ledger = ledger
        self._fault: KcdpError | None = None
        self._readers = ThreadPoolExecutor(options.threads) if options.threads > 1 else None
        try:
            if version != __version__:
                raise KcdpError(f"a worker has kcdp {__version__}", f"{version}, as where the run was started")
            self._tagger = _loaded(model, options)
        except KcdpError as error:
            self._fault = error

    def __call__(self, table: Any) -> Any:
        """Tables as ``kcdp.runtime.collections.units.pack`` makes them: of items to of tags."""
        units = list(unpack(table))
        work = units[0][0] if units else None
        tag = self._tag if self._begin(work) < TRIES else self._tag_singly
        done = pack([(first, self._guarded(tag, first, items)) for first, items in units])
        self._ledger.end.remote(work)
        return done

    def _begin(self, work: Any) -> int:
        return int(require("ray", "ray").get(self._ledger.begin.remote(work)))

    def _guarded(
        self, tag: Callable[[int, Sequence[Item]], list[Tag]], first: int, items: Sequence[Item] | KcdpError
    ) -> list[Tag] | KcdpError:
        if self._fault is not None:
            return self._fault
        if isinstance(items, KcdpError):
            return items
        try:
            return tag(first, items)
        except KcdpError as error:
            return error

    def _tag(self, first: int, items: Sequence[Item]) -> list[Tag]:
        prepare = self._tagger.prepare
        return self._tagger.finish(list(map(prepare, items) if self._readers is None
                                        else self._readers.map(prepare, items)))  # fmt: skip

    def _tag_singly(self, first: int, items: Sequence[Item]) -> list[Tag]:
        """Where a worker has died of these items again and again: a row with an error for each that is at fault."""
        tags = []
        for number, item in enumerate(items, first):
            work = ("one", number)
            if self._begin(work) < TRIES:
                tags += self._tag(number, [item])
            else:
                error = KcdpError(f"{item.name} ended the process that read it, {TRIES} times", "a sound picture")
                tags += self._tagger.finish([Prepared.failed(item.name, error, caption=item.caption)])
            self._ledger.end.remote(work)
        return tags


def _loaded(model: str, options: CollectionOptions) -> Tagger:
    """The tagger. Its backend is told the threads where it has such an option: what runs on a card has none."""
    from kcdp.runtime.backends.options import AUTO, DEFAULTS
    from kcdp.runtime.backends.registry import BACKENDS, choose, open_model, open_session
    from kcdp.runtime.tagger import Tagger

    load, backend, bundle = dict(options.load), options.backend, open_model(model)
    told = load.pop("options", DEFAULTS)
    if backend == AUTO:
        with suppress(KcdpError):  # opening it says why
            backend = choose(bundle, options=told).backend
    if backend not in BACKENDS or "threads" in BACKENDS[backend].options:
        told = told.with_threads(options.threads)
    session = open_session(bundle, backend, options=told)
    return Tagger(session, batch_size=options.batch_size, threads=options.threads, **load)
