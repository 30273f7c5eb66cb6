"""Tag stickers with a bundle: numpy, Pillow and a session library, no PyTorch.

Three lines turn a folder of stickers into tags::

    from kcdp.runtime import Tagger, find_items
    for tag in Tagger.load("stickers.kcdp").stream(find_items("stickers/")):
        print(tag.path, tag.label, tag.confidence)

Importing this package loads nothing: numpy and Pillow come with the first name that is used, the session
library when a bundle is opened.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kcdp.runtime.backends.options import SessionOptions
    from kcdp.runtime.backends.registry import choose, open_session
    from kcdp.runtime.sources import find_items, find_pictures
    from kcdp.runtime.tagger import Tag, Tagger

__all__ = ["SessionOptions", "Tag", "Tagger", "choose", "find_items", "find_pictures", "open_session"]

_HOMES = {
    "Tag": "kcdp.runtime.tagger", "Tagger": "kcdp.runtime.tagger",
    "find_items": "kcdp.runtime.sources", "find_pictures": "kcdp.runtime.sources",
    "SessionOptions": "kcdp.runtime.backends.options", "choose": "kcdp.runtime.backends.registry",
    "open_session": "kcdp.runtime.backends.registry",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
