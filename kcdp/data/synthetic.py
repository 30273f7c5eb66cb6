"""Drawn faces that show the six emotions, as "photographs" and as stickers: a data set that needs no download.

The two domains share the facial expression (``drawing.expressions``) and nothing of the rendering: a small
stand-in for the shift from photographs to stickers: in photographs part of the emotion is carried by the scene, in
stickers by exaggerated features, colour and drawn signs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from kcdp.data.dataset import ImageDataset, Sample
from kcdp.data.drawing.characters import CHARACTERS
from kcdp.data.drawing.expressions import Expression, sample_expression
from kcdp.data.drawing.person import Person, sample_person
from kcdp.data.drawing.photo import draw_photo
from kcdp.data.drawing.scene import choose_cue
from kcdp.data.drawing.sticker import draw_sticker
from kcdp.errors import KcdpError, nearest
from kcdp.labels import LABELS

DOMAINS: tuple[str, ...] = ("photos", "stickers")  # the position is part of the seed: append only
PRIORS: tuple[str, ...] = ("balanced", "natural")
MIN_SIZE, MAX_SIZE = 32, 512

#: Class shares of the "natural" prior, in the order of LABELS: people use happy stickers most.
NATURAL_SHARES: tuple[float, ...] = (0.12, 0.40, 0.07, 0.08, 0.17, 0.16)

#: How strongly the expression is shown, (low, high): people hold back, stickers exaggerate.
_STRENGTH = {"photos": (0.7, 1.05), "stickers": (0.95, 1.3)}


def _check_choice(what: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise KcdpError(
            f"synthetic faces: {what} is {value!r}{nearest(str(value), valid)}",
            f"one of {', '.join(valid)}",
            f"choose another {what}",
        )


def _check_number(what: str, value: int, low: int, high: int | None = None) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        expected = f"a whole number from {low} to {high}" if high is not None else f"a whole number, at least {low}"
        raise KcdpError(f"synthetic faces: {what} is {value!r}", expected, f"change {what}")


def _character(rng: np.random.Generator) -> str:
    """The character of a sticker; always the first thing taken from a sticker's generator."""
    names = tuple(CHARACTERS)
    return names[rng.integers(len(names))]


@dataclass(frozen=True)
class Subject:
    """What a picture is going to show, known before it is drawn.

    Attributes:
        expression: the face, at the strength it is drawn with.
        character: of a sticker, else empty.
        person: of a photo, else None.
        cue: of a photo, what the scene adds (a name of ``scene.CUES``); empty where it adds nothing.
    """

    expression: Expression
    character: str = ""
    person: Person | None = None
    cue: str = ""


def _face(domain: str, emotion: str, rng: np.random.Generator) -> tuple[str, Expression]:
    """Character ("" for photos) and expression: what is taken from a picture's generator first."""
    character = _character(rng) if domain == "stickers" else ""
    return character, sample_expression(emotion, rng).scaled(float(rng.uniform(*_STRENGTH[domain])))


def draw_face(domain: str, emotion: str, rng: np.random.Generator, size: int) -> Image.Image:
    """One random face.

    Args:
        domain: "photos" or "stickers".
        emotion: a name of ``LABELS``.
        rng: the only source of chance: the same state gives the same bytes.
        size: side of the square picture in pixels, 32..512.

    Returns:
        RGB size x size (photos), or RGBA size x size, transparent around the character (stickers).

    Raises:
        KcdpError: an unknown domain or emotion, or a size out of range.
    """
    _check_choice("domain", domain, DOMAINS)
    _check_choice("emotion", emotion, LABELS)
    _check_number("size", size, MIN_SIZE, MAX_SIZE)
    character, expression = _face(domain, emotion, rng)
    if domain == "stickers":
        return draw_sticker(expression, character, rng, size)
    return draw_photo(expression, rng, size)


class SyntheticFaces(ImageDataset):
    """Faces drawn on demand; a picture depends on domain, seed, index, size and label alone.

    Args:
        domain: "photos" or "stickers".
        n: number of pictures, at least 1.
        seed: which faces, at least 0; two seeds share no picture.
        size: side of the square pictures in pixels, 32..512.
        name: what the data set is called; "synthetic-<domain>" where empty.
        labelled: False hides the labels (the pictures stay the same).
        prior: "balanced" (label = index mod 6) or "natural" (happy is common, disgust rare; see NATURAL_SHARES).

    Samples have the key "<domain>-<seed>-<index, six digits>", no split, and as group the character of a sticker
    ("emoji", "cat", ...), empty for photos.

    Raises:
        KcdpError: an argument is out of its range.
    """

    def __init__(
        self,
        domain: str,
        n: int = 600,
        seed: int = 0,
        size: int = 128,
        name: str = "",
        labelled: bool = True,
        prior: str = "balanced",
    ) -> None:
        _check_choice("domain", domain, DOMAINS)
        _check_choice("prior", prior, PRIORS)
        _check_number("n", n, 1)
        _check_number("seed", seed, 0)
        _check_number("size", size, MIN_SIZE, MAX_SIZE)
        self.domain, self.seed, self.size, self.prior = domain, int(seed), int(size), prior
        self._emotions = tuple(self._label(index) for index in range(n))
        samples = [
            Sample(
                key=f"{domain}-{seed}-{index:06d}",
                label=label if labelled else None,
                group=_character(self._rng(index)) if domain == "stickers" else "",
            )
            for index, label in enumerate(self._emotions)
        ]
        super().__init__(name or f"synthetic-{domain}", samples)

    def _rng(self, index: int, *purpose: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([DOMAINS.index(self.domain), self.seed, index, *purpose]))

    def _label(self, index: int) -> int:
        if self.prior == "balanced":
            return index % len(LABELS)
        return int(np.searchsorted(np.cumsum(NATURAL_SHARES)[:-1], self._rng(index, 1).random(), side="right"))

    def image(self, index: int) -> Image.Image:
        """The picture at an index (negative ones count from the end): RGB for photos, RGBA for stickers.

        Raises:
            IndexError: there is no such index.
        """
        index = range(len(self))[index]
        return draw_face(self.domain, LABELS[self._emotions[index]], self._rng(index), self.size)

    def subject(self, index: int) -> Subject:
        """What the picture at an index shows, without drawing it.

        Raises:
            IndexError: there is no such index.
        """
        index = range(len(self))[index]
        rng, emotion = self._rng(index), LABELS[self._emotions[index]]
        character, expression = _face(self.domain, emotion, rng)
        if self.domain == "stickers":
            return Subject(expression, character)
        person = sample_person(expression, rng)  # taken in the order of draw_photo
        return Subject(expression, person=person, cue=choose_cue(emotion, rng))
