"""The world that qvl-tiny knows: scenes of coloured shapes, bars and written words, and how they are drawn.

A scene is plain data in pixels of its own canvas; the same seed gives the same scene and the same picture.
"""

from __future__ import annotations

import functools
import math
import random
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import words

COLOURS = {
    "red": (214, 32, 38),
    "green": (36, 160, 62),
    "blue": (38, 80, 214),
    "yellow": (246, 222, 44),
    "orange": (246, 136, 24),
    "purple": (126, 48, 168),
    "pink": (250, 140, 190),
    "black": (16, 16, 18),
    "white": (250, 250, 250),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "diamond", "heart")
# Never together in a training picture; the held-out set shows them.
HELD_OUT_PAIRS = {("purple", "star"), ("green", "heart"), ("orange", "ring"), ("pink", "triangle"), ("blue", "cross"), ("white", "diamond")}

FONT_DIRS = "/usr/share/fonts/truetype/"
FONTS = (
    "dejavu/DejaVuSans.ttf",
    "dejavu/DejaVuSans-Bold.ttf",
    "dejavu/DejaVuSerif.ttf",
    "dejavu/DejaVuSerif-Bold.ttf",
    "dejavu/DejaVuSansMono.ttf",
    "dejavu/DejaVuSansMono-Bold.ttf",
    "liberation/LiberationSans-Regular.ttf",
    "liberation/LiberationSans-Bold.ttf",
    "liberation/LiberationSerif-Bold.ttf",
    "liberation/LiberationMono-Bold.ttf",
    "freefont/FreeSansBold.ttf",
    "freefont/FreeSerifBold.ttf",
    "noto/NotoSans-Bold.ttf",
    "noto/NotoSerif-Bold.ttf",
)
# The model looks at this many pixels a side: characters are kept readable at that size.
VIEW = 168

Box = tuple[float, float, float, float]


@dataclass
class Item:
    """Something in a picture. `kind` is "shape", "bar" or "word"; `box` x1, y1, x2, y2 in pixels."""

    kind: str
    name: str  # shape name, "bar", or the written text
    colour: str
    box: Box
    centre: tuple[float, float]
    size: float  # radius of a shape, height of a bar or of a letter
    angle: float = 0.0  # radians, clockwise on the screen
    font: str = ""
    board: tuple[int, int, int] | None = None  # colour of the plate behind a word
    rgb: tuple[int, int, int] = (0, 0, 0)
    chars: list = field(default_factory=list)  # of a word: (character, four corners)


@dataclass
class Scene:
    """A picture before it is drawn."""

    width: int
    height: int
    background: dict
    items: list[Item]

    def of(self, *kinds: str) -> list[Item]:
        return [i for i in self.items if i.kind in kinds]

    def things(self) -> list[Item]:
        """What "object" means: shapes."""
        return self.of("shape")


def distance(a, b) -> float:
    return math.dist(a, b)


def jitter(rng: random.Random, rgb, by: int):
    return tuple(min(255, max(0, c + rng.randint(-by, by))) for c in rgb)


def background(rng: random.Random) -> dict:
    """A pattern of two near colours, pale, dull or dark."""
    grey = rng.choice([rng.randint(215, 255), rng.randint(150, 215), rng.randint(95, 150), rng.randint(25, 80)])
    tint = rng.choice([0, 12, 25])
    base = jitter(rng, (grey,) * 3, tint)
    other = jitter(rng, base, rng.choice([10, 22]))
    kind = rng.choice(["plain", "plain", "gradient", "stripes", "checks", "noise", "blobs"])
    return {"kind": kind, "base": base, "other": other, "cell": rng.randint(6, 40), "seed": rng.randrange(2**31)}


