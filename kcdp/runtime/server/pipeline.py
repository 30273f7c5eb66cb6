"""From a request's pictures to their tags: a few threads decode, one runs the graph for whatever has come together."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic

from kcdp.errors import KcdpError
from kcdp.runtime.items import Item, Prepared
from kcdp.runtime.server.metrics import Metrics
from kcdp.runtime.server.options import ServerOptions
from kcdp.runtime.tagger import Tag, Tagger

#: What goes wrong on the server's side is told here, a line each; without handlers, Python prints it to stderr.
log = logging.getLogger("kcdp.server")


class Full(Exception):
    """There is no room for so many pictures now."""


class BatchFailed(Exception):
    """A run of the graph that held pictures of this request failed; the log says why."""


class Work:
    """One request's pictures on their way. ``future`` belongs to the event loop, the rest to any thread.

    Attributes:
        future: the tags, in order; or ``BatchFailed``.
        gone: nobody waits for them any more.
    """

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[list[Tag]] = loop.create_future()
        self.gone = False
        self.jobs: list[Job] = []
        self._tags: list[Tag | None] = [None] * count
        self._left, self._lock, self._loop = count, threading.Lock(), loop

    def settle(self, index: int, tag: Tag) -> None:
        """One picture's tag; the last one answers the request."""
        with self._lock:
            self._tags[index] = tag
            self._left -= 1
            last = self._left == 0
        if last:
            self._answer([tag for tag in self._tags if tag is not None])

    def fail(self) -> None:
        """Answers the request with a failure; its other pictures are dropped."""
        self.gone = True
        self._answer(BatchFailed())

    def abandon(self) -> None:
        """The request has gone: what is not yet decoded lets go of its bytes, the rest never reaches the graph."""
        self.gone = True
        self.future.cancel()
        for job in self.jobs:
            job.item = None

    def _answer(self, result: list[Tag] | Exception) -> None:
        try:
            self._loop.call_soon_threadsafe(self._set, result)
        except RuntimeError:  # the loop is closed: there is nobody to answer
            self.gone = True

    def _set(self, result: list[Tag] | Exception) -> None:
        if self.future.done():
            return
        if isinstance(result, Exception):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


@dataclass(eq=False)
class Job:
    """One picture of a request: first its bytes, then what the graph takes, since when it waits (``monotonic``)."""

    work: Work
    index: int
    item: Item | None
    prepared: Prepared | None = None
    since: float = 0.0

    @property
    def frames(self) -> int:
        """How many pictures the graph sees."""
        return len(self.prepared.pixels) if self.prepared else 0


