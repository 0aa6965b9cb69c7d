"""The drawings of the toyshop: ten kinds of toy in ten patterns.

All shapes are polygons or lines on a board of 100 x 100, y downwards, so that one affine map places them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageChops, ImageDraw

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Colour = tuple[int, ...]

SIDE = 192  # pixels of an image
ZOOM = 3  # drawn this much larger, then reduced: smooth edges
EDGE = 1.5  # width of the ink around a shape

INK, SHADE, GLINT = (58, 46, 66), (40, 20, 60, 50), (255, 255, 255, 110)  # the last two with opacity
COLOURS = {"ink": INK, "white": (255, 255, 255), "cream": (255, 246, 228), "shade": SHADE}
_BOARD: dict[str, Any] = yaml.safe_load(files(__package__).joinpath("toyshop_images.yaml").read_text(encoding="utf-8"))
TOYS: dict[str, dict[str, Any]] = _BOARD["toys"]

Pixels = list[tuple[float, float]]
Projection = Callable[[Floats], Pixels]  # from points of the board


def draw_toy(kind: str, pattern: str, rng: np.random.Generator) -> Image.Image:
    """An RGB image of SIDE x SIDE pixels; `rng` draws the colours, the pose and the position of the pattern."""
    toy = TOYS[kind]
    choices = (_BOARD[name] for name in ("grounds", "bodies", "marks", "accents"))
    ground, body, mark, accent = (tuple(those[rng.integers(len(those))]) for those in choices)
    colours = {"accent": accent, **COLOURS}
    image = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), ground)
    pose = _random_projection(rng, turn=7, shift=2, scale=0.05)
    if "flies" not in toy:
        _fill(image, pose(oval(20, 89, 80, 97)), SHADE)
    _draw_parts(image, toy.get("behind", ()), pose, colours)
    mask = Image.new("L", image.size, 0)
    stencil = ImageDraw.Draw(mask)
    for name, *values in toy["body"]:
        pixels = pose(SHAPES[name](*values))
        _outline(image, pixels)
        stencil.polygon(pixels, fill=255)
    image.paste(_fabric(pattern, body, mark, image.size, rng), mask=mask)
    _round(image, mask)
    _draw_parts(image, toy.get("front", ()), pose, colours)
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _random_projection(rng: np.random.Generator, turn: float, shift: float, scale: float) -> Projection:
    """A random affine map, drawn once: up to `turn` degrees, `shift` units, a factor of 0.93 +- `scale`."""
    angle = math.radians(rng.uniform(-turn, turn))
    zoom = SIDE * ZOOM / 100 * rng.uniform(0.93 - scale, 0.93 + scale)
    matrix = zoom * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre = SIDE * ZOOM * (0.5 + rng.uniform(-shift, shift, 2) / 100)
    return lambda shape: list(map(tuple, ((shape - 50) @ matrix + centre).tolist()))


def _fill(image: Image.Image, pixels: Pixels, colour: Colour) -> None:
    """A polygon in a colour of three channels, or of four: then the fourth is the opacity."""
    ImageDraw.Draw(image, "RGBA" if len(colour) == 4 else None).polygon(pixels, fill=colour)


def _line(image: Image.Image, pixels: Pixels, width: float, colour: Colour) -> None:
    """A line with round joints and ends."""
    draw, wide = ImageDraw.Draw(image), width * SIDE * ZOOM / 100
    draw.line(pixels, fill=colour, width=round(wide), joint="curve")
    for x, y in (pixels[0], pixels[-1]):
        draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill=colour)


def _outline(image: Image.Image, pixels: Pixels) -> None:
    _line(image, [*pixels, pixels[0]], 2 * EDGE, INK)
    _fill(image, pixels, INK)


def _draw_parts(image: Image.Image, parts: Iterable[list[Any]], pose: Projection, colours: dict[str, Colour]) -> None:
    for colour, width, *shapes in parts:
        for name, *values in shapes:
            pixels = pose(SHAPES[name](*values))
            if width:
                _line(image, pixels, width, colours[colour])
                continue
            if colour not in ("shade", "ink"):
                _outline(image, pixels)
            _fill(image, pixels, colours[colour])


def _round(image: Image.Image, mask: Image.Image) -> None:
    """Make the body look round: shade its lower right edge, lighten its upper left edge."""
    for step, (*colour, opacity) in ((-4, SHADE), (2, GLINT)):
        pixels = step * SIDE * ZOOM // 100
        rim = ImageChops.subtract(mask, ImageChops.offset(mask, pixels, pixels))
        image.paste(tuple(colour), mask=rim.point([v * opacity // 255 for v in range(256)]))


def points(*numbers: float) -> Floats:
    """[n, 2] from x, y, x, y, ..."""
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def oval(x0: float, y0: float, x1: float, y1: float, begin: float = 0, end: float = 360) -> Floats:
    """[n, 2]: the ellipse in a box, or its arc between two angles in degrees (0 is right, 90 is down)."""
    angle = np.radians(np.linspace(begin, end, 40))
    middle, half = np.array([x0 + x1, y0 + y1]) / 2, np.array([x1 - x0, y1 - y0]) / 2
    return np.asarray(middle + half * np.stack([np.cos(angle), np.sin(angle)], 1))


def box(x0: float, y0: float, x1: float, y1: float, r: float = 4) -> Floats:
    """[n, 2]: a rectangle with round corners of radius r."""
    corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
    return np.concatenate([oval(x - r, y - r, x + r, y + r, a, a + 90)[::4] for x, y, a in corners])


def disc(x: float, y: float, r: float) -> Floats:
    return oval(x - r, y - r, x + r, y + r)


def gleam(x: float, y: float, r: float) -> Floats:
    """The line of a gleam in an eye of radius r."""
    return np.asarray(points(x, y, x, y + 0.1) + np.array([r / 3, -r / 3]))


def joined(*shapes: list[Any]) -> Floats:
    return np.concatenate([SHAPES[name](*values) for name, *values in shapes])


SHAPES: dict[str, Callable[..., Floats]] = {shape.__name__: shape for shape in (points, oval, box, disc, gleam, joined)}

Layer = list[tuple[Floats, bool]]  # polygons, later ones on top; True: coloured as a mark, False: as the body

STAR = np.array([(math.sin(k * math.pi / 5), -math.cos(k * math.pi / 5)) for k in range(10)])
STAR[1::2] *= 0.45
_T = np.linspace(0, 2 * math.pi, 40)
_HEART_Y = -(13 * np.cos(_T) - 5 * np.cos(2 * _T) - 2 * np.cos(3 * _T) - np.cos(4 * _T)) / 16
HEART = np.stack([np.sin(_T) ** 3, _HEART_Y], 1)
TRIANGLE = points(0, -1, 0.95, 0.8, -0.95, 0.8)


def _fabric(pattern: str, body: Colour, mark: Colour, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    cloth = Image.new("RGB", size, body)
    lay = _random_projection(rng, turn=9, shift=6, scale=0.1)
    draw = ImageDraw.Draw(cloth)
    for polygon, marked in FABRICS[pattern]:
        draw.polygon(lay(polygon), fill=mark if marked else body)
    return cloth


def _scattered(motif: Floats, radius: float, pitch: float) -> Layer:
    """The motif on a grid, every other row shifted by half a step."""
    grid = [(c + (r % 2) / 2, r * 0.87) for r in range(-9, 10) for c in range(-8, 9)]
    return [(radius * motif + 50 + pitch * np.array(at), True) for at in grid]


def _bands(pitch: float, bend: Callable[[Floats], Floats]) -> Layer:
    """Horizontal bands, half of the pitch wide, bent by y += bend(x)."""
    x = np.arange(-30.0, 131.0)
    top, low = (np.stack([x, bend(x) + half], 1) for half in (0, pitch / 2))
    band = np.concatenate([top, low[::-1]])
    return [(band + np.array([0, y]), True) for y in np.arange(-30, 130, pitch)]


def _checks(side: float) -> Layer:
    cells = [(c, r) for r in range(-8, 9) for c in range(-8, 9) if (c + r) % 2 == 0]
    square = points(0, 0, 1, 0, 1, 1, 0, 1)
    return [(50 + side * (square + cell), True) for cell in cells]


def _scales(radius: float) -> Layer:
    """Overlapping round tiles, each with a rim; a row lies over the row below it."""
    grid = [(2 * c + r % 2, r) for r in range(8, -9, -1) for c in range(-5, 6)]
    return [
        (disc(50 + radius * x, 50 + radius * y, radius * size), marked)
        for x, y in grid
        for size, marked in ((1.0, True), (0.72, False))
    ]


def _visible(layer: Layer) -> Layer:
    """Without the polygons far outside the board."""
    return [(polygon, marked) for polygon, marked in layer if np.abs(polygon - 50).min(0).max() < 70]


# In the order of the cycle: users move from a pattern to the next one, from the last to the first.
FABRICS: dict[str, Layer] = {
    "dots": _visible(_scattered(disc(0, 0, 1), 5.2, 17)),
    "stripes": [(band[:, ::-1], True) for band, _ in _bands(15, np.zeros_like)],
    "stars": _visible(_scattered(STAR, 9.5, 20)),
    "checks": _visible(_checks(11)),
    "hearts": _visible(_scattered(HEART, 8, 20)),
    "zigzag": _bands(16, lambda x: 10 * np.abs((x / 9) % 2 - 1)),
    "rings": [(disc(50, 50, 6.0 * k), k % 2 == 0) for k in range(18, 0, -1)],
    "waves": _bands(16, lambda x: 4.5 * np.sin(x / 4.2)),
    "triangles": _visible(_scattered(TRIANGLE, 7.5, 19)),
    "scales": _visible(_scales(9)),
}
PATTERNS = tuple(FABRICS)
