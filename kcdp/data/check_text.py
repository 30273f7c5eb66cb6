"""What ``kcdp data check`` prints: what was found, a verdict, and what to do about each thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kcdp.data.check import Check

#: Examples of each finding; all of them are in the file that --json writes.
_EXAMPLES = 3


def describe_check(check: Check, seconds: float) -> str:
    """The findings and the verdict; lines that begin with "-" say what to do.

    Args:
        check: what was found.
        seconds: how long that took.
    """
    read = len(check.dataset) - len(check.unreadable)
    lines = [f"checked in {seconds:.1f} s: {read} pictures decoded, {len(check.missing)} missing, "
             f"{len(check.damaged)} damaged"]  # fmt: skip
    lines += _findings(check)
    lines.append(f"verdict: {check.verdict}")
    return "\n".join(lines)


def _findings(check: Check) -> Iterator[str]:
    if check.missing:
        yield f"{len(check.missing)} pictures are missing:"
        yield from _shown([picture.reason for picture in check.missing])
        yield "- fetch the dataset again, or take these pictures out of its lists"
    if check.damaged:
        yield f"{len(check.damaged)} pictures cannot be decoded:"
        yield from _shown([picture.reason for picture in check.damaged])
        yield "- copy these files again, or delete them"
    if check.conflicts:
        yield f"{len(check.conflicts)} pictures are there several times with different labels:"
        yield from _groups(check, check.conflicts)
        yield "- decide on one label for each, or delete all its copies"
    if check.same:
        extra = sum(len(group) - 1 for group in check.same)
        across = check.across_splits(check.same)
        yield (f"{len(check.same)} pictures are there several times, equal in every pixel ({extra} copies too many), "
               f"{len(across)} of them in more than one split:")  # fmt: skip
        yield from _groups(check, _first(across, check.same))
        yield _keep_one(bool(across))
    if check.cards:
        yield f'{len(check.cards)} pictures look like a card ("picture unavailable"), under many keys:'
        yield from _groups(check, check.cards)
        yield "- look at one of each, and delete all its copies"
    cards = set(check.cards)
    photographs = [group for group in check.alike if group not in cards]
    if photographs:
        across = check.across_splits(tuple(photographs))
        labels = sum(len(check.labels_of(group)) > 1 for group in photographs)
        yield (f"{len(photographs)} pictures are there several times in other sizes or compressions, "
               f"{len(across)} of them in more than one split, {labels} with different labels:")  # fmt: skip
        yield from _groups(check, _first(across, photographs))
        yield _keep_one(bool(across))
    for split, names in check.absent.items():
        yield f"{'the dataset' if split == 'all' else split} has no picture of {', '.join(names)}"
    if check.absent:
        yield "- nothing can be learned or measured there for these classes"


def _first(worst: Sequence[tuple[int, ...]], groups: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [*worst, *(group for group in groups if group not in worst)]


def _keep_one(across: bool) -> str:
    if across:
        return "- keep one copy of each: what was trained on is measured on too"
    return "- keep one copy of each, or let them count several times"


def _groups(check: Check, groups: Sequence[tuple[int, ...]]) -> Iterator[str]:
    texts = []
    for group in groups:
        keys = [check.keys[index] for index in group]
        more = f" and {len(keys) - _EXAMPLES} more" if len(keys) > _EXAMPLES else ""
        labels = ", ".join(check.labels_of(group)) or "no label"
        texts.append(f"{', '.join(keys[:_EXAMPLES])}{more} ({labels})")
    return _shown(texts)


def _shown(texts: Sequence[str]) -> Iterator[str]:
    for text in texts[:_EXAMPLES]:
        yield f"  {text}"
    if len(texts) > _EXAMPLES:
        yield f"  and {len(texts) - _EXAMPLES} more"
