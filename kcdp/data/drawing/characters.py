"""The characters that stickers are drawn with: base shape, colours, ears, arms, and where the face sits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kcdp.data.drawing.geometry import Colour, Layout, Pen, ellipse, mix, quadratic

WHITE: Colour = (255, 255, 255, 255)

#: Body colours. Every emotion draws from all of them: a colour by itself tells nothing.
PALETTE: tuple[Colour, ...] = (
    (255, 204, 51, 255), (255, 221, 103, 255), (255, 168, 76, 255), (247, 120, 107, 255), (236, 92, 92, 255),
    (255, 158, 187, 255), (190, 150, 235, 255), (126, 150, 240, 255), (110, 190, 245, 255), (150, 225, 235, 255),
    (120, 215, 180, 255), (140, 205, 100, 255), (200, 225, 110, 255), (196, 148, 104, 255), (232, 205, 170, 255),
    (245, 238, 225, 255), (190, 195, 205, 255),
)  # fmt: skip
INKS: tuple[Colour, ...] = ((25, 22, 28, 255), (25, 22, 28, 255), (60, 34, 24, 255), (28, 32, 74, 255))


@dataclass(frozen=True)
class Look:
    """Everything about one sticker's character except its expression.

    Attributes:
        skin: body colour, the emotion's tint already mixed in (RGBA).
        ink: outline colour.
        line: outline width in face units.
        eyes: "white", "bead" or "glossy".
        shade: whether a darker crescent is drawn on the body.
        blush: colour of cheeks.
        accessory: "", "bow", "flower", "cap" or "leaf".
        wobble: four numbers in -1..1 that bend the outlines.
    """

    skin: Colour
    ink: Colour
    line: float
    eyes: str
    shade: bool
    blush: Colour
    accessory: str
    wobble: tuple[float, float, float, float]

    @property
    def dark(self) -> Colour:
        """The skin in shadow."""
        return mix(self.skin, (40, 20, 50, 255), 0.18)

    @property
    def light(self) -> Colour:
        """The skin's light parts (muzzle, belly)."""
        return mix(self.skin, WHITE, 0.55)


@dataclass(frozen=True)
class Character:
    """A base shape.

    Attributes:
        layout: where the face's parts sit on it.
        body: draws everything that lies under the face.
        top: y of the head's top, where accessories and signs go.
        half_width: x of the head's side at eye height.
        scale: size relative to the other characters, so that all of it fits on the canvas.
        brows: width of the brows in face units.
        screen: whether the face is shown in bright lines on a dark screen.
    """

    layout: Layout
    body: Callable[[Pen, Look], None]
    top: float = -1.0
    half_width: float = 1.0
    scale: float = 1.0
    brows: float = 0.11
    screen: bool = False


def _solid(pen: Pen, look: Look, points: np.ndarray, shade_shift: tuple[float, float] = (-0.07, -0.09)) -> None:
    """A body part: outline, and a crescent of shade on its lower right."""
    if look.shade:
        pen.shape(points, look.dark, look.ink, look.line)
        middle = points.mean(axis=0)
        pen.fill((points - middle) * 0.93 + middle + shade_shift, look.skin)
        pen.line(points, look.line, look.ink, closed=True)
    else:
        pen.shape(points, look.skin, look.ink, look.line)


def _emoji(pen: Pen, look: Look) -> None:
    _solid(pen, look, ellipse(0, 0, 1, 1, n=56))


