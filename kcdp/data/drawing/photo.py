"""Drawn "photographs": a shaded head with hair, neck and shoulders in a scene, seen by an imperfect camera.

The painted person (``drawing.person``) is lit by the normals of an ellipsoid with bumps for nose, cheeks, sockets and
chin: a Lambert term, so that light, shade and form come from one light direction.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image, ImageFilter

from kcdp.data.drawing.expressions import Expression
from kcdp.data.drawing.geometry import Pen
from kcdp.data.drawing.person import Person, paint_person, sample_person
from kcdp.data.drawing.scene import background, camera, choose_cue, foreground, grade

#: x, y, radius in x, radius in y, height of the face's bumps (face units); x is mirrored where it is not 0.
_BUMPS = (
    (0.0, 0.08, 0.1, 0.26, 0.1), (0.0, 0.26, 0.15, 0.1, 0.1), (0.52, 0.22, 0.24, 0.2, 0.07),
    (0.38, -0.1, 0.2, 0.13, -0.07), (0.0, 1.0, 0.24, 0.16, 0.06), (0.36, -0.4, 0.26, 0.1, 0.03),
)  # fmt: skip


def _light(u: np.ndarray, v: np.ndarray, e: Expression, p: Person, direction: np.ndarray) -> np.ndarray:
    """Brightness of the person at face coordinates (u, v), each float32 [size, size]."""
    a, b = p.width * 1.12, p.height * 1.1
    nx, ny = u / a**2, v / b**2
    rest = 1 - (u / a) ** 2 - (v / b) ** 2
    nz = np.sqrt(np.clip(rest, 0.03, 1))
    fu, fv = u - p.turn, v - p.nod
    for x, y, rx, ry, height in _BUMPS:
        if x == 0.52:
            height, y = height * (1 + 0.9 * e.cheek), y - 0.06 * e.cheek
        for side in (-1, 1)[: 2 if x else 1]:
            du, dv = (fu - side * x) / rx, (fv - y) / ry
            slope = height * np.exp(-(du * du + dv * dv))
            nx = nx + 2 * slope * du / rx
            ny = ny + 2 * slope * dv / ry
    lambert = (nx * direction[0] + ny * direction[1] + nz * direction[2]) / np.sqrt(nx * nx + ny * ny + nz * nz)
    shade = 0.42 + 0.68 * np.clip(lambert, 0, 1)
    below = rest < 0.0
    body = 0.78 + 0.16 * direction[0] * u - 0.34 * np.exp(-(((v - p.height - 0.1) / 0.35) ** 2) - (u / 0.9) ** 2)
    return np.where(below & (v > 0.3), body, shade)


def draw_photo(expression: Expression, rng: np.random.Generator, size: int) -> Image.Image:
    """One photograph.

    Args:
        expression: what the face shows, already toned down to what people do.
        rng: person, pose, light, scene and camera.
        size: side of the square picture in pixels.

    Returns:
        RGB, size x size.
    """
    expression = replace(expression, mouth_wave=0.55 * expression.mouth_wave)
    person = sample_person(expression, rng)
    cue = choose_cue(expression.emotion, rng)
    scene = background(cue, size, rng)
    angle, flip = float(rng.normal(0, 0.08)), bool(rng.random() < 0.5)
    unit, centre = size * float(rng.uniform(0.28, 0.33)), size * (np.array([0.5, 0.47]) + rng.uniform(-0.03, 0.03, 2))
    factor = 2
    canvas = Image.new("RGBA", (size * factor, size * factor), (*person.hair, 0))
    paint_person(Pen(canvas, tuple(centre * factor), unit * factor, angle, flip), expression, person, rng)
    canvas = canvas.resize((size, size), Image.Resampling.LANCZOS)
    layer = np.asarray(canvas, np.float32) / 255
    colour, alpha = layer[..., :3], layer[..., 3:]

    side = rng.uniform(-0.9, 0.9)
    direction = np.array([side, rng.uniform(-0.75, -0.25), 0.9])
    direction = (direction / np.linalg.norm(direction)).astype(np.float32)
    u, v = Pen(canvas, tuple(centre), unit, angle, flip).face_grid(size)
    lit = colour * _light(u, v, expression, person, direction)[..., None]
    shadow = canvas.getchannel("A").filter(ImageFilter.GaussianBlur(size * 0.05))
    shift, drop = int(-side * size * 0.06), size // 40
    shadow = shadow.crop((-shift, -drop, size - shift, size - drop))
    cast = np.asarray(shadow, np.float32)[..., None] / 255
    whole = scene * (1 - 0.35 * cast) * (1 - alpha) + lit * alpha
    image = Image.fromarray((np.clip(grade(whole, cue), 0, 1) * 255).astype(np.uint8))
    return camera(np.asarray(foreground(image, cue, rng), np.float32) / 255, rng)
