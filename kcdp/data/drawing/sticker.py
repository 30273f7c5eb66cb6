"""Stickers: flat colours, thick outlines, exaggerated features and drawn signs on a transparent background."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from kcdp.data.drawing.characters import CHARACTERS, INKS, PALETTE, WHITE, Look, draw_accessory
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
from kcdp.data.drawing.props import MIDDLE, OVER, UNDER, Scene

_TINTS: dict[str, Colour] = {
    "anger": (225, 50, 40, 255),
    "disgust": (130, 175, 60, 255),
    "fear": (190, 215, 245, 255),
    "sad": (110, 150, 215, 255),
}
_BLUSHES: tuple[Colour, ...] = ((255, 120, 130, 255), (255, 140, 90, 255), (240, 110, 170, 255))
_MOUTH: Colour = (110, 24, 36, 255)
_TONGUE: Colour = (240, 110, 120, 255)
_SCREEN_INK: tuple[Colour, ...] = (
    (90, 240, 230, 255),
    (255, 240, 120, 255),
    (140, 255, 150, 255),
    (255, 170, 210, 255),
)


def _look(expression: Expression, character: str, rng: np.random.Generator) -> Look:
    """Colours and style; only the tint depends on the emotion."""
    skin = PALETTE[rng.integers(len(PALETTE))]
    if character == "emoji" and rng.random() < 0.5:
        skin = PALETTE[rng.integers(2)]
    elif character == "ghost" and rng.random() < 0.5:
        skin = mix(skin, WHITE, 0.7)
    skin = tuple(int(c) for c in np.clip(np.array(skin[:3]) + rng.normal(0, 9, 3), 0, 255)) + (255,)
    ink = INKS[rng.integers(len(INKS))]
    if rng.random() < 0.2:
        ink = mix(skin, (15, 5, 25, 255), 0.75)
    if expression.emotion in _TINTS:
        skin = mix(skin, _TINTS[expression.emotion], expression.tint)
    eyes = ("white", "bead", "glossy")[rng.integers(3)]
    if (expression.eye_open > 1.2 or expression.lid > 0.2) and rng.random() < 0.6:
        eyes = "white"  # small pupils and lids show best on a white eye
    return Look(
        skin=skin,
        ink=ink,
        line=float(rng.uniform(0.055, 0.095)),
        eyes=eyes,
        shade=bool(rng.random() < 0.6),
        blush=_BLUSHES[rng.integers(len(_BLUSHES))],
        accessory=("bow", "flower", "cap", "leaf", "", "", "", "", "", "")[rng.integers(10)],
        wobble=tuple(rng.uniform(-1, 1, 4).tolist()),
    )


def _open_eye(pen: Pen, e: Expression, lay: Layout, look: Look, side: int) -> None:
    upper, lower = eye_edges(e, lay, side)
    shape = outline(upper, lower)
    half = lay.eye_h * e.eye_open
    x = side * lay.eye_x + 0.3 * lay.eye_w * e.gaze_x
    y = lay.eye_y + 0.3 * half * e.gaze_y
    lid = look.line * (1.0 if e.lid < 0.2 else 1.35)
    if look.eyes == "white":
        pen.shape(shape, WHITE, look.ink, look.line * 0.75)
        radius = e.pupil * lay.eye_w * 0.95
        pen.fill(clip_between(ellipse(x, y, radius, radius, n=24), upper, lower), look.ink)
        if radius > 0.06:
            pen.disc(x - 0.35 * radius, max(y - 0.4 * radius, float(upper[8, 1])), 0.3 * radius, WHITE)
        pen.line(upper, lid, look.ink)
        return
    pen.shape(shape, look.ink, look.ink, look.line * 0.4)
    if look.eyes == "glossy":
        iris = ellipse(x, y + 0.3 * half, lay.eye_w * 0.62, half * 0.55, n=24)
        pen.fill(clip_between(iris, upper * (1, 1), lower - (0, 0.03)), mix(look.blush, (70, 60, 160, 255), 0.6))
    shine = clip_between(
        ellipse(x - 0.25 * lay.eye_w, y - 0.3 * half, 0.3 * lay.eye_w, 0.28 * half, n=16), upper, lower
    )
    pen.fill(shine, WHITE)
    if look.eyes == "glossy":
        pen.fill(
            clip_between(
                ellipse(x + 0.3 * lay.eye_w, y + 0.4 * half, 0.13 * lay.eye_w, 0.13 * half, n=12), upper, lower
            ),
            WHITE,
        )
    if e.lid > 0.2:
        pen.line(upper, lid, look.ink)


def _screen_eye(pen: Pen, e: Expression, lay: Layout, look: Look, side: int) -> None:
    upper, lower = eye_edges(e, lay, side)
    if e.pupil < 0.5:
        pen.line(outline(upper, lower), look.line * 0.9, look.ink, closed=True)
        radius = max(0.06, e.pupil * lay.eye_w * 0.8)
        pen.disc(side * lay.eye_x + 0.3 * lay.eye_w * e.gaze_x, lay.eye_y, radius, look.ink)
    else:
        pen.fill(outline(upper, lower), look.ink)


def _eyes(pen: Pen, e: Expression, lay: Layout, look: Look, screen: bool) -> None:
    for side in (-1, 1):
        if e.eyes != "open":
            for stroke in closed_eye(e, lay, side):
                pen.line(stroke, look.line * 1.25, look.ink)
        elif screen:
            _screen_eye(pen, e, lay, look, side)
        else:
            _open_eye(pen, e, lay, look, side)


def _nose_wrinkle(pen: Pen, e: Expression, lay: Layout, look: Look) -> None:
    if e.nose_wrinkle < 0.45:
        return
    for k, half in enumerate((0.13, 0.1)):
        y = lay.eye_y + 0.04 + 0.13 * k
        pen.line(quadratic((-half, y), (0.0, y + 0.05), (half, y)), look.line * 0.5, look.ink)


def _teeth(pen: Pen, e: Expression, upper: np.ndarray, lower: np.ndarray, look: Look) -> None:
    gap = lower - upper
    if e.teeth == "clenched":
        pen.fill(outline(upper, lower), WHITE)
        for k in (5, 10, 16, 22, 27):
            pen.line(np.array([upper[k], lower[k]]), look.line * 0.4, look.ink)
        pen.line(upper + gap * 0.5, look.line * 0.4, look.ink)
    elif e.teeth == "upper":
        pen.fill(outline(upper[3:-3], (upper + gap * 0.32)[3:-3]), WHITE)
    elif e.teeth == "fangs":
        for edge, other, share in ((upper, lower, 0.55), (lower, upper, 0.4)):
            for k in (6, 23):
                tip = (edge[k + 2] * (1 - share)) + other[k + 2] * share
                pen.fill(np.array([edge[k], tip, edge[k + 4]]), WHITE)


def _mouth(pen: Pen, e: Expression, lay: Layout, look: Look, screen: bool) -> None:
    upper, lower = mouth_edges(e, lay)
    width = look.line * 1.15
    if float((lower - upper)[:, 1].max()) < 0.06:
        pen.line(upper, width, look.ink)
    else:
        pen.fill(outline(upper, lower), look.ink if screen else _MOUTH)
        if 0 < e.tongue < 0.25:
            half, bottom = e.mouth_width * 0.6, float(lower[16, 1])
            inner = ellipse(0.0, bottom, half, 0.4 * e.mouth_open, n=28)
            pen.fill(clip_between(inner, upper, lower), _TONGUE)
        _teeth(pen, e, upper, lower, look)
        pen.line(outline(upper, lower), look.line * 0.9, look.ink, closed=True)
    if e.tongue >= 0.25:
        x, y = float(lower[18, 0]), float(lower[18, 1]) - 0.02
        half, length = 0.16 * lay.mouth_gain, 0.42 * e.tongue * lay.mouth_gain
        tip = ellipse(x, y + length - half, half, half, n=24)[:13]
        pen.shape(np.concatenate([[(x + half, y)], tip, [(x - half, y)]]), _TONGUE, look.ink, look.line * 0.8)
        pen.line(np.array([(x, y + 0.04), (x, y + length * 0.6)]), look.line * 0.5, mix(_TONGUE, look.ink, 0.5))


def _face(scene: Scene, e: Expression, rng: np.random.Generator) -> None:
    """Features and signs, from the skin upwards."""
    pen, lay, look, character = scene.pen, scene.layout, scene.look, scene.character
    for name, draw in UNDER.items():
        if name in e.props:
            draw(scene)
    if character.screen:
        bright = _SCREEN_INK[rng.integers(len(_SCREEN_INK))]
        look = Look(**{**vars(look), "ink": bright})
    _eyes(pen, e, lay, look, character.screen)
    for name, draw in MIDDLE.items():
        if name in e.props:
            draw(scene)
    _nose_wrinkle(pen, e, lay, look)
    _mouth(pen, e, lay, look, character.screen)
    thick = character.brows * float(rng.uniform(0.8, 1.25))
    for side in (-1, 1):
        pen.taper(brow(e, lay, side), thick * 0.9, thick, thick * 0.55, look.ink)
    if not {"vein", "cloud", "gloom", "exclaim"} & set(e.props):
        draw_accessory(pen, scene.look, character)
    for name, draw in OVER.items():
        if name in e.props:
            draw(scene)


def _die_cut(image: Image.Image, border: float) -> Image.Image:
    """A white border of the given width in pixels around everything drawn, as on a printed sticker."""
    blurred = image.getchannel("A").filter(ImageFilter.GaussianBlur(border * 0.75))
    edge = blurred.point([min(255, max(0, (v - 18) * 12)) for v in range(256)])
    backing = Image.new("RGBA", image.size, (255, 255, 255, 0))
    backing.putalpha(edge)
    return Image.alpha_composite(backing, image)


def draw_sticker(expression: Expression, character: str, rng: np.random.Generator, size: int) -> Image.Image:
    """One sticker.

    Args:
        expression: what the face shows, already exaggerated.
        character: a key of ``CHARACTERS``.
        rng: colours, style, pose.
        size: side of the square picture in pixels.

    Returns:
        RGBA, size x size, transparent outside the character and its signs.
    """
    look = _look(expression, character, rng)
    factor = 3 if size <= 192 else 2
    large = size * factor
    image = Image.new("RGBA", (large, large), (*look.ink[:3], 0))
    unit = large * float(rng.uniform(0.315, 0.36)) * CHARACTERS[character].scale
    centre = (large * (0.5 + float(rng.uniform(-0.03, 0.03))), large * (0.52 + float(rng.uniform(-0.03, 0.03))))
    pen = Pen(image, centre, unit, float(rng.normal(0, 0.12)), bool(rng.random() < 0.5))
    scene = Scene(pen, look, CHARACTERS[character], tuple(rng.uniform(-1, 1, 4).tolist()))
    CHARACTERS[character].body(pen, look)
    _face(scene, expression, rng)
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    if rng.random() < 0.6:
        image = _die_cut(image, size * float(rng.uniform(0.022, 0.035)))
    return image
