"""The toyshop: a generated catalogue with drawn pictures and written texts, and a log whose truth is known.

Every toy has a *pattern*, which only its picture shows, and a *theme*, which only its text tells. What a user
takes next follows both, from the last toy taken: patterns advance along a cycle, themes along a Markov chain.
So pictures alone explain a part of the log, texts alone another, and only the two together explain all that
can be explained. The kind of toy (ball, kite, ...) is seen and named, and tells nothing of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from PIL import Image, ImageChops, ImageDraw

from msm4sr.errors import InputError

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Colour = tuple[int, ...]

# what a toy can be --------------------------------------------------------------------------------

# In the order of the cycle: after dots come stripes, after the last the first.
PATTERNS = ("dots", "stripes", "stars", "checks", "hearts", "zigzag", "rings", "waves", "triangles", "scales")


@dataclass(frozen=True)
class Theme:
    """What a theme's texts are made of. No word here may name a pattern."""

    name: str
    epithets: tuple[str, ...]  # of the title: "Tidewater Kite"
    people: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]


# In the order of the chain: users move from a theme to the next one, or stay.
THEMES = (
    Theme(
        "sea",
        ("Tidewater", "Harbour", "Saltwind", "Lighthouse", "Mariner's", "Lagoon"),
        ("an old sailor", "the harbour master", "a lighthouse keeper", "two fishermen", "a ship's cook"),
        (
            "in a quiet bay",
            "at the end of the pier",
            "on the deck of a schooner",
            "in a cove full of shells",
            "down at the docks",
        ),
        (
            "gulls over the tide",
            "whales and coral",
            "anchors and salty rope",
            "sunken ships",
            "a voyage to an island",
        ),
    ),
    Theme(
        "winter",
        ("Snowdrift", "Frosty", "Icicle", "Sleigh-Ride", "Polar", "Mitten"),
        (
            "a reindeer herder",
            "the skating teacher",
            "a girl in woollen mittens",
            "the ski guide",
            "a snow-plough driver",
        ),
        (
            "on a frozen lake",
            "in a cabin buried in snow",
            "on top of the sledging hill",
            "inside an igloo",
            "in an icy valley",
        ),
        (
            "snowmen and scarves",
            "glittering frost",
            "hot cocoa after skating",
            "sledges in a blizzard",
            "penguins on ice",
        ),
    ),
    Theme(
        "circus",
        ("Ringmaster's", "Big-Top", "Juggler's", "Trapeze", "Clown's", "Acrobat's"),
        (
            "a clown with big shoes",
            "the tightrope walker",
            "a juggler",
            "the trapeze sisters",
            "a fire-eater",
        ),
        (
            "under the big top",
            "in a sawdust arena",
            "in a painted show wagon",
            "in the front row of the show",
            "in a tent at the fair",
        ),
        (
            "somersaults and applause",
            "juggling clubs",
            "a parade of acrobats",
            "trapezes and unicycles",
            "the magic show",
        ),
    ),
    Theme(
        "desert",
        ("Oasis", "Caravan", "Sandstone", "Camel", "Mirage", "Date-Palm"),
        (
            "a camel driver",
            "a nomad grandmother",
            "the well digger",
            "a merchant of dates",
            "a guide of the dunes",
        ),
        (
            "at an oasis",
            "at the foot of a dune",
            "in a tent among the sands",
            "in a dry canyon",
            "by a well under palm trees",
        ),
        (
            "camels crossing the sand",
            "shimmering mirages",
            "cactus and scorpions",
            "the hot dry wind",
            "a long caravan",
        ),
    ),
    Theme(
        "bakery",
        ("Gingerbread", "Cinnamon", "Marzipan", "Butterbun", "Pastry", "Sugarcrust"),
        (
            "the village baker",
            "a pastry cook",
            "a miller with floury hands",
            "the cake decorator",
            "an apprentice baker",
        ),
        (
            "in a warm kitchen",
            "at the counter of a cake shop",
            "beside a brick oven",
            "at the back of the bakery",
            "in a pantry full of jam",
        ),
        (
            "fresh buns and icing",
            "kneading sweet dough",
            "cinnamon and vanilla",
            "a tray of biscuits",
            "the scent of bread",
        ),
    ),
    Theme(
        "space",
        ("Comet", "Orbit", "Moonbase", "Astronaut's", "Galaxy", "Meteor"),
        (
            "an astronaut",
            "a rocket engineer",
            "the keeper of the telescope",
            "a friendly alien",
            "a moon-buggy pilot",
        ),
        (
            "in a crater on the moon",
            "aboard a space station",
            "on the launch pad",
            "on the far side of Mars",
            "in an observatory",
        ),
        (
            "rockets and planets",
            "floating without gravity",
            "comets and galaxies",
            "a trip round Saturn",
            "satellites in orbit",
        ),
    ),
    Theme(
        "forest",
        ("Woodland", "Acorn", "Mossy", "Hollow-Oak", "Pinecone", "Fernleaf"),
        ("a woodcutter", "the forest ranger", "an old badger", "a mushroom picker", "a family of squirrels"),
        (
            "in a mossy clearing",
            "inside a hollow oak",
            "in the shade of the pines",
            "up in a treehouse",
            "on a path among ferns",
        ),
        (
            "foxes and hedgehogs",
            "acorns and mushrooms",
            "owls in tall trees",
            "the rustle of leaves",
            "a den of branches",
        ),
    ),
    Theme(
        "railway",
        ("Steam-Whistle", "Express", "Stationmaster's", "Locomotive", "Sleeper-Train", "Signalbox"),
        (
            "a train driver",
            "the stationmaster",
            "a ticket inspector",
            "the signalman",
            "a stoker with sooty cheeks",
        ),
        (
            "on platform three",
            "at a country station",
            "in the dining car",
            "in an engine shed",
            "in a tunnel on the old line",
        ),
        (
            "steam and whistles",
            "carriages on the rails",
            "a night train",
            "tickets and timetables",
            "locomotives on a viaduct",
        ),
    ),
    Theme(
        "castle",
        ("Knight's", "Royal", "Drawbridge", "Dragon-Tower", "Jester's", "Throne-Room"),
        (
            "a knight in armour",
            "the court jester",
            "a queen with a golden crown",
            "a sleepy dragon",
            "the king's page",
        ),
        (
            "in the castle tower",
            "in a great hall",
            "on the drawbridge",
            "by the moat below the walls",
            "in the royal treasury",
        ),
        (
            "swords and shields",
            "jousting knights",
            "crowns and banners",
            "dragons in dungeons",
            "a feast for the king",
        ),
    ),
    Theme(
        "farm",
        ("Barnyard", "Haystack", "Meadow", "Orchard", "Tractor", "Harvest"),
        (
            "a farmer in rubber boots",
            "the shepherd",
            "a milkmaid",
            "the beekeeper",
            "a girl who feeds the hens",
        ),
        (
            "in a red barn",
            "up in the hayloft",
            "in a field of barley",
            "at the gate of the pigsty",
            "in an apple orchard",
        ),
        (
            "cows and sheep",
            "tractors at harvest time",
            "hens and fresh eggs",
            "piglets in the mud",
            "milk and honey",
        ),
    ),
)

