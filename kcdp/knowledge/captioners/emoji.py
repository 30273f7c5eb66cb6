"""``emoji``: the CLDR short name of each emoji, as listed in ``kcdp/data/emoji_labels.csv``.

A name often *is* the emotion ("angry face"). Such captions may serve as knowledge in training, never where accuracy
on these emoji is reported; every row says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from kcdp.data.dataset import Sample
from kcdp.data.emoji_fetch import load_faces, plain_code
from kcdp.errors import KcdpError
from kcdp.knowledge.captioners.base import Captioner, Request


class EmojiNames(Captioner):
    """Looks the code point at the end of a sample's key up; the pixels are not looked at."""

    name = "emoji"
    batch_size = 64
    leaks_labels = True

    def __init__(self) -> None:
        self._names = {plain_code(face.code): face.name for face in load_faces()}

    def caption(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> list[str]:
        return [self._name(sample.key) for sample in samples]

    def _name(self, key: str) -> str:
        name = self._names.get(plain_code(key.rpartition("/")[2]))
        if name is None:
            raise KcdpError(f"{key!r} is none of the {len(self._names)} face emoji", "a key that ends in a code point")
        return name


def create(request: Request) -> EmojiNames:
    """See ``registry``."""
    return EmojiNames()
