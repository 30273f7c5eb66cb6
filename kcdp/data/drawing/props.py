"""The drawn signs of stickers: tears, sweat, anger vein, steam, sparkles and the like, one function each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kcdp.data.drawing.characters import WHITE, Character, Look
from kcdp.data.drawing.geometry import Colour, Layout, Pen, ellipse, mix, quadratic

_WATER: Colour = (120, 200, 250, 255)
_YELLOW: Colour = (255, 214, 64, 255)
_PINK: Colour = (244, 92, 130, 255)
_RED: Colour = (222, 46, 46, 255)
_GREY: Colour = (205, 212, 222, 255)
_GREEN: Colour = (118, 150, 50, 255)


@dataclass(frozen=True)
class Scene:
    """What a sign needs to know about the sticker it is drawn on; jitter is four numbers in -1..1."""

    pen: Pen
    look: Look
    character: Character
    jitter: tuple[float, float, float, float]

    @property
    def layout(self) -> Layout:
        return self.character.layout


def _drop(scene: Scene, x: float, y: float, size: float) -> None:
    """A drop with its tip up, (x, y) the middle of its round part."""
    a = np.linspace(-0.2 * np.pi, 1.2 * np.pi, 20)
    round_part = np.stack([x + size * np.cos(a), y + size * np.sin(a)], axis=1)
    points = np.concatenate([round_part, [(x, y - 2.1 * size)]])
    scene.pen.shape(points, _WATER, scene.look.ink, scene.look.line * 0.6)
    scene.pen.fill(ellipse(x - 0.35 * size, y + 0.15 * size, 0.22 * size, 0.3 * size, n=12), WHITE)


def _tear(scene: Scene) -> None:
    lay = scene.layout
    side = 1 if scene.jitter[0] > 0 else -1
    _drop(scene, side * (lay.eye_x + 0.08), lay.eye_y + 0.4 + 0.08 * scene.jitter[1], 0.13)
    if scene.jitter[2] > 0:
        _drop(scene, -side * (lay.eye_x + 0.1), lay.eye_y + 0.46, 0.1)


def _stream(scene: Scene) -> None:
    lay, pen = scene.layout, scene.pen
    bottom = lay.eye_y + 0.85
    for side in (-1, 1):
        x, w = side * (lay.eye_x + 0.02), lay.eye_w * 0.62
        flow = np.array(
            [(x - w, lay.eye_y + 0.16), (x + w, lay.eye_y + 0.16), (x + w * 1.1, bottom), (x - w * 1.1, bottom)]
        )
        pen.fill(np.concatenate([flow[:3], ellipse(x, bottom, w * 1.1, 0.1, n=24)[:13], flow[3:]]), _WATER)
        pen.line(np.array([(x - w * 0.2, lay.eye_y + 0.3), (x - w * 0.2, bottom - 0.1)]), scene.look.line * 0.7, WHITE)


def _joytears(scene: Scene) -> None:
    lay = scene.layout
    for side in (-1, 1):
        _drop(scene, side * (lay.eye_x + lay.eye_w + 0.16), lay.eye_y + 0.12, 0.11)


def _sweat(scene: Scene) -> None:
    side = 1 if scene.jitter[3] > 0 else -1
    _drop(scene, side * scene.character.half_width * 0.74, scene.layout.brow_y + 0.08 * scene.jitter[0], 0.14)
    if scene.jitter[1] > 0.2:
        _drop(scene, -side * scene.character.half_width * 0.8, scene.layout.brow_y + 0.25, 0.1)


def _vein(scene: Scene) -> None:
    x, y = 0.62 * scene.character.half_width, scene.layout.brow_y - 0.24
    gap, arm = 0.07, 0.17
    for sx, sy in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        corner = quadratic(
            (x + sx * arm * 1.4, y + sy * gap),
            (x + sx * gap * 1.5, y + sy * gap * 1.5),
            (x + sx * gap, y + sy * arm * 1.4),
        )
        scene.pen.line(corner, scene.look.line * 1.1, _RED)


def _puffs(scene: Scene, x: float, y: float, size: float, colour: Colour) -> None:
    bumps = ((-0.8, 0.1, 0.6), (0.0, -0.35, 0.75), (0.8, 0.1, 0.6), (0.0, 0.25, 0.7))
    line = scene.look.line * 0.6
    for dx, dy, r in bumps:
        scene.pen.disc(x + dx * size, y + dy * size, r * size + line, scene.look.ink)
    for dx, dy, r in bumps:
        scene.pen.disc(x + dx * size, y + dy * size, r * size, colour)


def _steam(scene: Scene) -> None:
    x, y = scene.character.half_width + 0.08, scene.layout.brow_y + 0.12
    if scene.jitter[0] > 0.2:
        _puffs(scene, 0.25 * scene.jitter[1], scene.character.top - 0.05, 0.17, _GREY)
    else:
        for side in (-1, 1):
            _puffs(scene, side * x, y - 0.2, 0.15, _GREY)


def _star(scene: Scene, x: float, y: float, size: float) -> None:
    a = np.arange(8) * np.pi / 4
    radius = np.where(np.arange(8) % 2 == 0, size, 0.36 * size)
    points = np.stack([x + radius * np.cos(a), y + radius * np.sin(a)], axis=1)
    scene.pen.shape(points, _YELLOW, scene.look.ink, scene.look.line * 0.5)


def _sparkles(scene: Scene) -> None:
    w, top, j = scene.character.half_width, scene.character.top, scene.jitter
    _star(scene, w * 0.95, top * 0.78 + 0.06 * j[0], 0.23)
    _star(scene, -w * 1.02, top * 0.55 + 0.1 * j[1], 0.16)
    if j[2] > 0:
        _star(scene, w * 1.04, 0.45 + 0.1 * j[3], 0.14)


def _exclaim(scene: Scene) -> None:
    side = 1 if scene.jitter[0] > 0 else -1
    x, y = side * scene.character.half_width * 0.98, scene.character.top * 0.82
    colour = (_RED, _YELLOW, WHITE)[int((scene.jitter[1] + 1) * 1.49)]
    for dx in (0.0, -side * 0.22)[: 2 if scene.jitter[2] > 0.3 else 1]:
        corners = ((-0.085, -0.3), (0.085, -0.3), (0.045, 0.12), (-0.045, 0.12))
        bar = np.array(corners) + np.array((x + dx, y))
        scene.pen.shape(bar, colour, scene.look.ink, scene.look.line * 0.6)
        scene.pen.shape(ellipse(x + dx, y + 0.25, 0.07, 0.07, n=16), colour, scene.look.ink, scene.look.line * 0.6)


def _shock(scene: Scene) -> None:
    top, w = scene.character.top, scene.character.half_width
    for a in np.linspace(-0.75, 0.75, 5):
        if abs(a) < 0.1 and scene.look.accessory:
            continue
        ray = np.array([(w * 1.13 * np.sin(a), top * 1.13 * np.cos(a)), (w * 1.32 * np.sin(a), top * 1.32 * np.cos(a))])
        scene.pen.line(ray, scene.look.line * 1.1, scene.look.ink)


def _blush(scene: Scene) -> None:
    lay = scene.layout
    for side in (-1, 1):
        x = side * min(lay.eye_x + 0.24, scene.character.half_width * 0.76)
        scene.pen.fill(ellipse(x, lay.eye_y + 0.36, 0.17, 0.1), scene.look.blush)


def _hearts(scene: Scene) -> None:
    w, top, j = scene.character.half_width, scene.character.top, scene.jitter
    for x, y, s in ((w, top * 0.7, 0.2), (-w * 1.05, top * 0.5 + 0.1 * j[0], 0.15))[: 2 if j[1] > -0.3 else 1]:
        t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        curve = np.stack(
            [np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)) / 16], 1
        )
        scene.pen.shape(curve * s + (x, y), _PINK, scene.look.ink, scene.look.line * 0.6)


def _flies(scene: Scene) -> None:
    w, top, j = scene.character.half_width, scene.character.top, scene.jitter
    for x, y in ((w * 0.9, top * 0.85), (-w * 1.05, top * 0.55 + 0.1 * j[0]), (w * 1.1, -0.05 + 0.2 * j[1])):
        for side in (-1, 1):
            scene.pen.shape(
                ellipse(x + side * 0.11, y - 0.1, 0.1, 0.07, n=16), WHITE, scene.look.ink, scene.look.line * 0.4
            )
        scene.pen.fill(ellipse(x, y, 0.08, 0.1, n=16), scene.look.ink)


def _stink(scene: Scene) -> None:
    y = np.linspace(0, 0.42, 16)
    for k, x in enumerate((-0.75, 0.8, 1.05)):
        start = scene.character.top * (0.74 if k < 2 else 0.5)
        wave = np.stack([x * scene.character.half_width + 0.07 * np.sin(y * 16 + k), start - y], axis=1)
        scene.pen.line(wave, scene.look.line, _GREEN)


def _shiver(scene: Scene) -> None:
    y = np.linspace(-0.3, 0.3, 21)
    for side in (-1, 1):
        for gap, length in ((0.12, 1.0), (0.24, 0.6)):
            wave = side * (scene.character.half_width + gap) + 0.04 * np.sin(21 * y)
            line = np.stack([wave, 0.3 + y * length], axis=1)
            scene.pen.line(line, scene.look.line * 0.7, scene.look.ink)


def _gloom(scene: Scene) -> None:
    colour = mix((70, 90, 190, 255), scene.look.skin, 0.15)
    top = scene.character.top
    side = 1 if scene.jitter[0] > 0 else -1
    for k in range(5):
        x = side * (0.12 + 0.13 * k) * scene.character.half_width
        start = top * np.sqrt(1 - (0.1 + 0.13 * k) ** 2) * 0.9
        end = scene.layout.brow_y + 0.05 + 0.12 * (k % 2)
        scene.pen.line(np.array([(x, start), (x, end)]), scene.look.line * 0.7, colour)


def _cloud(scene: Scene) -> None:
    x, y = 0.3 * scene.jitter[0], scene.character.top - 0.02
    for dx in (-0.25, 0.0, 0.25):
        rain = np.array([(x + dx, y + 0.2), (x + dx - 0.05, y + 0.4)])
        scene.pen.line(rain, scene.look.line * 0.8, (70, 130, 220, 255))
    _puffs(scene, x, y, 0.24, mix(_GREY, (90, 100, 125, 255), 0.45))


def _vomit(scene: Scene) -> None:
    lay, w = scene.layout, 0.2 * scene.layout.mouth_gain
    y, bottom = lay.mouth_y + 0.02, lay.mouth_y + 0.52 + 0.08 * scene.jitter[0]
    slime = [(-w, y), (w, y), (w * 1.3, bottom - 0.1), (w * 0.7, bottom + 0.06), (0.1 * w, bottom - 0.05)]
    slime += [(-w * 0.7, bottom + 0.1), (-w * 1.35, bottom - 0.08)]
    scene.pen.shape(np.array(slime), (150, 200, 70, 255), scene.look.ink, scene.look.line * 0.7)


def _hands(scene: Scene) -> None:
    pen, look = scene.pen, scene.look
    for side in (-1, 1):
        x, y = side * 0.66 * scene.character.half_width, scene.layout.mouth_y + 0.08
        pen.shape(ellipse(x, y, 0.2, 0.27, 2.4), look.skin, look.ink, look.line * 0.8)
        for dx in (-0.06, 0.06):
            pen.line(np.array([(x + dx, y - 0.25), (x + dx, y - 0.08)]), look.line * 0.55, look.ink)


#: Drawn under the eyes and the mouth.
UNDER: dict[str, Callable[[Scene], None]] = {"blush": _blush, "gloom": _gloom}

#: Drawn over the face, in this order.
OVER: dict[str, Callable[[Scene], None]] = {
    "vomit": _vomit, "hands": _hands, "tear": _tear, "joytears": _joytears, "sweat": _sweat, "vein": _vein,
    "steam": _steam, "sparkles": _sparkles, "exclaim": _exclaim, "shock": _shock, "hearts": _hearts, "flies": _flies,
    "stink": _stink, "shiver": _shiver, "cloud": _cloud,
}  # fmt: skip

#: Drawn between the eyes and the mouth.
MIDDLE: dict[str, Callable[[Scene], None]] = {"stream": _stream}
