"""The drawings of the toyshop: ten kinds of toy in ten patterns.

All shapes are polygons or lines on a board of 100 x 100, y downwards, so that one affine map places them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Colour = tuple[int, ...]

SIDE = 192  # pixels of an image
ZOOM = 3  # drawn this much larger, then reduced: smooth edges
EDGE = 1.5  # width of the ink around a shape

INK, CREAM, WHITE = (58, 46, 66), (255, 246, 228), (255, 255, 255)
SHADE, GLINT = (40, 20, 60, 50), (255, 255, 255, 110)  # with opacity
GROUNDS = (
    (253, 240, 219), (226, 240, 248), (249, 230, 236), (230, 243, 226), (238, 232, 248), (253, 234, 220),
)  # fmt: skip
BODIES = (
    (222, 82, 72), (226, 116, 44), (56, 132, 194), (36, 146, 122), (126, 92, 184), (214, 86, 138),
    (76, 146, 66), (44, 92, 150), (186, 62, 90), (28, 122, 142),
)  # fmt: skip
MARKS = (CREAM, WHITE, (255, 228, 140), (255, 218, 200), (210, 242, 234))  # light on strong: always readable
ACCENTS = ((248, 190, 60), (240, 128, 96), (98, 180, 200), (150, 190, 90), (184, 146, 214))

Pixels = list[tuple[float, float]]
Projection = Callable[[Floats], Pixels]  # from points of the board


@dataclass(frozen=True, eq=False)
class Part:
    shape: Floats  # [n, 2]
    colour: str  # "accent", "ink", "white", "cream", "shade"
    width: float = 0.0  # of a line; 0: a filled shape with an edge of ink


@dataclass(frozen=True, eq=False)
class Toy:
    body: Sequence[Floats]  # the shapes that carry the pattern
    behind: Sequence[Part] = ()
    front: Sequence[Part] = ()
    flies: bool = False  # casts no shadow


def draw_toy(kind: str, pattern: str, rng: np.random.Generator) -> Image.Image:
    """An RGB image of SIDE x SIDE pixels; `rng` draws the colours, the pose and the position of the pattern."""
    toy = TOYS[kind]
    ground, body, mark, accent = (choices[rng.integers(len(choices))] for choices in (GROUNDS, BODIES, MARKS, ACCENTS))
    colours = {"accent": accent, "ink": INK, "white": WHITE, "cream": CREAM, "shade": SHADE}
    image = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), ground)
    pose = _random_projection(rng, turn=7, shift=2, scale=0.05)
    if not toy.flies:
        _fill(image, pose(oval(20, 89, 80, 97)), SHADE)
    for part in toy.behind:
        _draw_part(image, part, pose, colours)
    mask = Image.new("L", image.size, 0)
    stencil = ImageDraw.Draw(mask)
    for shape in toy.body:
        _outline(image, pose(shape))
        stencil.polygon(pose(shape), fill=255)
    image.paste(_fabric(pattern, body, mark, image.size, rng), mask=mask)
    _round(image, mask)
    for part in toy.front:
        _draw_part(image, part, pose, colours)
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


def _draw_part(image: Image.Image, part: Part, pose: Projection, colours: dict[str, Colour]) -> None:
    pixels, colour = pose(part.shape), colours[part.colour]
    if part.width:
        _line(image, pixels, part.width, colour)
        return
    if part.colour not in ("shade", "ink"):
        _outline(image, pixels)
    _fill(image, pixels, colour)


def _round(image: Image.Image, mask: Image.Image) -> None:
    """Make the body look round: shade its lower right edge, lighten its upper left edge."""
    for step, (*colour, opacity) in ((-4, SHADE), (2, GLINT)):
        pixels = step * SIDE * ZOOM // 100
        rim = ImageChops.subtract(mask, ImageChops.offset(mask, pixels, pixels))
        image.paste(tuple(colour), mask=rim.point([v * opacity // 255 for v in range(256)]))


def points(*pairs: tuple[float, float]) -> Floats:
    return np.array(pairs, dtype=np.float64)


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


Layer = list[tuple[Floats, bool]]  # polygons, later ones on top; True: coloured as a mark, False: as the body

STAR = np.array([(math.sin(k * math.pi / 5), -math.cos(k * math.pi / 5)) for k in range(10)])
STAR[1::2] *= 0.45
_T = np.linspace(0, 2 * math.pi, 40)
_HEART_Y = -(13 * np.cos(_T) - 5 * np.cos(2 * _T) - 2 * np.cos(3 * _T) - np.cos(4 * _T)) / 16
HEART = np.stack([np.sin(_T) ** 3, _HEART_Y], 1)
TRIANGLE = points((0, -1), (0.95, 0.8), (-0.95, 0.8))


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
    square = points((0, 0), (1, 0), (1, 1), (0, 1))
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


def _parts(colour: str, *shapes: Floats, width: float = 0.0) -> list[Part]:
    return [Part(shape, colour, width) for shape in shapes]


def _eyes(x: float, y: float, apart: float, r: float) -> list[Part]:
    """Two eyes with a gleam."""
    sides, up = (x - apart, x + apart), np.array([r / 3, -r / 3])
    gleams = [points((side, y), (side, y + 0.1)) + up for side in sides]
    return [*_parts("ink", *(disc(side, y, r) for side in sides)), *_parts("white", *gleams, width=r / 2)]


def _smile(x: float, y: float, r: float) -> Part:
    return Part(oval(x - r, y - r, x + r, y + r, 30, 150), "ink", 1.6)


TOYS: dict[str, Toy] = {
    "ball": Toy(body=[disc(50, 54, 38)]),
    "kite": Toy(
        body=[points((50, 2), (83, 34), (50, 72), (17, 34))],
        behind=[
            Part(points((50, 72), (52, 78), (50, 83), (45, 87), (44, 92), (48, 96), (55, 98)), "ink", 1.6),
            Part(points((51, 80), (43, 76), (43, 84), (51, 80), (59, 76), (59, 84)), "accent"),
            Part(points((44, 91), (37, 86), (36, 94), (44, 91), (52, 87), (52, 95)), "accent"),
        ],
        front=_parts("ink", points((50, 2), (50, 72)), points((17, 34), (83, 34)), width=1.4),
        flies=True,
    ),
    "spinning top": Toy(
        body=[
            points((8, 40), (92, 40), (90, 52), (80, 64), (54, 88), (46, 88), (20, 64), (10, 52)),
            oval(8, 30, 92, 50),
        ],
        behind=_parts("accent", box(45, 10, 55, 40, 2), disc(50, 10, 6.5), points((45, 86), (55, 86), (50, 95))),
    ),
    "block": Toy(
        body=[points((50, 8), (87, 27), (87, 72), (50, 93), (13, 72), (13, 27))],
        front=[
            Part(points((87, 27), (87, 72), (50, 93), (50, 46)), "shade"),
            *_parts("ink", points((13, 27), (50, 46), (87, 27)), points((50, 46), (50, 93)), width=1.6),
        ],
    ),
    "robot": Toy(
        body=[box(27, 12, 73, 42, 6), box(20, 45, 80, 86, 6)],
        behind=[
            Part(points((50, 12), (50, 5)), "ink", 1.8),
            *_parts("accent", disc(50, 5, 3.6), box(8, 48, 20, 74, 5), box(80, 48, 92, 74, 5)),
            *_parts("accent", box(28, 82, 44, 94, 3), box(56, 82, 72, 94, 3)),
        ],
        front=[
            *_parts("white", disc(39, 25, 6.5), disc(61, 25, 6.5)),
            *_eyes(50, 25.5, 11, 3.2),
            Part(points((42, 36), (58, 36)), "ink", 2.2),
        ],
    ),
    "balloon": Toy(
        body=[oval(17, 4, 83, 76)],
        behind=[
            Part(points((50, 76), (47, 82), (53, 88), (48, 93), (51, 98)), "ink", 1.4),
            Part(points((50, 74), (56, 82), (44, 82)), "accent"),
        ],
        flies=True,
    ),
    "drum": Toy(
        body=[np.concatenate([oval(12, 66, 88, 92, 0, 180), oval(12, 24, 88, 50, 180, 360)])],
        front=[
            Part(oval(12, 24, 88, 50), "cream"),
            *_parts("accent", oval(12, 31, 88, 57, 4, 176), oval(12, 64, 88, 90, 4, 176), width=3.4),
            *_parts("ink", *(points((x, 10), (50 + (x - 50) / 4, 37)) for x in (24, 76)), width=3),
            *_parts("accent", *(disc(50 + (x - 50) / 4, 37, 3.2) for x in (24, 76))),
        ],
    ),
    "bear": Toy(
        body=[disc(30, 15, 9), disc(70, 15, 9), oval(24, 8, 76, 50), oval(19, 42, 81, 95)],
        behind=_parts("accent", oval(8, 52, 26, 76), oval(74, 52, 92, 76), oval(16, 82, 38, 97), oval(62, 82, 84, 97)),
        front=[
            Part(oval(38, 28, 62, 46), "cream"),
            Part(oval(45, 30, 55, 37), "ink"),
            _smile(50, 36, 5),
            *_eyes(50, 24, 12, 3),
        ],
    ),
    "doll": Toy(
        body=[oval(27, 4, 73, 52), oval(17, 34, 83, 95)],
        front=[
            Part(oval(34, 13, 66, 44), "cream"),
            Part(oval(34, 13, 66, 44, 180, 360), "accent"),
            *_eyes(50, 32, 7, 2.2),
            _smile(50, 34, 5.5),
        ],
    ),
    "bus": Toy(
        body=[box(5, 16, 95, 84, 10)],
        front=[
            *_parts("white", *(box(x, 23, x + 21, 40, 3) for x in (12, 39.5, 67))),
            *_parts("ink", disc(26, 84, 10.5), disc(74, 84, 10.5)),
            *_parts("accent", disc(26, 84, 4.5), disc(74, 84, 4.5)),
        ],
    ),
}
