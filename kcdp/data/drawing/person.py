"""The person in a drawn photograph, painted flat (albedo, no light): head, hair, neck, shoulders and the face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kcdp.data.drawing.expressions import Expression
from kcdp.data.drawing.geometry import (
    Colour,
    Layout,
    Pen,
    brow,
    clip_between,
    closed_eye,
    ellipse,
    eye_edges,
    mix,
    mouth_edges,
    outline,
    quadratic,
)

_SKINS: tuple[Colour, ...] = (
    (250, 214, 190), (240, 196, 165), (226, 176, 140), (212, 158, 120), (190, 134, 96), (160, 108, 74), (126, 82, 56),
    (96, 62, 44),
)  # fmt: skip
_HAIR: tuple[Colour, ...] = (
    (28, 22, 20), (48, 32, 24), (84, 54, 34), (122, 82, 48), (196, 156, 98), (140, 62, 34), (150, 146, 142),
)  # fmt: skip
_IRIS: tuple[Colour, ...] = ((74, 46, 28), (96, 64, 36), (70, 96, 60), (72, 108, 140), (40, 30, 26))
_FLUSH: dict[str, Colour] = {
    "anger": (214, 60, 48), "disgust": (150, 165, 90), "fear": (222, 218, 214), "sad": (190, 120, 130),
}  # fmt: skip
_HAIRSTYLES = ("short", "parted", "fringe", "long", "bun", "curly", "bald")
_SCLERA: Colour = (236, 232, 228)
_TEETH: Colour = (238, 232, 220)
_CAVITY: Colour = (58, 20, 22)


@dataclass(frozen=True)
class Person:
    """Who is in the picture; nothing here depends on the emotion but the flush already mixed into the skin.

    Attributes:
        skin, hair, iris, cloth: RGB, 0..255.
        style: one of the hair styles.
        width, height: half axes of the head in face units.
        jaw: how much the head narrows towards the chin.
        turn, nod: where the face's middle is shifted to when the head turns (face units).
    """

    skin: Colour
    hair: Colour
    iris: Colour
    cloth: Colour
    style: str
    width: float
    height: float
    jaw: float
    turn: float
    nod: float
    brow_width: float
    glasses: bool
    beard: bool

    @property
    def dark(self) -> Colour:
        """The skin in a crease."""
        return mix(self.skin, (60, 20, 15), 0.42)

    @property
    def lip(self) -> Colour:
        return mix(self.skin, (165, 50, 60), 0.45)


def sample_person(e: Expression, rng: np.random.Generator) -> Person:
    """A random person; the expression only lends a flush or pallor to the skin."""
    skin = mix(_SKINS[rng.integers(len(_SKINS))], _SKINS[rng.integers(len(_SKINS))], float(rng.uniform(0, 0.3)))
    if e.emotion in _FLUSH:
        skin = mix(skin, _FLUSH[e.emotion], 0.3 * e.tint)
    style = _HAIRSTYLES[rng.integers(len(_HAIRSTYLES))]
    return Person(
        skin=skin,
        hair=mix(_HAIR[rng.integers(len(_HAIR))], (90, 60, 40), float(rng.uniform(0, 0.25))),
        iris=_IRIS[rng.integers(len(_IRIS))],
        cloth=tuple(int(v) for v in rng.uniform(20, 215, 3)),
        style=style,
        width=float(rng.uniform(0.86, 1.0)),
        height=float(rng.uniform(1.14, 1.3)),
        jaw=float(rng.uniform(0.0, 0.16)),
        turn=float(rng.normal(0, 0.07)),
        nod=float(rng.normal(0, 0.05)),
        brow_width=float(rng.uniform(0.07, 0.12)),
        glasses=bool(rng.random() < 0.12),
        beard=bool(rng.random() < 0.15 and style != "bun"),
    )


def _head(p: Person, grow: float = 0.0) -> np.ndarray:
    """The head's outline: an ellipse that narrows towards the chin. [48, 2]."""
    points = ellipse(0.0, 0.0, p.width + grow, p.height + grow, n=48)
    down = np.clip(points[:, 1] / p.height, 0, 1)
    points[:, 0] *= 1 - (0.1 + p.jaw) * down**2
    return points


