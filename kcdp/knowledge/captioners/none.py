"""``none``: every caption is empty. What knowledge is worth shows against it."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from kcdp.data.dataset import Sample
from kcdp.knowledge.captioners.base import Captioner, Request


class NoCaptions(Captioner):
    """Says nothing."""

    name = "none"
    batch_size = 64

    def caption(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> list[str]:
        return [""] * len(images)


def create(request: Request) -> NoCaptions:
    """See ``registry``."""
    return NoCaptions()