class Pipeline:
    """Decoding threads, a bounded queue and the thread that runs the graph; started at once, ended by ``close``.

    Args:
        tagger: stays the caller's, who closes it after the pipeline.
        options: ``queue``, ``batch_wait`` and ``workers`` are used.
    """

    def __init__(self, tagger: Tagger, options: ServerOptions) -> None:
        self._tagger, self._options = tagger, options
        self._ready = threading.Condition()  # guards the next three
        self._waiting: deque[Job] = deque()
        self._inside = 0
        self._closing = False
        self.metrics = Metrics(lambda: self._inside)
        self._pool = ThreadPoolExecutor(options.workers, thread_name_prefix="kcdp-decode")
        self._thread = threading.Thread(target=self._run, name="kcdp-graph", daemon=True)
        self._thread.start()

    @property
    def length(self) -> int:
        """Pictures that are being decoded or wait."""
        return self._inside

    def submit(self, items: Sequence[Item]) -> Work:
        """Begins with a request's pictures. To be called on the event loop that waits for them.

        Raises:
            Full: with them, more than ``queue`` pictures would be on their way; or the pipeline is closed.
        """
        work = Work(len(items), asyncio.get_running_loop())
        with self._ready:
            if self._closing or self._inside + len(items) > self._options.queue:
                raise Full
            self._inside += len(items)
        work.jobs = [Job(work, index, item) for index, item in enumerate(items)]
        for job in work.jobs:
            self._pool.submit(self._decode, job)
        return work

    def close(self, timeout: float) -> bool:
        """Ends the threads once they are done with what is inside; False where that takes longer than ``timeout``."""
        end = monotonic() + timeout
        with self._ready:
            self._closing = True
            self._ready.notify_all()
            done = self._ready.wait_for(lambda: self._inside == 0, timeout)
        self._pool.shutdown(wait=done, cancel_futures=True)
        self._thread.join(max(0.0, end - monotonic()) if not done else None)
        return done

    def _decode(self, job: Job) -> None:
        item, job.item = job.item, None
        if item is None or job.work.gone:
            self._drop([job])
            return
        try:
            with self.metrics.timed("decode"):
                prepared = self._tagger.prepare(item)
            if prepared.error is not None:  # a broken picture needs no graph
                self._give([job], self._tagger.finish([prepared]))
                return
        except Exception as error:  # not a broken picture, which is an error row: this thread must go on
            self._break([job], error)
            return
        job.prepared, job.since = prepared, monotonic()
        with self._ready:
            self._waiting.append(job)
            self._ready.notify_all()

    def _run(self) -> None:
        while batch := self._collect():
            begun = monotonic()
            for job in batch:
                self.metrics.took("wait", begun - job.since)
            self.metrics.batches.observe(sum(job.frames for job in batch))
            try:
                with self.metrics.timed("graph"):
                    tags = self._tagger.finish([job.prepared for job in batch if job.prepared])
            except Exception as error:  # of any library: this thread must go on
                self.metrics.batch_failures.inc()
                self._break(batch, error)
            else:
                self._give(batch, tags)

    def _collect(self) -> list[Job]:
        """What to run together, not before there is enough or its oldest has waited long enough; [] at the end."""
        with self._ready:
            while True:
                self._drop_gone()
                frames = sum(job.frames for job in self._waiting)
                if self._waiting:
                    left = self._waiting[0].since + self._options.batch_wait - monotonic()
                    if frames >= self._tagger.batch_size or left <= 0 or self._closing:
                        return self._take()
                    self._ready.wait(left)
                elif self._closing and self._inside == 0:
                    return []
                else:
                    self._ready.wait()

    def _take(self) -> list[Job]:
        batch = [self._waiting.popleft()]
        frames = batch[0].frames
        while self._waiting and frames + self._waiting[0].frames <= self._tagger.batch_size:
            batch.append(self._waiting.popleft())
            frames += batch[-1].frames
        return batch

    def _drop_gone(self) -> None:
        gone = [job for job in self._waiting if job.work.gone]
        if gone:
            self._waiting = deque(job for job in self._waiting if not job.work.gone)
            self._drop(gone)

    def _give(self, jobs: Sequence[Job], tags: Sequence[Tag]) -> None:
        self.metrics.pictures.inc(len(tags))
        self.metrics.failures.inc(sum(tag.error is not None for tag in tags))
        self._leave(jobs)  # first, so that whoever has an answer finds room for the next request
        for job, tag in zip(jobs, tags, strict=True):
            job.work.settle(job.index, tag)

    def _break(self, jobs: Sequence[Job], error: Exception) -> None:
        reason = str(error) if isinstance(error, KcdpError) else f"{type(error).__name__}: {error}"
        log.error("kcdp: error: %s", " ".join(reason.split()))
        self._leave(jobs)
        for work in {id(job.work): job.work for job in jobs}.values():
            work.fail()

    def _drop(self, jobs: Sequence[Job]) -> None:
        self.metrics.dropped.inc(len(jobs))
        self._leave(jobs)

    def _leave(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            job.item = job.prepared = None
        with self._ready:
            self._inside -= len(jobs)
            self._ready.notify_all()