def _cat(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        tip = (side * (0.86 + 0.06 * look.wobble[0]), -1.22 - 0.05 * look.wobble[1])
        pen.shape(np.array([(side * 0.98, -0.1), tip, (side * 0.22, -0.72)]), look.skin, look.ink, look.line)
        pen.fill(np.array([(side * 0.86, -0.45), (tip[0] * 0.97, tip[1] + 0.2), (side * 0.46, -0.72)]), look.blush)
    _solid(pen, look, ellipse(0, 0.05, 1.05, 0.88, 2.3, n=56))
    for side in (-1, 1):
        for y, dy in ((0.22, -0.05), (0.36, 0.05)):
            pen.line(np.array([(side * 0.78, y), (side * 1.24, y + dy)]), look.line * 0.55, look.ink)
    pen.fill(np.array([(-0.08, 0.17), (0.08, 0.17), (0.0, 0.27)]), look.ink)


def _bear(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        pen.shape(ellipse(side * 0.72, -0.72, 0.32, 0.32), look.skin, look.ink, look.line)
        pen.fill(ellipse(side * 0.72, -0.72, 0.17, 0.17), look.light)
    _solid(pen, look, ellipse(0, 0.05, 1.02, 0.92, 2.2, n=56))
    pen.fill(ellipse(0, 0.47, 0.58, 0.42), look.light)
    pen.fill(ellipse(0, 0.19, 0.13, 0.085), look.ink)


def _blob(pen: Pen, look: Look) -> None:
    a = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    w = look.wobble
    radius = (
        0.98 + 0.05 * w[0] * np.sin(2 * a + w[1]) + 0.05 * np.sin(3 * a + 3 * w[2]) + 0.03 * np.sin(5 * a + 3 * w[3])
    )
    points = np.stack([radius * np.cos(a) * 1.04, radius * np.sin(a) * 0.95], axis=1)
    peak = np.exp(-(((a - 1.5 * np.pi) / 0.22) ** 2))
    points = points + np.stack([0.2 * w[0] * peak, -0.22 * peak], axis=1)
    _solid(pen, look, points)
    pen.fill(ellipse(-0.62, -0.52, 0.13, 0.08), mix(look.skin, WHITE, 0.8))


def _robot(pen: Pen, look: Look) -> None:
    pen.line(np.array([(0, -0.8), (0.12 * look.wobble[0], -1.15)]), look.line, look.ink)
    pen.shape(ellipse(0.12 * look.wobble[0], -1.18, 0.11, 0.11), look.blush, look.ink, look.line * 0.8)
    for side in (-1, 1):
        pen.shape(ellipse(side * 1.0, 0, 0.14, 0.26, 5), mix(look.skin, (60, 60, 80, 255), 0.4), look.ink, look.line)
    _solid(pen, look, ellipse(0, 0.02, 0.98, 0.86, 6, n=64), (-0.04, -0.04))
    for x, y in ((-0.84, -0.7), (0.84, -0.7), (-0.84, 0.74), (0.84, 0.74)):
        pen.fill(ellipse(x, y, 0.045, 0.045, n=12), look.ink)


def _screen_robot(pen: Pen, look: Look) -> None:
    _robot(pen, look)
    pen.shape(ellipse(0, 0.02, 0.84, 0.7, 5, n=56), (32, 38, 58, 255), look.ink, look.line * 0.6)


def _ghost(pen: Pen, look: Look) -> None:
    dome = [(np.cos(t), -0.12 + np.sin(t) * 0.95) for t in np.linspace(np.pi, 2 * np.pi, 28)]
    x = np.linspace(1, -1, 37)
    hem = np.stack([x * 1.04, 0.95 + 0.1 * np.cos(4 * np.pi * x + 2 * look.wobble[0])], axis=1)
    for side in (-1, 1):
        arm = ellipse(side * 1.0, 0.35 - 0.15 * look.wobble[1], 0.24, 0.15)
        pen.shape(arm, look.skin, look.ink, look.line)
    _solid(pen, look, np.concatenate([np.array(dome), hem]), (-0.05, -0.06))


def _bean(pen: Pen, look: Look) -> None:
    for side in (-1, 1):
        foot = np.array([(side * 0.3, 1.0), (side * 0.34, 1.34), (side * (0.5 + 0.04 * look.wobble[0]), 1.36)])
        pen.line(foot, look.line * 1.2, look.ink)
        hand = quadratic((side * 0.78, 0.45), (side * 1.08, 0.5), (side * 1.16, 0.2 + 0.25 * look.wobble[1]))
        pen.line(hand, look.line * 1.2, look.ink)
    y = np.linspace(-1, 1, 30)
    width = 0.86 * np.sqrt(np.clip(1 - np.abs(y) ** 2.6, 0, 1))
    bend = 0.1 * look.wobble[2] * y**2
    right, left = np.stack([width + bend, y * 1.18], axis=1), np.stack([-width + bend, y * 1.18], axis=1)
    _solid(pen, look, np.concatenate([right, left[::-1]]), (-0.05, -0.05))


CHARACTERS: dict[str, Character] = {
    "emoji": Character(Layout(0.4, -0.14, 0.19, 0.21, 0.5, -0.5, 0.17, 0.42, 1.15), _emoji),
    "cat": Character(Layout(0.45, -0.08, 0.2, 0.21, 0.5, -0.43, 0.15, 0.47, 0.88), _cat, -0.85, 1.05, 0.94),
    "bear": Character(Layout(0.44, -0.14, 0.18, 0.19, 0.5, -0.48, 0.16, 0.5, 0.85), _bear, -0.9, 1.0, 0.97),
    "blob": Character(Layout(0.38, -0.12, 0.2, 0.23, 0.5, -0.48, 0.17, 0.42, 1.15), _blob, -1.1, 1.0, 0.97),
    "robot": Character(Layout(0.42, -0.12, 0.21, 0.2, 0.35, -0.46, 0.15, 0.44, 1.1), _robot, -1.0, 1.1, 0.92),
    "screen": Character(
        Layout(0.38, -0.1, 0.19, 0.19, 0.4, -0.4, 0.13, 0.36, 0.95), _screen_robot, -1.0, 1.1, 0.92, 0.08, True
    ),
    "ghost": Character(Layout(0.37, -0.2, 0.18, 0.21, 0.5, -0.54, 0.16, 0.34, 1.1), _ghost, -1.05, 1.0, 0.95),
    "bean": Character(Layout(0.33, -0.38, 0.17, 0.19, 0.5, -0.7, 0.14, 0.16, 0.95), _bean, -1.15, 0.82, 0.86),
}  # fmt: skip


def draw_accessory(pen: Pen, look: Look, character: Character) -> None:
    """A bow, flower, cap or leaf on the head; it is chosen without regard to the emotion."""
    y, ink, line = character.top + 0.1, look.ink, look.line * 0.7
    colour = look.blush
    if look.accessory == "bow":
        for side in (-1, 1):
            wing = np.array([(-0.5, y + 0.06), (-0.5 + side * 0.26, y - 0.1), (-0.5 + side * 0.26, y + 0.22)])
            pen.shape(wing, colour, ink, line)
        pen.shape(ellipse(-0.5, y + 0.06, 0.08, 0.08, n=16), colour, ink, line)
    elif look.accessory == "flower":
        for k in range(5):
            a = k * 2 * np.pi / 5
            pen.shape(ellipse(-0.55 + 0.13 * np.cos(a), y + 0.1 + 0.13 * np.sin(a), 0.1, 0.1, n=16), colour, ink, line)
        pen.fill(ellipse(-0.55, y + 0.1, 0.09, 0.09, n=16), (255, 220, 90, 255))
    elif look.accessory == "cap":
        dome = np.array([(0.62 * np.cos(t), y + 0.22 + 0.42 * np.sin(t)) for t in np.linspace(np.pi, 2 * np.pi, 18)])
        pen.shape(dome, colour, ink, line)
        pen.shape(ellipse(0.5, y + 0.2, 0.42, 0.08), mix(colour, ink, 0.25), ink, line)
    elif look.accessory == "leaf":
        pen.line(np.array([(0, y + 0.02), (0.03, y - 0.14)]), line, ink)
        leaf = np.concatenate(
            [quadratic((0.03, y - 0.14), (0.14, y - 0.32), (0.34, y - 0.24)),
             quadratic((0.34, y - 0.24), (0.24, y - 0.08), (0.03, y - 0.14))]
        )  # fmt: skip
        pen.shape(leaf, (120, 190, 90, 255), ink, line)