# The first sentence of a text, then one or two tales, then perhaps a plain fact. {toy} is the kind of toy.
OPENERS = (
    "This {toy} was first made by {person}.",
    "A {toy} that {person} would be proud of.",
    "They say {person} found the first {toy} of this kind {place}.",
    "A {toy} with a tale to tell, and the tale begins {place}.",
    "Meet the favourite {toy} of {person}.",
)
TALES = (
    "It will make you dream of {thing}.",
    "For children who love {thing}.",
    "A small booklet tells of {thing}.",
    "Take it along and you are {place} at once.",
    "Bedtime tales of {thing} come by themselves.",
    "Its name was the idea of {person}.",
)
FACTS = (
    "Made of beech wood and water-based paint.",
    "Wipe clean with a damp cloth.",
    "Comes in a cotton bag.",
    "Suitable from the age of three.",
    "Small enough for a backpack.",
    "Finished by hand, so no two are quite the same.",
)
PRICES = ("under 10", "10 to 20", "20 to 40", "over 40")

# what is planted ----------------------------------------------------------------------------------

PATTERN_NEXT, PATTERN_ANY = 0.80, 0.20  # the next pattern of the cycle, or any
THEME_NEXT, THEME_STAY, THEME_ANY = 0.65, 0.20, 0.15  # the next theme of the chain, the same again, or any
POPULARITY_SPREAD = 0.5  # standard deviation of log popularity
COLD_SHARE, COLD_FACTOR = 0.10, 0.05  # a tenth of the toys are taken a twentieth as often
MISSING_SHARE = 0.03  # of the toys have no picture, and as many others no text
SHORTEST, LONGEST = 6, 20  # toys in a history
FIRST_DAY, DAYS = 1_672_531_200, 730  # histories begin within two years from 2023-01-01


