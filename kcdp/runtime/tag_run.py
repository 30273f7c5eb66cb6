"""The course of ``kcdp tag``: pictures through the tagger, tags to everything that was asked for."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from kcdp.errors import KcdpError
from kcdp.files import atomic_file
from kcdp.runtime.earlier_rows import Earlier
from kcdp.runtime.output import TEXT, make_writer, printable, standard_output
from kcdp.runtime.progress import Counter
from kcdp.runtime.rows import DIGEST_DIGITS
from kcdp.runtime.rows_file import READABLE, RowsFile
from kcdp.runtime.tag_checks import Survey, form_of, guarded, targets_of
from kcdp.runtime.watching import Watcher, rounds, stop_on_signals

if TYPE_CHECKING:
    from kcdp.runtime.items import Item
    from kcdp.runtime.tagger import Tag, Tagger

#: Exit statuses; mistakes of the user are 2, and a closed pipe ends quietly: ``kcdp.cli.guarded`` sees to both.
ALL_TAGGED, SOME_FAILED = 0, 1


class Sink(Protocol):
    """What takes each picture with its tag."""

    def add(self, item: Item, tag: Tag) -> None:
        """Raises KcdpError where this one cannot be taken."""

    def told(self) -> list[str]:
        """Lines for the end."""


class Outputs:
    """Rows, files beside the pictures, sheets: fed one tag after the other.

    Args:
        write: takes the row.
        each: sinks of pictures tagged now.
        sheets: sinks of all pictures, those with a row from an earlier run as well.
        counter: cleared before a line is printed.
    """

    def __init__(
        self, write: Callable[[Tag], None], each: list[Sink], sheets: list[Sink], earlier: Earlier, counter: Counter
    ) -> None:
        self._write, self._each, self._sheets, self._counter = write, each, sheets, counter
        self.earlier = earlier
        self.tagged, self.failed, self.problems = earlier.tagged, earlier.failed, 0
        self.before = earlier.tagged + earlier.failed

    def add(self, item: Item, tag: Tag) -> None:
        """A picture tagged now. Its row is written last: what has a row has the rest too."""
        for sink in (*self._each, *self._sheets):
            self._try(sink, item, tag)
        self._write(tag)
        self.tagged += tag.error is None
        self.failed += tag.error is not None
        self._counter.step()

    def add_earlier(self, item: Item, tag: Tag) -> None:
        """A picture whose row was there already."""
        for sink in self._sheets:
            self._try(sink, item, tag)

    def report(self, wrote: Iterable[str]) -> None:
        """Prints what was done, on standard error."""
        self._counter.clear()
        names = list(wrote)
        written = " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
        before = f" (rows from before: {self.before})" if self.before else ""
        wrote_line = f"; wrote {written}" if written else ""
        print(f"{self.tagged} tagged, {self.failed} failed{before}{wrote_line}", file=sys.stderr)
        for line in (line for sink in (*self._each, *self._sheets) for line in sink.told()):
            print(line, file=sys.stderr)
        if self.problems:
            print(f"files that could not be written, see above: {self.problems}", file=sys.stderr)

    def _try(self, sink: Sink, item: Item, tag: Tag) -> None:
        try:
            sink.add(item, tag)
        except KcdpError as error:
            self.problems += 1
            self._counter.clear()
            print(f"kcdp: warning: {printable(str(error))}", file=sys.stderr, flush=True)


class _PictureSheet:
    """Keeps the tags for the picture that ``--sheet`` asks for."""

    def __init__(self) -> None:
        self.tags: list[Tag] = []
        self.sources: dict[str, Any] = {}

    def add(self, item: Item, tag: Tag) -> None:
        self.tags.append(tag)
        self.sources[tag.path] = item.source

    def told(self) -> list[str]:
        return []


@contextmanager
def opened_outputs(args: argparse.Namespace, model: str, survey: Survey) -> Iterator[Outputs]:
    """Everything the arguments ask for, complete when the block has ended well."""
    each: list[Sink] = []
    sheets: list[Sink] = []
    if args.sidecar:
        from kcdp.runtime.sidecars import Sidecars

        each.append(Sidecars(args.sidecar, model, overwrite=args.overwrite))
    if args.sort_into:
        from kcdp.runtime.sorting import Sorter

        each.append(Sorter(args.sort_into, link=args.link))
    form, kept = form_of(args), bool(args.sheet or args.html)
    picture = _PictureSheet()
    with ExitStack() as files:
        if args.html:
            from kcdp.runtime.page import HtmlSheet

            sheets.append(files.enter_context(HtmlSheet(args.html)))
        if args.sheet:
            sheets.append(picture)
        earlier = Earlier()
        if args.out and form in READABLE:
            rows = RowsFile(args.out, form, model, resume=args.resume, append=args.watch, keep=kept)
            files.enter_context(rows)
            write, earlier = rows.write, rows.earlier
        else:
            stream = standard_output()
            if args.out:
                stream = files.enter_context(files.enter_context(atomic_file(args.out)).open("w", **TEXT))
            write = make_writer(form, stream, survey.width, model=model[:DIGEST_DIGITS]).write
        before = earlier.tagged + earlier.failed
        total = None if survey.count is None else max(0, survey.count - before)
        counter = Counter(total, shown=bool(args.out) or not sys.stdout.isatty())
        files.callback(counter.clear)
        yield Outputs(write, each, sheets, earlier, counter)
    if args.sheet:
        from kcdp.runtime.sheet import write_contact_sheet

        write_contact_sheet(args.sheet, picture.tags, sources=picture.sources)


def tag_once(args: argparse.Namespace, tagger: Tagger, items: Iterable[Item], survey: Survey) -> int:
    """A run that ends by itself.

    Returns:
        0 when all pictures have their tags and files, 1 when some failed.
    """
    targets = targets_of(args)
    with opened_outputs(args, tagger.manifest.digest, survey) as outputs:
        for item, tag, new in paired(tagger, guarded(items, targets), outputs.earlier):
            (outputs.add if new else outputs.add_earlier)(item, tag)
    outputs.report(targets.values())
    if args.stats:
        found = tagger.session.describe()
        print(f"{found['backend']} {found['version']}, {found['precision']}, runs side by side: {found['streams']}",
              *tagger.stats.lines(), sep="\n", file=sys.stderr)  # fmt: skip
    return SOME_FAILED if outputs.failed or outputs.problems else ALL_TAGGED


def tag_arrivals(args: argparse.Namespace, tagger: Tagger, find: Callable[[], Iterable[Item]], survey: Survey) -> int:
    """What is there, then what arrives or changes, until Ctrl-C.

    Returns:
        0.
    """
    targets = targets_of(args)
    with stop_on_signals() as stopped, opened_outputs(args, tagger.manifest.digest, survey) as outputs:
        known = outputs.earlier.paths
        watcher = Watcher(find, own=targets.values(), known=frozenset(known))
        print(f"watching {', '.join(args.paths)}; Ctrl-C ends", file=sys.stderr, flush=True)
        for ready in rounds(watcher, stopped):
            for item, tag, _ in paired(tagger, ready, Earlier()):
                outputs.add(item, tag)
                if stopped():
                    break
    outputs.report(targets.values())
    return ALL_TAGGED


def paired(tagger: Tagger, items: Iterable[Item], earlier: Earlier) -> Iterator[tuple[Item, Tag, bool]]:
    """Items with their tags, in their order; False with tags that an earlier run has made, where they were kept."""
    waiting: deque[tuple[Item, Tag | None]] = deque()

    def new() -> Iterator[Item]:
        for item in items:
            had, tag = earlier.take(item.name)
            if not had:
                waiting.append((item, None))
                yield item
            elif tag is not None:
                waiting.append((item, tag))

    def had_before() -> Iterator[tuple[Item, Tag, bool]]:
        while waiting and waiting[0][1] is not None:
            item, tag = waiting.popleft()
            if tag is not None:
                yield item, tag, False

    fed: Any = new()
    tags = tagger.stream(fed)
    try:
        for tag in tags:
            yield from had_before()
            item, _ = waiting.popleft()
            if item.name != tag.path:
                raise RuntimeError(f"the tag of {tag.path} came where that of {item.name} was due")
            yield item, tag, True
        yield from had_before()
    finally:
        if close := getattr(tags, "close", None):
            close()
