"""What every captioner is, and what it is made from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.errors import KcdpError


class Captioner(ABC):
    """Pictures in, one line of text each out. The same picture gets the same text every time.

    Attributes:
        name: what is written into each row: the captioner's name first, then whatever else decides its texts (the
            weights' file name, say), never a path.
        batch_size: pictures to hand over at once.
        leaks_labels: its captions may hold the very word that is to be recognised.
    """

    name: str
    batch_size: int = 1
    leaks_labels: bool = False

    @abstractmethod
    def caption(self, images: Sequence[Image.Image], samples: Sequence[Sample]) -> list[str]:
        """One caption a picture, in order.

        Args:
            images: any size and mode, as the dataset gives them.
            samples: the pictures' samples, as many; a captioner that looks at pixels ignores them.

        Raises:
            KcdpError: one of the pictures cannot be captioned.
        """


@dataclass(frozen=True)
class Request:
    """What the command hands to a captioner's factory.

    Attributes:
        dataset: the pictures that will be captioned.
        weights: ``--weights``; None where it was not given.
        model: ``--model``; None for the captioner's own.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    dataset: ImageDataset
    weights: str | None = None
    model: str | None = None
    device: str = "auto"

    def needed_weights(self, captioner: str, expected: str) -> str:
        """The weights, or the error that says what they should be."""
        if not self.weights:
            raise KcdpError(f"captioner {captioner!r} has no weights", expected, "add --weights")
        return self.weights
