"""Curves of a face (brows, eyes, mouth) from an ``Expression``, and the pen that draws them with Pillow.

Face coordinates: x to the right, y down, origin in the middle of the head, 1 = about half the head's width.
All curves are float64 arrays [N, 2] of (x, y).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from kcdp.data.drawing.expressions import Expression

Colour = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Where the parts sit in face coordinates; a character has its own."""

    eye_x: float = 0.4
    eye_y: float = -0.1
    eye_w: float = 0.2
    eye_h: float = 0.11
    eye_round: float = 0.5  # exponent of the eye's outline: 0.5 an ellipse, 0.9 an almond
    brow_y: float = -0.36  # height of a neutral brow
    brow_lift: float = 0.16  # how far a brow moves for 1 unit
    mouth_y: float = 0.55
    mouth_gain: float = 1.0  # size of the mouth


class Pen:
    """Draws face-coordinate shapes on an image: rotation, mirroring and scale are applied to the points.

    Args:
        image: the canvas, changed in place.
        centre: pixel position of the face's origin.
        scale: pixels for one unit of face coordinates.
        angle: rotation in radians, clockwise on the screen.
        flip: mirror left and right.
    """

    def __init__(
        self, image: Image.Image, centre: tuple[float, float], scale: float, angle: float = 0.0, flip: bool = False
    ) -> None:
        self.draw = ImageDraw.Draw(image)
        self.scale = scale
        self._centre = np.array(centre)
        cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
        mirror = -1.0 if flip else 1.0
        self._matrix = np.array([[cos * mirror, sin * mirror], [-sin, cos]])

    def moved(self, shift: np.ndarray) -> Pen:
        """The same pen with its origin moved by (x, y) face units."""
        other = copy.copy(self)
        other._centre = self.pixels(np.asarray(shift, float)[None])[0]
        return other

    def face_grid(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Face coordinates x and y of every pixel of a size x size picture, each float32 [size, size]."""
        inverse = np.linalg.inv(self._matrix)
        col = np.arange(size) + 0.5 - self._centre[0]
        row = (np.arange(size) + 0.5 - self._centre[1])[:, None]
        x, y = (col * inverse[0, k] + row * inverse[1, k] for k in (0, 1))
        return x.astype(np.float32), y.astype(np.float32)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """float64 [N, 2] in face coordinates -> [N, 2] in pixels."""
        return points @ self._matrix + self._centre

    def fill(self, points: np.ndarray, colour: Colour) -> None:
        """A filled polygon."""
        self.draw.polygon(self.pixels(points).ravel().tolist(), fill=colour)

    def line(self, points: np.ndarray, width: float, colour: Colour, closed: bool = False) -> None:
        """A line of the given width (face units) with round ends and joints."""
        path = self.pixels(points)
        thick = max(1, round(width * self.scale))
        if closed:
            path = np.concatenate([path, path[:2]])
        self.draw.line(path.ravel().tolist(), fill=colour, width=thick, joint="curve")
        if thick > 2 and not closed:
            radius = (thick - 1) / 2
            for x, y in (path[0], path[-1]):
                self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def shape(self, points: np.ndarray, colour: Colour, outline: Colour, width: float) -> None:
        """A filled polygon with an outline centred on its edge."""
        self.fill(points, colour)
        self.line(points, width, outline, closed=True)

    def taper(self, points: np.ndarray, start: float, middle: float, end: float, colour: Colour) -> None:
        """A brush stroke whose width (face units) goes from start over middle to end."""
        step = np.gradient(points, axis=0)
        normal = np.stack([-step[:, 1], step[:, 0]], axis=1) / (np.linalg.norm(step, axis=1, keepdims=True) + 1e-9)
        t = np.linspace(0.0, 1.0, len(points))
        half = np.interp(t, [0.0, 0.45, 1.0], [start, middle, end])[:, None] / 2
        self.fill(np.concatenate([points + normal * half, (points - normal * half)[::-1]]), colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        """A filled circle."""
        cx, cy = self.pixels(np.array([[x, y]]))[0]
        r = radius * self.scale
        self.draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=colour)


@cache
def _circle(n: int) -> np.ndarray:
    angles = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ellipse(x: float, y: float, rx: float, ry: float, power: float = 2.0, n: int = 40) -> np.ndarray:
    """A superellipse |dx/rx|^power + |dy/ry|^power = 1; power 2 is an ellipse, 4 a rounded box."""
    unit = _circle(n)
    if power != 2.0:
        unit = np.sign(unit) * np.abs(unit) ** (2.0 / power)
    return unit * (rx, ry) + (x, y)


def quadratic(a: Sequence[float], through: Sequence[float], b: Sequence[float], n: int = 11) -> np.ndarray:
    """A parabola from a to b that passes through the middle point at half time."""
    start, mid, end = np.asarray(a), np.asarray(through), np.asarray(b)
    control = 2 * mid - (start + end) / 2
    t = np.linspace(0.0, 1.0, n)[:, None]
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Colour between a (share 0) and b (share 1), RGB or RGBA, 0..255; values beyond 255 are cut."""
    return tuple(max(0, min(255, int(p + (q - p) * share))) for p, q in zip(a, b, strict=True))


def brow(expression: Expression, layout: Layout, side: int) -> np.ndarray:
    """One brow from its inner to its outer end; side is -1 or 1. [11, 2]."""
    e, lift = expression, layout.brow_lift
    skew = side * e.brow_skew * 0.6 * lift
    inner_x = side * (layout.eye_x - layout.eye_w * 1.15 - 0.06 * e.furrow)
    outer_x = side * (layout.eye_x + layout.eye_w * 1.2)
    inner_y = layout.brow_y - lift * e.brow_inner - skew
    outer_y = layout.brow_y - lift * e.brow_outer - skew + 0.02
    mid_y = (inner_y + outer_y) / 2 - lift * 0.7 * e.brow_arch
    return quadratic((inner_x, inner_y), ((inner_x + outer_x) / 2, mid_y), (outer_x, outer_y))


def eye_edges(expression: Expression, layout: Layout, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower edge of one open eye, both from the inner to the outer corner. Two arrays [17, 2]."""
    e = expression
    u = np.linspace(-1.0, 1.0, 17)
    half = layout.eye_h * e.eye_open
    curve = half * np.clip(1 - u**2, 0, 1) ** layout.eye_round
    lid = -half * (1 - 2 * e.lid) - e.lid_tilt * half * 0.75 * u - 0.12 * half * (1 - u**2)
    low = half * (1 - 1.5 * e.lower_lid * (1 - 0.25 * u**2))
    bottom = np.minimum(curve, low)
    top = np.minimum(np.maximum(-curve, lid), bottom - 0.06 * half * (1 - u**2))
    x = side * (layout.eye_x + layout.eye_w * u)
    return np.stack([x, layout.eye_y + top], axis=1), np.stack([x, layout.eye_y + bottom], axis=1)


def outline(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Two edges with common ends as one closed polygon."""
    return np.concatenate([upper, lower[-2:0:-1]])


def clip_between(points: np.ndarray, upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Move points that lie outside the area between two edges onto its border (iris into eye, tongue into mouth)."""
    order = 1 if upper[-1, 0] >= upper[0, 0] else -1
    xs = upper[::order, 0]
    x = np.clip(points[:, 0], xs[0], xs[-1])
    y = np.clip(points[:, 1], np.interp(x, xs, upper[::order, 1]), np.interp(x, xs, lower[::order, 1]))
    return np.stack([x, y], axis=1)


def closed_eye(expression: Expression, layout: Layout, side: int) -> list[np.ndarray]:
    """The lines of an eye that is shut, by ``expression.eyes``."""
    x, y, w, h = layout.eye_x, layout.eye_y, layout.eye_w, layout.eye_h
    inner, outer, mid = side * (x - w), side * (x + w), side * x
    if expression.eyes == "arc":
        return [quadratic((inner, y + 0.45 * h), (mid, y - 0.75 * h), (outer, y + 0.45 * h))]
    if expression.eyes == "shut":
        return [quadratic((inner, y - 0.15 * h), (mid, y + 0.75 * h), (outer, y + 0.35 * h))]
    tip = side * (x - 0.75 * w)
    return [np.array([[outer, y - 0.75 * h], [tip, y], [outer, y + 0.75 * h]])]


def mouth_edges(expression: Expression, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Upper and lower edge of the mouth from left to right; the same line where it is shut. Two arrays [33, 2]."""
    e, gain = expression, layout.mouth_gain
    t = np.linspace(-1.0, 1.0, 33)
    base = -0.34 * e.mouth_curve * (t**2 - 0.4) * max(0.6, e.mouth_width / 0.36)
    base = base + 0.045 * e.mouth_wave * np.sin(3.5 * np.pi * t + 0.6)
    side = np.clip(t * np.sign(e.mouth_skew), 0, 1)
    raised = 0.17 * abs(e.mouth_skew) * side**1.5
    profile = np.clip(1 - t**2, 0, 1) ** (0.5 - 0.38 * e.mouth_square)
    up = profile * (e.mouth_open * e.mouth_share) + raised * (1.0 if e.mouth_open < 0.02 else profile + 0.35)
    down = profile * e.mouth_open * (1 - e.mouth_share) - raised * (1.0 if e.mouth_open < 0.02 else 0.35)
    x = t * e.mouth_width * gain
    upper = np.stack([x, layout.mouth_y + gain * (base - up)], axis=1)
    lower = np.stack([x, layout.mouth_y + gain * np.maximum(base + down, base - up)], axis=1)
    return upper, lower