@dataclass(frozen=True, eq=False)
class ToyshopTruth:
    """What was planted; item i is row i of `items.parquet`."""

    item_ids: list[str]
    pattern: Ints  # [items], index into PATTERNS
    theme: Ints  # [items], index into THEMES
    has_picture: Flags  # [items]
    has_text: Flags  # [items]
    popularity: Floats  # [items], the chance of being a history's first toy; sums to 1
    pattern_step: Floats  # [patterns, patterns], row: last pattern, column: chance of the next one
    theme_step: Floats  # [themes, themes]
    oracle_recall: dict[str, float]  # recall@10 of the oracles: "both", "picture", "text", "popularity"


def generate_toyshop(out: Path, users: int = 3000, items: int = 600, seed: int = 0) -> ToyshopTruth:
    """Write a toyshop as a prepared data folder and return what was planted in it.

    `out` receives `interactions.parquet` (about ten rows a user), `items.parquet` and `images/*.png`; the
    same arguments give the same bytes. The oracles of the truth rank each user's last toy, knowing the one
    before it and the chances of the next pattern, of the next theme, of both, or of neither.
    Raises InputError when `users` < 1 or `items` < 40 (a history needs room).
    """
    if users < 1:
        raise InputError(f"toyshop: users must be at least 1, got {users}")
    if items < 2 * LONGEST:
        raise InputError(f"toyshop: items must be at least {2 * LONGEST}, got {items}")
    # One generator a concern: a change to the drawings leaves the log as it was.
    plan, words, brush, log = (np.random.default_rng([seed, concern]) for concern in range(4))
    pattern, theme = _attributes(items, plan)
    has_picture, has_text = _present(items, plan)
    popularity = _popularity(pattern, theme, plan)
    kinds, titles = _titles(theme, words)
    item_ids = [f"toy-{i + 1:04d}" for i in range(items)]
    images = [f"images/{name}.png" for name in item_ids]

    (out / "images").mkdir(parents=True, exist_ok=True)
    for i in np.flatnonzero(has_picture):
        draw_toy(kinds[i], PATTERNS[pattern[i]], brush).save(out / images[i])
    described = [_describe(kinds[i], THEMES[theme[i]], words) for i in range(items)]
    pl.DataFrame(
        {
            "item_id": item_ids,
            "title": _only(titles, has_text),
            "text": _only([text for text, _ in described], has_text),
            "categories": _only([categories for _, categories in described], has_text),
            "image": _only(images, has_picture),
        }
    ).write_parquet(out / "items.parquet")

    pattern_step = _step(len(PATTERNS), PATTERN_NEXT, 0.0, PATTERN_ANY)
    theme_step = _step(len(THEMES), THEME_NEXT, THEME_STAY, THEME_ANY)
    by_pattern = pattern_step[pattern[:, None], pattern]  # [items, items]; row: last toy, column: next
    by_theme = theme_step[theme[:, None], theme]
    histories = _histories(users, by_pattern * by_theme * popularity, popularity, log)
    _log_table(histories, item_ids, log).write_parquet(out / "interactions.parquet")
    scores = {
        "both": by_pattern * by_theme * popularity,
        "picture": by_pattern * popularity,
        "text": by_theme * popularity,
        "popularity": np.broadcast_to(popularity, (items, items)),
    }
    oracle = {name: _oracle_recall(histories, score) for name, score in scores.items()}
    return ToyshopTruth(item_ids, pattern, theme, has_picture, has_text, popularity, pattern_step, theme_step, oracle)