def paint_background(b: dict, w: int, h: int) -> Image.Image:
    base, other = np.array(b["base"], np.float32), np.array(b["other"], np.float32)
    y, x = np.ogrid[0:h, 0:w]
    cell = b["cell"]
    if b["kind"] == "gradient":
        mix = (x / w + y / h) / 2
    elif b["kind"] == "stripes":
        mix = ((x + y * (cell % 3 - 1)) // cell % 2) + np.zeros((h, w))
    elif b["kind"] == "checks":
        mix = (x // cell + y // cell) % 2
    elif b["kind"] == "noise":
        mix = np.random.default_rng(b["seed"]).random((h, w), np.float32)
    elif b["kind"] == "blobs":
        small = np.random.default_rng(b["seed"]).integers(0, 256, (5, 6), np.uint8)
        mix = np.asarray(Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)) / 255.0
    else:
        return Image.new("RGB", (w, h), b["base"])
    mix = np.broadcast_to(mix, (h, w))[..., None].astype(np.float32)
    return Image.fromarray((base + (other - base) * mix).clip(0, 255).astype(np.uint8))


def visible_colours(b: dict, at_least: float = 105.0) -> list[str]:
    """Colours that stand out from the background."""
    return [c for c, rgb in COLOURS.items() if min(distance(rgb, b["base"]), distance(rgb, b["other"])) >= at_least]


def luma(rgb) -> float:
    """Brightness, 0 to 255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def readable_on(b: dict, colour: str) -> bool:
    """Whether letters of this colour differ in brightness from the whole background."""
    return min(abs(luma(COLOURS[colour]) - luma(b[k])) for k in ("base", "other")) > 45


def outline(shape: str, cx: float, cy: float, r: float, angle: float) -> list[tuple[float, float]]:
    """Corners of a shape around its centre."""
    polar = lambda n, radii, turn: [
        (cx + r * radii[i % len(radii)] * math.sin(2 * math.pi * i / n + turn + angle),
         cy - r * radii[i % len(radii)] * math.cos(2 * math.pi * i / n + turn + angle))
        for i in range(n)
    ]
    if shape in ("circle", "ring"):
        return polar(40, [1.0], 0)
    if shape == "square":
        return polar(4, [1.15], math.pi / 4)
    if shape == "triangle":
        return polar(3, [1.15], 0)
    if shape == "star":
        return polar(10, [1.15, 0.47], 0)
    turn = lambda points: [
        (cx + r * (x * math.cos(angle) - y * math.sin(angle)), cy + r * (x * math.sin(angle) + y * math.cos(angle)))
        for x, y in points
    ]
    if shape == "diamond":
        return turn([(0, -1.2), (0.72, 0), (0, 1.2), (-0.72, 0)])
    if shape == "cross":
        t = 0.34
        return turn([(-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t), (t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t), (-t, -t)])
    assert shape == "heart"
    points = []
    for i in range(36):
        t = 2 * math.pi * i / 36
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 16, -(y - 2.5) / 15))
    return turn(points)


def bounds(points) -> Box:
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs), max(ys)


def overlaps(a: Box, b: Box, gap: float) -> bool:
    return a[0] - gap < b[2] and b[0] - gap < a[2] and a[1] - gap < b[3] and b[1] - gap < a[3]


@functools.lru_cache(maxsize=4096)
def font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONT_DIRS + name, size)


def place_shape(rng: random.Random, s: "Scene", colours: list[str], held_out: bool) -> Item | None:
    short = min(s.width, s.height)
    for _ in range(30):
        shape, colour = rng.choice(SHAPES), rng.choice(colours)
        if not held_out and (colour, shape) in HELD_OUT_PAIRS:
            continue
        r = short * rng.choice([rng.uniform(0.065, 0.10), rng.uniform(0.11, 0.17), rng.uniform(0.17, 0.23)])
        angle = rng.uniform(-0.35, 0.35) if shape in ("star", "triangle", "cross", "heart", "square") and rng.random() < 0.5 else 0.0
        cx, cy = rng.uniform(0, s.width), rng.uniform(0, s.height)
        box = bounds(outline(shape, cx, cy, r, angle))
        inside = box[0] >= 1 and box[1] >= 1 and box[2] <= s.width - 2 and box[3] <= s.height - 2
        if inside and not any(overlaps(box, i.box, short * 0.02) for i in s.items):
            return Item("shape", shape, colour, box, (cx, cy), r, angle, rgb=jitter(rng, COLOURS[colour], 12))
    return None


def place_word(rng: random.Random, s: "Scene", colours: list[str], held_out: bool) -> Item | None:
    """A word that is readable where the model looks: a letter advances at least 8.5 of its pixels, and is 10 high."""
    for _ in range(30):
        text = words.draw(rng, held_out)
        name = rng.choice(FONTS)
        size = int(min(s.width, s.height) * rng.uniform(0.09, 0.26))
        f = font(name, size)
        angle = rng.choice([0.0, rng.uniform(-0.12, 0.12), rng.uniform(-0.4, 0.4)])
        x0, y0, x1, y1 = f.getbbox(text, anchor="ls")
        if (x1 - x0) / len(text) * VIEW / s.width < 8.5 or (y1 - y0) * VIEW / s.height < 10:
            continue
        board = None
        pad = size * 0.18 if rng.random() < 0.3 else 0.0
        cx, cy = rng.uniform(0, s.width), rng.uniform(0, s.height)
        mx, my = (x0 + x1) / 2, (y0 + y1) / 2
        cos, sin = math.cos(angle), math.sin(angle)
        at = lambda x, y: (cx + (x - mx) * cos - (y - my) * sin, cy + (x - mx) * sin + (y - my) * cos)
        corners = lambda a, b, c, d: [at(a, b), at(c, b), at(c, d), at(a, d)]
        plate = bounds(corners(x0 - pad, y0 - pad, x1 + pad, y1 + pad))
        if plate[0] < 1 or plate[1] < 1 or plate[2] > s.width - 2 or plate[3] > s.height - 2:
            continue
        if any(overlaps(plate, i.box, size * 0.2) for i in s.items):
            continue
        colour = rng.choice(colours)
        plates = [c for c in COLOURS if abs(luma(COLOURS[c]) - luma(COLOURS[colour])) > 75]
        if pad and plates:
            board = jitter(rng, COLOURS[rng.choice(plates)], 10)
        elif not readable_on(s.background, colour):
            continue
        edges = [f.getlength(text[:k]) for k in range(len(text) + 1)]
        chars = [(c, corners(edges[k], y0, edges[k + 1], y1)) for k, c in enumerate(text)]
        box = bounds(corners(x0, y0, x1, y1))
        rgb = jitter(rng, COLOURS[colour], 10)
        return Item("word", text, colour, box, (cx, cy), float(size), angle, name, board, rgb, chars)
    return None


def chart(rng: random.Random, s: "Scene", colours: list[str]) -> None:
    """Bars of different colours and clearly different heights, side by side on one base line."""
    n = min(rng.randint(2, 5), len(colours))
    x1, x2 = s.width * rng.uniform(0.05, 0.2), s.width * rng.uniform(0.8, 0.95)
    base, top = s.height * rng.uniform(0.8, 0.93), s.height * rng.uniform(0.06, 0.2)
    step = (x2 - x1) / n
    heights = [(k + rng.uniform(0.75, 1.15)) / (n + 0.15) for k in range(n)]
    rng.shuffle(heights)
    fill = rng.uniform(0.45, 0.85)
    for k, (colour, height) in enumerate(zip(rng.sample(colours, n), heights)):
        left = x1 + step * (k + (1 - fill) / 2)
        box = (left, base - (base - top) * max(height, 0.1), left + step * fill, base)
        centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        s.items.append(Item("bar", "bar", colour, box, centre, box[3] - box[1], rgb=jitter(rng, COLOURS[colour], 12)))


def make(seed: int, held_out: bool = False, kind: str | None = None) -> Scene:
    """The scene of a seed: "shapes", "text", "mixed", "chart", or "page", which is full of words and only looked at.
    Held-out scenes use the strings kept from training, and colours and shapes that it never saw together are among theirs."""
    rng = random.Random(seed * 2 + held_out)
    while True:
        kind_now = kind or rng.choices(["shapes", "text", "mixed", "chart"], [42, 30, 18, 10])[0]
        w, h = rng.randint(190, 400), rng.randint(190, 400)
        if not 0.62 < w / h < 1.6:
            continue
        s = Scene(w, h, background(rng), [])
        colours = visible_colours(s.background)
        if len(colours) < 4:
            continue
        if kind_now == "chart":
            chart(rng, s, colours)
        n_words = {"text": rng.choice([1, 1, 1, 2, 2, 3]), "mixed": rng.choice([1, 1, 2]), "page": 14}.get(kind_now, 0)
        n_shapes = {"shapes": rng.choice([1, 2, 3, 3, 4, 4, 5, 6]), "mixed": rng.randint(1, 3)}.get(kind_now, 0)
        # A few colours a picture make equal colours, and questions that need the shape as well, likely.
        palette = rng.sample(colours, min(len(colours), rng.randint(2, 5)))
        shapes_of = [place_word] * n_words + [place_shape] * n_shapes
        for place in shapes_of:
            item = place(rng, s, palette, held_out)
            if item and not (item.kind == "word" and any(i.name == item.name for i in s.items)):
                s.items.append(item)
        if s.items:
            return s


def render(s: Scene) -> Image.Image:
    """RGB, the size of the canvas."""
    im = paint_background(s.background, s.width, s.height)
    d = ImageDraw.Draw(im)
    if bars := s.of("bar"):
        base = max(b.box[3] for b in bars)
        ink = (30, 30, 30) if sum(s.background["base"]) > 380 else (225, 225, 225)
        d.line([(min(b.box[0] for b in bars) - 8, base + 1), (max(b.box[2] for b in bars) + 8, base + 1)], fill=ink, width=2)
    for i in s.items:
        if i.kind == "bar":
            d.rectangle(i.box, fill=i.rgb)
        elif i.kind == "word":
            draw_word(im, d, i)
        elif i.name == "ring":
            cx, cy, r = *i.centre, i.size
            width = max(3, int(r * 0.36))
            d.ellipse((cx - r, cy - r, cx + r, cy + r), outline=i.rgb, width=width)
        else:
            d.polygon(outline(i.name, *i.centre, i.size, i.angle), fill=i.rgb)
    return im


def draw_word(im: Image.Image, d: ImageDraw.ImageDraw, i: Item) -> None:
    f = font(i.font, int(i.size))
    x0, y0, x1, y1 = f.getbbox(i.name, anchor="ls")
    if i.board:
        pad = i.size * 0.18
        cos, sin = math.cos(i.angle), math.sin(i.angle)
        half = ((x1 - x0) / 2 + pad, (y1 - y0) / 2 + pad)
        at = lambda x, y: (i.centre[0] + x * cos - y * sin, i.centre[1] + x * sin + y * cos)
        d.polygon([at(-half[0], -half[1]), at(half[0], -half[1]), at(half[0], half[1]), at(-half[0], half[1])], fill=i.board)
    side = int(math.hypot(x1 - x0, y1 - y0)) + 6
    mask = Image.new("L", (side, side), 0)
    middle = ((x0 + x1) / 2, (y0 + y1) / 2)
    ImageDraw.Draw(mask).text((side / 2 - middle[0], side / 2 - middle[1]), i.name, fill=255, font=f, anchor="ls")
    if i.angle:
        mask = mask.rotate(-math.degrees(i.angle), Image.Resampling.BICUBIC)
    im.paste(i.rgb, (round(i.centre[0] - side / 2), round(i.centre[1] - side / 2)), mask)