def _hair_back(pen: Pen, p: Person) -> None:
    if p.style == "long":
        pen.fill(ellipse(0, 0.35, p.width + 0.3, p.height + 0.5, 2.6), p.hair)
    elif p.style == "bun":
        pen.fill(ellipse(0, -p.height - 0.2, 0.38, 0.34), p.hair)
    elif p.style == "curly":
        for a in np.linspace(0.85 * np.pi, 2.15 * np.pi, 11):
            pen.disc((p.width + 0.08) * np.cos(a), -0.25 + (p.height - 0.1) * np.sin(a), 0.36, p.hair)


def _hair_front(pen: Pen, p: Person, bend: tuple[float, float, float]) -> None:
    """The hair over the forehead: the top of a larger head, cut along a hairline."""
    if p.style == "bald":
        return
    low, peak = {"short": (-0.5, -0.86), "parted": (-0.42, -0.98), "fringe": (-0.3, -0.62), "long": (-0.05, -0.9),
                 "bun": (-0.4, -0.94), "curly": (-0.4, -0.8)}[p.style]  # fmt: skip
    grow = 0.06 if p.style in ("bun", "short") else 0.12
    low, peak = low * p.height / 1.2, peak * p.height / 1.2
    top = _head(p, grow)
    top = top[top[:, 1] < low]
    order = np.argsort(np.arctan2(top[:, 1] - low, top[:, 0]))
    top = top[order]
    x = np.linspace(1, -1, 15)
    part = 0.5 * bend[0] if p.style in ("parted", "long") else 0.0
    line = peak + (low - peak) * np.maximum((x - part) / (1 - part), (part - x) / (1 + part)) ** 3
    if p.style in ("fringe", "curly"):
        line = line + 0.05 * np.sin(9 * x + 3 * bend[1]) * (1 - x**2)
    else:
        line = line + 0.06 * bend[2] * x * (1 - x**2)
    half = (p.width + grow) * np.sqrt(1 - (low / (p.height + grow)) ** 2)
    pen.fill(np.concatenate([top, np.stack([x * half * 0.94, line], axis=1)]), p.hair)
    for k in np.linspace(-0.7, 0.7, 9):
        crown = -(p.height + grow) * np.sqrt(1 - (k * half / (p.width + grow)) ** 2)
        end = float(np.interp(k, x[::-1], line[::-1]))
        strand = quadratic(
            (k * half * 0.95, crown + 0.05), (k * half + 0.03 * bend[0], (crown + end) / 2), (k * half, end - 0.03)
        )
        pen.line(strand, 0.025, mix(p.hair, (255, 240, 220) if k * bend[0] > 0 else (0, 0, 0), 0.16))


def _body(pen: Pen, p: Person) -> None:
    neck = mix(p.skin, p.dark, 0.25)
    shoulders = [(-2.6, 4.2), (-2.1, 2.15), (-1.3, 1.78), (-0.6, 1.6), (0.6, 1.6), (1.3, 1.78), (2.1, 2.15), (2.6, 4.2)]
    pen.fill(np.array(shoulders), p.cloth)
    pen.fill(np.array([(-0.48, 0.6), (0.48, 0.6), (0.6, 1.66), (0.0, 2.05), (-0.6, 1.66)]), neck)


def _eye(pen: Pen, e: Expression, lay: Layout, p: Person, side: int) -> None:
    lash = mix(p.dark, (20, 12, 10), 0.65)
    if e.eyes != "open":
        for stroke in closed_eye(e, lay, side):
            pen.line(stroke, 0.05, lash)
            pen.line(stroke - (0, 0.09), 0.025, p.dark)
        return
    upper, lower = eye_edges(e, lay, side)
    pen.fill(outline(upper - np.array((0, 0.035)), lower + np.array((0, 0.02))), mix(p.skin, p.dark, 0.5))
    pen.fill(outline(upper, lower), _SCLERA)
    x = side * lay.eye_x + 0.35 * lay.eye_w * e.gaze_x
    y = lay.eye_y + 0.3 * lay.eye_h * e.gaze_y
    radius = 0.07 + 0.035 * e.pupil
    pen.fill(clip_between(ellipse(x, y, radius, radius, n=24), upper, lower), p.iris)
    pen.fill(clip_between(ellipse(x, y, radius * 0.5, radius * 0.5, n=16), upper, lower), (12, 10, 10))
    pen.fill(clip_between(ellipse(x - 0.03, y - 0.035, 0.022, 0.022, n=10), upper, lower), (255, 255, 255))
    pen.line(upper, 0.038, lash)
    pen.line(lower, 0.016, p.dark)
    pen.line(upper - (0, 0.055 + 0.03 * e.lid), 0.022, mix(p.skin, p.dark, 0.7))
    if e.lower_lid > 0.15:
        pen.line(lower + np.array((0, 0.055)), 0.025, mix(p.skin, p.dark, 0.45))