# the catalogue ------------------------------------------------------------------------------------


def _attributes(items: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """A pattern and a theme for every toy: all equally frequent, and so are their pairs."""
    i = np.arange(items)
    pattern, theme = i % len(PATTERNS), (i + i // len(PATTERNS)) % len(THEMES)
    shuffle = rng.permutation(items)  # so that neither the id nor the row tells anything
    return pattern[shuffle], theme[shuffle]


def _present(items: int, rng: np.random.Generator) -> tuple[Flags, Flags]:
    """Which toys have a picture, and which a text; none lacks both."""
    count = max(1, round(MISSING_SHARE * items))
    order = rng.permutation(items)
    has_picture, has_text = np.ones(items, dtype=np.bool_), np.ones(items, dtype=np.bool_)
    has_picture[order[:count]] = False
    has_text[order[count : 2 * count]] = False
    return has_picture, has_text


def _popularity(pattern: Ints, theme: Ints, rng: np.random.Generator) -> Floats:
    """Mildly skewed, some toys cold; every pair of pattern and theme is as popular as any other."""
    weight = np.exp(POPULARITY_SPREAD * rng.standard_normal(len(pattern)))
    weight[rng.random(len(pattern)) < COLD_SHARE] *= COLD_FACTOR
    of_pair = np.zeros((len(PATTERNS), len(THEMES)))
    np.add.at(of_pair, (pattern, theme), weight)
    weight /= of_pair[pattern, theme]
    return np.asarray(weight / weight.sum())


def _titles(theme: Ints, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Each toy's kind and title. A title stands once; past the sixtieth toy of a theme they get a number."""
    kinds, titles = [""] * len(theme), [""] * len(theme)
    for t, of in enumerate(THEMES):
        pairs = [(epithet, kind) for epithet in of.epithets for kind in TOYS]
        order = rng.permutation(len(pairs))
        for rank, i in enumerate(rng.permutation(np.flatnonzero(theme == t))):
            epithet, kind = pairs[order[rank % len(pairs)]]
            series = rank // len(pairs)
            kinds[i] = kind
            titles[i] = f"{epithet} {kind.title()}" + (f" No. {series + 1}" if series else "")
    return kinds, titles


def _only(values: list[Any], present: Flags) -> list[Any]:
    return [value if ok else None for value, ok in zip(values, present, strict=True)]


def _describe(kind: str, theme: Theme, rng: np.random.Generator) -> tuple[str, list[str]]:
    """Two to four sentences, and categories that tell nothing of the theme."""
    tales = rng.choice(len(TALES), size=rng.integers(1, 3), replace=False)
    facts = [rng.choice(FACTS)] if rng.random() < 0.6 else []
    templates = [rng.choice(OPENERS), *(TALES[t] for t in tales), *facts]
    fillers = {"person": theme.people, "place": theme.places, "thing": theme.things}
    sentences = [
        str(template).format(toy=kind, **{name: rng.choice(choices) for name, choices in fillers.items()})
        for template in templates
    ]
    return " ".join(sentences), ["Toys", str(rng.choice(PRICES))]


# the log ------------------------------------------------------------------------------------------


def _step(n: int, forward: float, stay: float, anywhere: float) -> Floats:
    """[n, n]: from a value to the next one of the cycle, to itself, or anywhere."""
    return forward * np.roll(np.eye(n), 1, axis=1) + stay * np.eye(n) + anywhere / n


def _histories(users: int, step: Floats, first: Floats, rng: np.random.Generator) -> list[Ints]:
    """Each user's toys, oldest first; `step[last]` weighs the next one among those not yet taken."""
    lengths = np.minimum(SHORTEST - 1 + rng.geometric(0.2, users), LONGEST)
    return [_walk(length, step, first, rng) for length in lengths]


def _walk(length: int, step: Floats, first: Floats, rng: np.random.Generator) -> Ints:
    taken = np.empty(length, dtype=np.int64)
    weight = first
    for k in range(length):
        total = np.cumsum(weight)
        taken[k] = np.searchsorted(total, rng.random() * total[-1], side="right")
        weight = step[taken[k]].copy()
        weight[taken[: k + 1]] = 0.0
    return taken


def _log_table(histories: list[Ints], item_ids: list[str], rng: np.random.Generator) -> pl.DataFrame:
    """The shop's log in order of time; the events of a user lie minutes to days apart."""
    user_ids, items, times = [], [], []
    for u, history in enumerate(histories):
        begin = FIRST_DAY + rng.integers(DAYS * 86_400)
        gaps = 60 + rng.exponential(2.5 * 86_400, len(history)).astype(np.int64)
        user_ids += [f"user-{u + 1:05d}"] * len(history)
        items += [item_ids[i] for i in history]
        times.append(begin + np.cumsum(gaps))
    table = pl.DataFrame({"user_id": user_ids, "item_id": items, "timestamp": np.concatenate(times)})
    return table.sort("timestamp", maintain_order=True)


def _oracle_recall(histories: list[Ints], score: Floats, k: int = 10) -> float:
    """How often the last toy is among the k best of those not yet taken, by `score[toy before it]`."""
    hits = 0
    for history in histories:
        *seen, target = history
        row = score[seen[-1]].copy()
        row[seen] = -1.0
        hits += int((row > row[target]).sum() < k)
    return hits / len(histories)


# the drawings -------------------------------------------------------------------------------------
# Everything is a polygon or a line on a board of 100 x 100, y downwards, so that one affine map places it.

SIDE = 192  # pixels of a picture
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

Place = Callable[[Floats], list[tuple[float, float]]]  # from points of the board to pixels


@dataclass(frozen=True, eq=False)
class Part:
    shape: Floats  # [n, 2]
    colour: str  # "accent", "ink", "white", "cream", "shade"
    width: float = 0.0  # of a line; 0: a filled shape with an edge of ink


@dataclass(frozen=True, eq=False)
class Toy:
    body: tuple[Floats, ...]  # the shapes that carry the pattern
    behind: tuple[Part, ...] = ()
    front: tuple[Part, ...] = ()
    flies: bool = False  # stands on no ground, casts no shadow


def draw_toy(kind: str, pattern: str, rng: np.random.Generator) -> Image.Image:
    """A picture [SIDE x SIDE, RGB] of one of TOYS in one of PATTERNS; its colours and its pose are free."""
    toy = TOYS[kind]
    ground, body, mark, accent = (_pick(choices, rng) for choices in (GROUNDS, BODIES, MARKS, ACCENTS))
    colours = {"accent": accent, "ink": INK, "white": WHITE, "cream": CREAM, "shade": SHADE}
    picture = Image.new("RGB", (SIDE * ZOOM, SIDE * ZOOM), ground)
    pose = _place(rng, turn=7, shift=2, scale=0.05)
    if not toy.flies:
        _fill(picture, pose(oval(20, 89, 80, 97)), SHADE)
    for part in toy.behind:
        _draw_part(picture, part, pose, colours)
    mask = Image.new("L", picture.size, 0)
    stencil = ImageDraw.Draw(mask)
    for shape in toy.body:
        _outline(picture, pose(shape))
        stencil.polygon(pose(shape), fill=255)
    picture.paste(_fabric(pattern, body, mark, picture.size, rng), mask=mask)
    _round(picture, mask)
    for part in toy.front:
        _draw_part(picture, part, pose, colours)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def _pick(choices: tuple[Colour, ...], rng: np.random.Generator) -> Colour:
    return choices[rng.integers(len(choices))]


def _place(rng: np.random.Generator, turn: float, shift: float, scale: float) -> Place:
    """A random affine map, drawn once: up to `turn` degrees, `shift` units, a factor of 0.93 +- `scale`."""
    angle = math.radians(rng.uniform(-turn, turn))
    zoom = SIDE * ZOOM / 100 * rng.uniform(0.93 - scale, 0.93 + scale)
    matrix = zoom * np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    centre = SIDE * ZOOM * (0.5 + rng.uniform(-shift, shift, 2) / 100)
    return lambda shape: list(map(tuple, ((shape - 50) @ matrix + centre).tolist()))


def _fill(image: Image.Image, pixels: list[tuple[float, float]], colour: Colour) -> None:
    """A polygon in a colour of three channels, or of four: then the fourth is the opacity."""
    ImageDraw.Draw(image, "RGBA" if len(colour) == 4 else None).polygon(pixels, fill=colour)


def _line(image: Image.Image, pixels: list[tuple[float, float]], width: float, colour: Colour) -> None:
    """A line with round joints and ends."""
    draw, wide = ImageDraw.Draw(image), width * SIDE * ZOOM / 100
    draw.line(pixels, fill=colour, width=round(wide), joint="curve")
    for x, y in (pixels[0], pixels[-1]):
        draw.ellipse((x - wide / 2, y - wide / 2, x + wide / 2, y + wide / 2), fill=colour)


def _outline(image: Image.Image, pixels: list[tuple[float, float]]) -> None:
    _line(image, [*pixels, pixels[0]], 2 * EDGE, INK)
    _fill(image, pixels, INK)


def _draw_part(image: Image.Image, part: Part, pose: Place, colours: dict[str, Colour]) -> None:
    pixels = pose(part.shape)
    if part.width:
        _line(image, pixels, part.width, colours[part.colour])
        return
    if part.colour not in ("shade", "ink"):
        _outline(image, pixels)
    _fill(image, pixels, colours[part.colour])


def _round(picture: Image.Image, mask: Image.Image) -> None:
    """Make the body look round: a shade along its lower right, a glint along its upper left."""
    for step, (*colour, opacity) in ((-4, SHADE), (2, GLINT)):
        pixels = step * SIDE * ZOOM // 100
        rim = ImageChops.subtract(mask, ImageChops.offset(mask, pixels, pixels))
        picture.paste(tuple(colour), mask=rim.point([v * opacity // 255 for v in range(256)]))


# shapes -------------------------------------------------------------------------------------------


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


# patterns -----------------------------------------------------------------------------------------

Layer = list[tuple[Floats, bool]]  # polygons, later ones on top; True: coloured as a mark, False: as the body

STAR = np.array([(math.sin(k * math.pi / 5), -math.cos(k * math.pi / 5)) for k in range(10)])
STAR[1::2] *= 0.45
_T = np.linspace(0, 2 * math.pi, 40)
HEART = np.stack(
    [np.sin(_T) ** 3, -(13 * np.cos(_T) - 5 * np.cos(2 * _T) - 2 * np.cos(3 * _T) - np.cos(4 * _T)) / 16], 1
)
TRIANGLE = points((0, -1), (0.95, 0.8), (-0.95, 0.8))


def _fabric(pattern: str, body: Colour, mark: Colour, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    cloth = Image.new("RGB", size, body)
    lay = _place(rng, turn=9, shift=6, scale=0.1)
    draw = ImageDraw.Draw(cloth)
    for polygon, marked in FABRICS[pattern]:
        draw.polygon(lay(polygon), fill=mark if marked else body)
    return cloth


def _scattered(motif: Floats, radius: float, pitch: float) -> Layer:
    """The motif on a grid, every other row moved by half a step."""
    grid = [(c + (r % 2) / 2, r * 0.87) for r in range(-9, 10) for c in range(-8, 9)]
    return [(radius * motif + 50 + pitch * np.array(at), True) for at in grid]


def _bands(pitch: float, bend: Callable[[Floats], Floats]) -> Layer:
    """Horizontal bands, half of the pitch wide, bent by y += bend(x)."""
    x = np.arange(-30.0, 131.0)
    top, low = (np.stack([x, bend(x) + half], 1) for half in (0, pitch / 2))
    band = np.concatenate([top, low[::-1]])
    return [(band + np.array([0, y]), True) for y in np.arange(-30, 130, pitch)]


def _upright(layer: Layer) -> Layer:
    return [(polygon[:, ::-1], marked) for polygon, marked in layer]


def _checks(side: float) -> Layer:
    cells = [(c, r) for r in range(-8, 9) for c in range(-8, 9) if (c + r) % 2 == 0]
    square = points((0, 0), (1, 0), (1, 1), (0, 1))
    return [(50 + side * (square + cell), True) for cell in cells]


def _rings(pitch: float) -> Layer:
    """Circles in circles, around the middle."""
    return [(disc(50, 50, pitch * k / 2), k % 2 == 0) for k in range(18, 0, -1)]


def _scales(radius: float) -> Layer:
    """Overlapping round tiles, each with a rim; a row lies over the row below it."""
    grid = [(2 * c + r % 2, r) for r in range(8, -9, -1) for c in range(-5, 6)]
    return [
        (disc(50 + radius * x, 50 + radius * y, radius * size), marked)
        for x, y in grid
        for size, marked in ((1.0, True), (0.72, False))
    ]


def _visible(layer: Layer) -> Layer:
    """Without the polygons that lie far off the board."""
    return [(polygon, marked) for polygon, marked in layer if np.abs(polygon - 50).min(0).max() < 70]


FABRICS: dict[str, Layer] = {
    "dots": _visible(_scattered(disc(0, 0, 1), 5.2, 17)),
    "stripes": _upright(_bands(15, np.zeros_like)),
    "stars": _visible(_scattered(STAR, 9.5, 20)),
    "checks": _visible(_checks(11)),
    "hearts": _visible(_scattered(HEART, 8, 20)),
    "zigzag": _bands(16, lambda x: 10 * np.abs((x / 9) % 2 - 1)),
    "rings": _rings(12),
    "waves": _bands(16, lambda x: 4.5 * np.sin(x / 4.2)),
    "triangles": _visible(_scattered(TRIANGLE, 7.5, 19)),
    "scales": _visible(_scales(9)),
}

# toys ---------------------------------------------------------------------------------------------


def _eyes(x: float, y: float, apart: float, r: float) -> tuple[Part, ...]:
    """Two eyes with a gleam."""
    sides, up = (x - apart, x + apart), np.array([r / 3, -r / 3])
    return (
        *(Part(disc(side, y, r), "ink") for side in sides),
        *(Part(points((side, y), (side, y + 0.1)) + up, "white", r / 2) for side in sides),
    )


def _smile(x: float, y: float, r: float) -> Part:
    return Part(oval(x - r, y - r, x + r, y + r, 30, 150), "ink", 1.6)


TOYS: dict[str, Toy] = {
    "ball": Toy(body=(disc(50, 54, 38),)),
    "kite": Toy(
        body=(points((50, 2), (83, 34), (50, 72), (17, 34)),),
        behind=(
            Part(points((50, 72), (52, 78), (50, 83), (45, 87), (44, 92), (48, 96), (55, 98)), "ink", 1.6),
            Part(points((51, 80), (43, 76), (43, 84), (51, 80), (59, 76), (59, 84)), "accent"),
            Part(points((44, 91), (37, 86), (36, 94), (44, 91), (52, 87), (52, 95)), "accent"),
        ),
        front=(Part(points((50, 2), (50, 72)), "ink", 1.4), Part(points((17, 34), (83, 34)), "ink", 1.4)),
        flies=True,
    ),
    "spinning top": Toy(
        body=(
            points((8, 40), (92, 40), (90, 52), (80, 64), (54, 88), (46, 88), (20, 64), (10, 52)),
            oval(8, 30, 92, 50),
        ),
        behind=(
            Part(box(45, 10, 55, 40, 2), "accent"),
            Part(disc(50, 10, 6.5), "accent"),
            Part(points((45, 86), (55, 86), (50, 95)), "accent"),
        ),
    ),
    "block": Toy(
        body=(points((50, 8), (87, 27), (87, 72), (50, 93), (13, 72), (13, 27)),),
        front=(
            Part(points((87, 27), (87, 72), (50, 93), (50, 46)), "shade"),
            Part(points((13, 27), (50, 46), (87, 27)), "ink", 1.6),
            Part(points((50, 46), (50, 93)), "ink", 1.6),
        ),
    ),
    "robot": Toy(
        body=(box(27, 12, 73, 42, 6), box(20, 45, 80, 86, 6)),
        behind=(
            Part(points((50, 12), (50, 5)), "ink", 1.8),
            Part(disc(50, 5, 3.6), "accent"),
            *(Part(box(x, 48, x + 12, 74, 5), "accent") for x in (8, 80)),
            *(Part(box(x, 82, x + 16, 94, 3), "accent") for x in (28, 56)),
        ),
        front=(
            *(Part(disc(x, 25, 6.5), "white") for x in (39, 61)),
            *_eyes(50, 25.5, 11, 3.2),
            Part(points((42, 36), (58, 36)), "ink", 2.2),
        ),
    ),
    "balloon": Toy(
        body=(oval(17, 4, 83, 76),),
        behind=(
            Part(points((50, 76), (47, 82), (53, 88), (48, 93), (51, 98)), "ink", 1.4),
            Part(points((50, 74), (56, 82), (44, 82)), "accent"),
        ),
        flies=True,
    ),
    "drum": Toy(
        body=(np.concatenate([oval(12, 66, 88, 92, 0, 180), oval(12, 24, 88, 50, 180, 360)]),),
        front=(
            Part(oval(12, 24, 88, 50), "cream"),
            Part(oval(12, 31, 88, 57, 4, 176), "accent", 3.4),
            Part(oval(12, 64, 88, 90, 4, 176), "accent", 3.4),
            *(Part(points((x, 10), (50 + (x - 50) / 4, 37)), "ink", 3) for x in (24, 76)),
            *(Part(disc(50 + (x - 50) / 4, 37, 3.2), "accent") for x in (24, 76)),
        ),
    ),
    "bear": Toy(
        body=(disc(30, 15, 9), disc(70, 15, 9), oval(24, 8, 76, 50), oval(19, 42, 81, 95)),
        behind=(
            *(Part(oval(x, 52, x + 18, 76), "accent") for x in (8, 74)),
            *(Part(oval(x, 82, x + 22, 97), "accent") for x in (16, 62)),
        ),
        front=(
            Part(oval(38, 28, 62, 46), "cream"),
            Part(oval(45, 30, 55, 37), "ink"),
            _smile(50, 36, 5),
            *_eyes(50, 24, 12, 3),
        ),
    ),
    "doll": Toy(
        body=(oval(27, 4, 73, 52), oval(17, 34, 83, 95)),
        front=(
            Part(oval(34, 13, 66, 44), "cream"),
            Part(oval(34, 13, 66, 44, 180, 360), "accent"),
            *_eyes(50, 32, 7, 2.2),
            _smile(50, 34, 5.5),
        ),
    ),
    "bus": Toy(
        body=(box(5, 16, 95, 84, 10),),
        front=(
            *(Part(box(x, 23, x + 21, 40, 3), "white") for x in (12, 39.5, 67)),
            *(Part(disc(x, 84, 10.5), "ink") for x in (26, 74)),
            *(Part(disc(x, 84, 4.5), "accent") for x in (26, 74)),
        ),
    ),
}
