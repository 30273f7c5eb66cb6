"""A progress bar on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from kcdp.errors import KcdpError, require

T = TypeVar("T")


def with_bar(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """The items, with a bar of ``total`` pictures where standard error is a terminal and tqdm is installed.

    A bar is no reason to ask for an extra.
    """
    try:
        tqdm = require("tqdm", "train").tqdm
    except KcdpError:
        return items
    bar: Iterable[T] = tqdm(items, desc=what, total=total, unit=" pictures", disable=None, leave=False)
    return bar