def _creases(pen: Pen, e: Expression, lay: Layout, p: Person) -> None:
    """Wrinkles that come with the muscles: forehead, frown, nose, and from the nose to the mouth's corners."""
    soft = mix(p.skin, p.dark, 0.55)
    raised = (e.brow_inner + e.brow_outer) / 2
    if raised > 0.45:
        for k in range(3):
            y = lay.brow_y - 0.26 - 0.1 * k
            pen.line(quadratic((-0.45, y + 0.02), (0, y - 0.04), (0.45, y + 0.02)), 0.022, soft)
    elif e.brow_inner > 0.4:
        pen.line(quadratic((-0.26, lay.brow_y - 0.3), (0, lay.brow_y - 0.22), (0.26, lay.brow_y - 0.3)), 0.025, soft)
    if e.furrow > 0.3:
        for side in (-1, 1):
            pen.line(
                np.array([(side * 0.07, lay.brow_y - 0.1), (side * 0.05, lay.brow_y + 0.1)]), 0.028 * e.furrow, p.dark
            )
    if e.nose_wrinkle > 0.4:
        for k in range(3):
            y = lay.eye_y + 0.02 + 0.09 * k
            pen.line(np.array([(-0.13, y - 0.04), (0, y), (0.13, y - 0.04)]), 0.024, p.dark)
    depth = max(e.cheek, 0.9 * e.nose_wrinkle, 0.5 * max(0.0, -e.mouth_curve))
    if depth > 0.25:
        for side in (-1, 1):
            fold = quadratic(
                (side * 0.2, 0.3),
                (side * (0.36 + 0.08 * e.cheek), 0.42),
                (side * (0.4 + 0.06 * e.cheek), lay.mouth_y + 0.03),
            )
            pen.line(fold, 0.026 + 0.014 * depth, mix(p.skin, p.dark, 0.35 + 0.3 * depth))


def _nose(pen: Pen, e: Expression, p: Person) -> None:
    lift = 0.04 * e.nose_wrinkle
    for side in (-1, 1):
        wing = quadratic((side * 0.13, 0.18 - lift), (side * 0.2, 0.27 - lift), (side * 0.12, 0.33 - lift))
        pen.line(wing, 0.028, mix(p.skin, p.dark, 0.6))
        pen.fill(ellipse(side * 0.075, 0.32 - lift, 0.045, 0.024, n=14), mix(p.dark, (20, 5, 5), 0.4))


def _mouth(pen: Pen, e: Expression, lay: Layout, p: Person) -> None:
    upper, lower = mouth_edges(e, lay)
    t = np.linspace(-1, 1, len(upper))
    full = np.clip(1 - t**2, 0, 1)
    press = 0.45 if e.emotion == "anger" and e.mouth_open < 0.05 else 1.0
    top = upper - np.stack([0 * t, press * (0.07 * full - 0.03 * np.exp(-((t / 0.14) ** 2)))], axis=1)
    bottom = lower + np.stack([0 * t, press * 0.1 * full], axis=1)
    pen.fill(outline(top, bottom), p.lip)
    gap = lower - upper
    if float(gap[:, 1].max()) < 0.04:
        pen.line(upper, 0.032, mix(p.lip, (40, 5, 10), 0.7))
        return
    pen.fill(outline(upper, lower), _CAVITY)
    if e.tongue > 0:
        tongue = ellipse(0, float(lower[16, 1]), e.mouth_width * 0.55, 0.42 * e.mouth_open, n=24)
        pen.fill(clip_between(tongue, upper, lower), (190, 84, 84))
    if e.teeth:
        share = 0.92 if e.teeth == "clenched" else 0.34
        pen.fill(outline(upper[2:-2], (upper + gap * share)[2:-2]), _TEETH)
        for k in range(5, 28, 4):
            pen.line(np.array([upper[k], upper[k] + gap[k] * share]), 0.012, (190, 178, 164))
        if e.teeth in ("clenched", "fangs"):
            pen.line((upper + gap * 0.5)[4:-4], 0.018, (150, 130, 120))
    if e.tongue >= 0.25:
        x, y = float(lower[17, 0]), float(lower[17, 1])
        pen.fill(ellipse(x, y + 0.05, 0.15, 0.05 + 0.2 * e.tongue, n=24), (204, 96, 98))
        pen.line(np.array([(x, y), (x, y + 0.14 * e.tongue)]), 0.02, (160, 64, 70))


