"""The six emotions as face parameters, shared by the photo and the sticker renderer.

The parameters follow the Facial Action Coding System (Ekman & Friesen 1978; prototypes of Ekman, Friesen & Hager
2002, "EMFACS"): AU 1/2/4 brows, 5/7 lids, 6 cheeks, 9 nose wrinkle, 10 upper lip, 12/15/20 lip corners, 25-27 jaw.
Every emotion has several mouths and eyes, so that no single part gives it away.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Expression:
    """One face's expression; the defaults are a neutral face. Lengths are in half head widths, y grows downwards.

    Attributes:
        emotion: a name of ``LABELS``.
        brow_inner, brow_outer: height of the brow's ends, -1 (down) .. 1 (up). AU 1, 2, 4.
        brow_arch: bend of the brow's middle, -1 (sags) .. 1 (arches).
        furrow: 0..1, how far the brows are drawn together. AU 4.
        brow_skew: -1..1, lifts one brow and lowers the other.
        eye_open: height of the eye against a neutral one, 0.3 .. 1.8. AU 5.
        lid: 0..1, how much of the eye the upper lid covers. AU 43.
        lid_tilt: -1 (outer corner droops, sad) .. 1 (inner corner pressed down, angry).
        lower_lid: 0..1, how far the lower lid is pushed up. AU 6, 7.
        pupil: 0.2 .. 1, size of iris and pupil.
        gaze_x, gaze_y: -1..1, where the eyes look (right, down).
        eyes: "open", "arc" (closed and smiling), "shut" (closed and hanging), "squeeze" (> <).
        nose_wrinkle: 0..1. AU 9.
        cheek: 0..1, raised and rounded cheeks. AU 6.
        mouth_curve: -1 (corners down, AU 15) .. 1 (corners up, AU 12).
        mouth_open: height of the opening, 0 .. 0.7. AU 25-27.
        mouth_width: half width, 0.1 .. 0.6. AU 18, 20.
        mouth_square: 0 (round) .. 1 (box-like).
        mouth_share: 0..1, part of the opening above the line between the corners.
        mouth_wave: 0..1, trembling of the lips.
        mouth_skew: -1..1, one side of the upper lip raised. AU 10.
        teeth: "" none, "upper", "clenched" or "fangs".
        tongue: 0..1, how far the tongue hangs out; below 0.25 it stays inside.
        tint: 0..1, how much the emotion colours the skin (anger red, disgust green, fear and sad blue).
        props: drawn signs, some of ``PROPS``.
    """

    emotion: str
    brow_inner: float = 0.0
    brow_outer: float = 0.0
    brow_arch: float = 0.25
    furrow: float = 0.0
    brow_skew: float = 0.0
    eye_open: float = 1.0
    lid: float = 0.12
    lid_tilt: float = 0.0
    lower_lid: float = 0.0
    pupil: float = 0.6
    gaze_x: float = 0.0
    gaze_y: float = 0.0
    eyes: str = "open"
    nose_wrinkle: float = 0.0
    cheek: float = 0.0
    mouth_curve: float = 0.05
    mouth_open: float = 0.0
    mouth_width: float = 0.32
    mouth_square: float = 0.0
    mouth_share: float = 0.5
    mouth_wave: float = 0.0
    mouth_skew: float = 0.0
    teeth: str = ""
    tongue: float = 0.0
    tint: float = 0.0
    props: tuple[str, ...] = ()

    def scaled(self, strength: float) -> Expression:
        """Nearer to the neutral face (strength < 1) or exaggerated (> 1), each field kept inside its range."""
        neutral = Expression(self.emotion)
        changes = {}
        for name, (low, high) in _LIMITS.items():
            base = getattr(neutral, name)
            changes[name] = max(low, min(high, base + strength * (getattr(self, name) - base)))
        return replace(self, **changes)


PROPS = (
    "tear", "stream", "sweat", "vein", "steam", "sparkles", "exclaim", "shock", "blush", "hearts", "flies", "stink",
    "shiver", "gloom", "cloud", "joytears", "vomit", "hands",
)  # fmt: skip

_LIMITS: dict[str, tuple[float, float]] = {
    "brow_inner": (-1.2, 1.4), "brow_outer": (-1.0, 1.4), "brow_arch": (-0.8, 1.2), "furrow": (0.0, 1.2),
    "brow_skew": (-1.0, 1.0), "eye_open": (0.3, 1.8), "lid": (0.0, 0.75), "lid_tilt": (-1.0, 1.0),
    "lower_lid": (0.0, 0.7), "pupil": (0.2, 1.0), "nose_wrinkle": (0.0, 1.2), "cheek": (0.0, 1.2),
    "mouth_curve": (-1.2, 1.2), "mouth_open": (0.0, 0.72), "mouth_width": (0.1, 0.62), "mouth_wave": (0.0, 1.2),
    "mouth_skew": (-1.2, 1.2), "tint": (0.0, 1.0),
}  # fmt: skip

_Ranges = dict[str, tuple[float, float] | str]


@dataclass(frozen=True)
class _Recipe:
    """How an emotion is drawn at random.

    Attributes:
        base: field -> (low, high), for every face of this emotion.
        eyes, mouths: variants, field -> (low, high) or a fixed word; one of each is taken.
        tint: probability of a tint.
        props: prop -> probability.
        fallback: one of these props is added where there is neither tint nor prop nor tongue (a drawn sneer alone
            reads as mere displeasure).
    """

    base: _Ranges
    eyes: tuple[_Ranges, ...]
    mouths: tuple[_Ranges, ...]
    tint: float
    props: dict[str, float]
    fallback: tuple[str, ...] = ()


_RECIPES: dict[str, _Recipe] = {
    "surprise": _Recipe(
        base={"brow_inner": (0.7, 1.05), "brow_outer": (0.7, 1.05), "brow_arch": (0.5, 1.0), "lid": (0.0, 0.0)},
        eyes=(
            {"eye_open": (1.35, 1.65), "pupil": (0.42, 0.6)},
            {"eye_open": (1.3, 1.5), "pupil": (0.55, 0.75), "brow_skew": (-0.2, 0.2)},
        ),
        mouths=(
            {"mouth_open": (0.34, 0.58), "mouth_width": (0.15, 0.23), "mouth_curve": (-0.05, 0.05)},
            {"mouth_open": (0.22, 0.3), "mouth_width": (0.11, 0.15), "mouth_curve": (0.0, 0.0)},
            {"mouth_open": (0.45, 0.62), "mouth_width": (0.22, 0.28), "mouth_curve": (-0.05, 0.15), "teeth": "upper"},
        ),
        tint=0.0,
        props={"exclaim": 0.3, "sparkles": 0.22, "shock": 0.3, "hands": 0.16, "blush": 0.15, "sweat": 0.06},
    ),
    "happy": _Recipe(
        base={"brow_inner": (0.05, 0.35), "brow_outer": (0.0, 0.3), "brow_arch": (0.4, 0.8), "cheek": (0.7, 1.0)},
        eyes=(
            {"eye_open": (0.85, 1.05), "lower_lid": (0.3, 0.5), "lid": (0.05, 0.2)},
            {"eyes": "arc"},
            {"eye_open": (1.0, 1.25), "lower_lid": (0.15, 0.3), "lid": (0.0, 0.05), "pupil": (0.65, 0.85)},
        ),
        mouths=(
            {"mouth_curve": (0.75, 1.0), "mouth_width": (0.36, 0.46)},
            {"mouth_curve": (0.75, 1.0), "mouth_width": (0.4, 0.5), "mouth_open": (0.26, 0.42),
             "mouth_share": (0, 0.04), "teeth": "upper", "tongue": (0.2, 0.2)},
            {"mouth_curve": (0.7, 0.9), "mouth_width": (0.38, 0.48), "mouth_open": (0.16, 0.22),
             "mouth_share": (0, 0.05), "teeth": "clenched"},
            {"mouth_curve": (0.5, 0.8), "mouth_width": (0.24, 0.32), "mouth_open": (0.22, 0.34),
             "mouth_share": (0, 0.04), "tongue": (0.2, 0.2)},
        ),
        tint=0.0,
        props={"sparkles": 0.25, "blush": 0.45, "hearts": 0.15, "joytears": 0.1, "hands": 0.08},
    ),
    "disgust": _Recipe(
        base={"brow_inner": (-0.5, -0.2), "brow_outer": (-0.25, 0.1), "brow_arch": (-0.1, 0.2), "furrow": (0.4, 0.8),
              "brow_skew": (0.5, 0.9), "nose_wrinkle": (0.75, 1.0), "cheek": (0.3, 0.6), "gaze_x": (-0.9, 0.9)},
        eyes=(
            {"eye_open": (0.85, 1.05), "lid": (0.4, 0.5), "lower_lid": (0.2, 0.35), "lid_tilt": (-0.1, 0.1)},
            {"eye_open": (0.9, 1.1), "lid": (0.45, 0.55), "lower_lid": (0.05, 0.2), "gaze_y": (0.0, 0.4)},
            {"eye_open": (0.8, 1.0), "lid": (0.35, 0.45), "lower_lid": (0.2, 0.3), "gaze_y": (-0.5, 0.0)},
            {"eyes": "squeeze"},
        ),
        mouths=(
            {"mouth_curve": (-0.6, -0.3), "mouth_width": (0.28, 0.38), "mouth_open": (0.16, 0.28),
             "mouth_skew": (0.3, 0.6), "tongue": (0.75, 1.0)},
            {"mouth_curve": (-0.3, -0.05), "mouth_width": (0.26, 0.34), "mouth_open": (0.1, 0.18),
             "mouth_skew": (0.3, 0.7), "tongue": (0.7, 0.95), "mouth_share": (0.2, 0.4)},
            {"mouth_curve": (-0.75, -0.45), "mouth_width": (0.3, 0.4), "mouth_open": (0.12, 0.2),
             "mouth_skew": (0.9, 1.2), "mouth_square": (0.2, 0.5), "teeth": "upper", "mouth_share": (0.6, 0.9)},
            {"mouth_curve": (-0.6, -0.35), "mouth_width": (0.3, 0.4), "mouth_skew": (0.8, 1.1),
             "mouth_wave": (0.6, 1.0)},
        ),
        tint=0.45,
        props={"flies": 0.2, "stink": 0.25, "vomit": 0.14, "sweat": 0.06},
        fallback=("flies", "stink", "vomit"),
    ),
    "fear": _Recipe(
        base={"brow_inner": (0.75, 1.05), "brow_outer": (-0.15, 0.2), "brow_arch": (-0.1, 0.2), "furrow": (0.6, 0.9),
              "lid": (0.0, 0.03)},
        eyes=(
            {"eye_open": (1.3, 1.6), "pupil": (0.24, 0.34)},
            {"eye_open": (1.25, 1.5), "pupil": (0.28, 0.38), "gaze_x": (-0.9, 0.9)},
        ),
        mouths=(
            {"mouth_curve": (-0.4, -0.15), "mouth_width": (0.4, 0.5), "mouth_open": (0.16, 0.26),
             "mouth_square": (0.7, 1.0), "mouth_wave": (0.35, 0.7), "teeth": "clenched"},
            {"mouth_curve": (-0.3, -0.1), "mouth_width": (0.32, 0.42), "mouth_wave": (0.8, 1.1)},
            {"mouth_curve": (-0.55, -0.3), "mouth_width": (0.36, 0.46), "mouth_open": (0.24, 0.36),
             "mouth_square": (0.4, 0.7), "mouth_wave": (0.3, 0.6)},
        ),
        tint=0.45,
        props={"sweat": 0.4, "shiver": 0.35, "gloom": 0.3, "hands": 0.22, "tear": 0.05},
    ),
    "sad": _Recipe(
        base={"brow_inner": (0.6, 0.95), "brow_outer": (-0.55, -0.2), "brow_arch": (-0.3, 0.05), "furrow": (0.2, 0.5),
              "gaze_y": (0.1, 0.6)},
        eyes=(
            {"eye_open": (0.95, 1.15), "lid": (0.24, 0.34), "lid_tilt": (-0.7, -0.4)},
            {"eyes": "shut"},
            {"eye_open": (1.1, 1.3), "lid": (0.18, 0.26), "lid_tilt": (-0.6, -0.35), "pupil": (0.75, 0.95)},
        ),
        mouths=(
            {"mouth_curve": (-0.95, -0.65), "mouth_width": (0.24, 0.34)},
            {"mouth_curve": (-0.9, -0.6), "mouth_width": (0.3, 0.4), "mouth_open": (0.22, 0.4),
             "mouth_share": (0.8, 1.0), "tongue": (0.15, 0.15)},
            {"mouth_curve": (-0.85, -0.6), "mouth_width": (0.26, 0.34), "mouth_wave": (0.25, 0.45)},
        ),
        tint=0.2,
        props={"tear": 0.38, "stream": 0.35, "cloud": 0.18, "blush": 0.12},
    ),
    "anger": _Recipe(
        base={"brow_inner": (-1.0, -0.7), "brow_outer": (0.35, 0.75), "brow_arch": (-0.15, 0.15), "furrow": (0.7, 1.0),
              "nose_wrinkle": (0.0, 0.5)},
        eyes=(
            {"eye_open": (0.85, 1.05), "lid": (0.28, 0.4), "lid_tilt": (0.5, 0.8), "lower_lid": (0.15, 0.3)},
            {"eye_open": (1.1, 1.3), "lid": (0.22, 0.32), "lid_tilt": (0.6, 0.9), "pupil": (0.28, 0.4)},
        ),
        mouths=(
            {"mouth_curve": (-0.55, -0.3), "mouth_width": (0.26, 0.36)},
            {"mouth_curve": (-0.5, -0.2), "mouth_width": (0.32, 0.44), "mouth_open": (0.16, 0.26),
             "mouth_square": (0.6, 0.95), "teeth": "clenched"},
            {"mouth_curve": (-0.35, -0.1), "mouth_width": (0.34, 0.44), "mouth_open": (0.32, 0.5),
             "mouth_share": (0.5, 0.7), "mouth_square": (0.4, 0.8), "teeth": "fangs"},
        ),
        tint=0.45,
        props={"vein": 0.4, "steam": 0.32, "sweat": 0.04},
    ),
}  # fmt: skip

#: Used at a low rate with any emotion, so that no prop names one for certain.
_STRAY_PROPS = ("blush", "sweat", "sparkles")
_STRAY_RATE = 0.06


def sample_expression(emotion: str, rng: np.random.Generator) -> Expression:
    """A random expression of one emotion.

    Args:
        emotion: a name of ``LABELS``.
        rng: the only source of chance; how much of it is used depends on the emotion.
    """
    recipe = _RECIPES[emotion]
    eyes, mouth = recipe.eyes[rng.integers(len(recipe.eyes))], recipe.mouths[rng.integers(len(recipe.mouths))]
    words: dict[str, str] = {}
    numbers = {"gaze_x": 0.0, "gaze_y": 0.0, "mouth_skew": 0.0, "brow_skew": 0.0}
    for name, span in [*recipe.base.items(), *eyes.items(), *mouth.items()]:
        if isinstance(span, str):
            words[name] = span
        else:
            numbers[name] = float(rng.uniform(*span))
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    gaze_x, gaze_y, skew = (float(v) for v in rng.normal(0.0, (0.15, 0.15, 0.06)))
    numbers["gaze_x"] = max(-1.0, min(1.0, numbers["gaze_x"] + gaze_x))
    numbers["gaze_y"] = max(-1.0, min(1.0, numbers["gaze_y"] + gaze_y))
    numbers["mouth_skew"] = mirror * numbers["mouth_skew"] + skew
    numbers["brow_skew"] *= mirror
    if rng.random() < recipe.tint:
        numbers["tint"] = float(rng.uniform(0.35, 0.8))
    props = [name for name, chance in recipe.props.items() if rng.random() < chance]
    if recipe.fallback and not set(props) & set(recipe.fallback) and "tint" not in numbers and "tongue" not in numbers:
        props.append(recipe.fallback[rng.integers(len(recipe.fallback))])
    stray = _STRAY_PROPS[rng.integers(len(_STRAY_PROPS))]
    if rng.random() < _STRAY_RATE and stray not in props:
        props.append(stray)
    changes: dict[str, Any] = {**numbers, **words, "props": tuple(props)}
    return replace(Expression(emotion), **changes)