def _extras(pen: Pen, e: Expression, lay: Layout, p: Person) -> None:
    """Glasses, and tears and sweat where the expression has them."""
    if p.glasses:
        for side in (-1, 1):
            rim = ellipse(side * lay.eye_x, lay.eye_y + 0.03, 0.3, 0.25, 3)
            pen.line(rim, 0.03, (30, 28, 30), closed=True)
        pen.line(np.array([(-0.1, lay.eye_y), (0.1, lay.eye_y)]), 0.03, (30, 28, 30))
    wet = mix(p.skin, (235, 245, 255), 0.6)
    if "tear" in e.props or "stream" in e.props:
        for side in (-1, 1)[: 2 if "stream" in e.props else 1]:
            x = side * (lay.eye_x + 0.03)
            pen.line(quadratic((x, lay.eye_y + 0.14), (x + side * 0.05, 0.2), (x + side * 0.04, 0.45)), 0.04, wet)
            pen.fill(ellipse(x + side * 0.04, 0.46, 0.04, 0.06, n=14), wet)
    if "sweat" in e.props:
        for x, y in ((-0.5, -0.62), (0.45, -0.66), (0.66, -0.3)):
            pen.fill(ellipse(x, y, 0.035, 0.055, n=12), wet)


def paint_person(pen: Pen, e: Expression, p: Person, rng: np.random.Generator) -> None:
    """Draw the person's albedo back to front on the pen's image (RGBA)."""
    bend = tuple(rng.uniform(-1, 1, 3).tolist())
    _hair_back(pen, p)
    _body(pen, p)
    for side in (-1, 1):
        pen.fill(ellipse(side * (p.width + 0.02) - 0.6 * p.turn, 0.05, 0.13, 0.24), mix(p.skin, p.dark, 0.15))
    pen.fill(_head(p), p.skin)
    jaw = 0.1 * max(0.0, e.mouth_open - 0.2)
    lay = Layout(0.38, -0.1, 0.19, 0.1, 0.6, -0.37, 0.15, 0.62 + jaw, 0.9)
    shift = np.array([p.turn, p.nod])
    face = pen.moved(shift)
    if p.beard:
        low = _head(p, -0.02)
        low = low[low[:, 1] > 0.25]
        cheekline = quadratic((low[-1, 0], 0.3), (0, 0.55), (low[0, 0], 0.3))
        pen.fill(np.concatenate([low, cheekline]), mix(p.skin, p.hair, 0.72))
    for side in (-1, 1):
        glow = mix(p.skin, (226, 96, 86), 0.16 + 0.12 * ("blush" in e.props))
        face.fill(ellipse(side * 0.52, 0.28 - 0.05 * e.cheek, 0.24, 0.17), glow if not p.beard else p.skin)
    _creases(face, e, lay, p)
    _nose(face, e, p)
    _mouth(face, e, lay, p)
    for side in (-1, 1):
        _eye(face, e, lay, p, side)
        hair = mix(mix(p.hair, p.dark, 0.3), (25, 15, 10), 0.3) if p.style != "bald" else mix(p.dark, (30, 20, 15), 0.5)
        face.taper(brow(e, lay, side), p.brow_width, p.brow_width, 0.3 * p.brow_width, hair)
    _hair_front(pen, p, bend)
    _extras(face, e, lay, p)
