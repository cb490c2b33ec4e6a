"""Questions about a scene, with their true answers.

Every question has one right answer by construction: what would be near a border (of a zone, of "left of") is not asked.
Boxes are thousandths of the picture's width and height, as in Qwen-VL.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import words
from world import COLOURS, SHAPES, Item, Scene

NUMBERS = ("None", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight")
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")
ZH_COLOURS = dict(zip(COLOURS, "红 绿 蓝 黄 橙 紫 粉 黑 白".split()))
ZH_SHAPES = dict(zip(SHAPES, "圆形 方形 三角形 星形 十字 圆环 菱形 心形".split()))
ZH_NUMBERS = ("没有", "一个", "两个", "三个", "四个", "五个", "六个", "七个", "八个")


@dataclass
class Turn:
    """A question, its answer, what it asks for, and the boxes (thousandths) that the answer names."""

    kind: str
    question: str
    answer: str
    boxes: tuple = ()
    subject: Item | None = None  # what "it" would mean afterwards


def thousandths(s: Scene, box) -> tuple[int, int, int, int]:
    clip = lambda v, n: min(999, max(0, int(v / n * 1000)))
    return clip(box[0], s.width), clip(box[1], s.height), clip(box[2], s.width), clip(box[3], s.height)


def box_text(b) -> str:
    return f"<box>({b[0]},{b[1]}),({b[2]},{b[3]})</box>"


def grounded(s: Scene, label: str, *items: Item) -> tuple[str, tuple]:
    boxes = tuple(thousandths(s, i.box) for i in items)
    return f"<ref>{label}</ref>" + "".join(box_text(b) for b in boxes), boxes


def plural(noun: str) -> str:
    return "crosses" if noun == "cross" else noun + "s"


def a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def zone(s: Scene, i: Item) -> str | None:
    """One of nine places of the picture, or None near a border between two."""
    out = []
    for v, n, names in ((i.centre[1], s.height, ROWS), (i.centre[0], s.width, COLUMNS)):
        v = v / n
        if min(abs(v - 1 / 3), abs(v - 2 / 3)) < 0.03:
            return None
        out.append(names[min(2, int(v * 3))])
    return " ".join(o for o in out if o) or "center"


def said(i: Item) -> str:
    """The item as a noun: "red star", "word HELLO"."""
    if i.kind == "word":
        return f"{'number' if i.name.isdigit() else 'word'} {i.name}"
    return f"{i.colour} {i.name}"


def shown(i: Item) -> str:
    return ("the " + said(i)) if i.kind == "word" else a(said(i))


class Asker:
    """Draws questions about one scene."""

    def __init__(self, scene: Scene, rng: random.Random, held_out: bool = False):
        self.s, self.rng, self.held_out = scene, rng, held_out
        self.things = scene.things()
        self.bars = scene.of("bar")
        self.words = scene.of("word")
        self.solid = self.things + self.bars

    def pick(self, *options: str) -> str:
        return self.rng.choice(options)

    def unique_name(self, i: Item) -> str | None:
        """The shortest or the fullest phrase that means this item and no other."""
        if i.kind == "word":
            return said(i)
        full = [o for o in self.solid if (o.name, o.colour) == (i.name, i.colour)]
        if len(full) > 1:
            return None
        names = [said(i)] * 2
        if i.kind == "shape" and sum(o.name == i.name for o in self.things) == 1:
            names.append(i.name)
        if i.kind == "shape" and sum(o.colour == i.colour for o in self.things) == 1:
            names.append(f"{i.colour} object")
        return self.rng.choice(names)

    def unique(self, among: list[Item]) -> tuple[Item, str] | None:
        among = list(among)
        self.rng.shuffle(among)
        for i in among:
            if name := self.unique_name(i):
                return i, name
        return None

    def absent(self) -> str:
        """A phrase for something that is not there, often one whose colour and shape both are."""
        while True:
            if self.things and self.rng.random() < 0.6:
                colour = self.rng.choice(self.things).colour
                shape = self.rng.choice(self.things).name if self.rng.random() < 0.6 else self.rng.choice(SHAPES)
                if self.rng.random() < 0.4:
                    colour = self.rng.choice(list(COLOURS))
            else:
                colour, shape = self.rng.choice(list(COLOURS)), self.rng.choice(SHAPES)
            if not any((i.colour, i.name) == (colour, shape) for i in self.things):
                whole_shape = not any(i.name == shape for i in self.things)
                return shape if whole_shape and self.rng.random() < 0.4 else f"{colour} {shape}"

    # --- attributes

    def colour(self) -> Turn | None:
        shapes = [i for i in self.things if sum(o.name == i.name for o in self.things) == 1]
        if self.rng.random() < 0.12 or not shapes:
            if not self.things and self.rng.random() < 0.7:
                return None
            missing = [n for n in SHAPES if all(i.name != n for i in self.things)]
            name = self.rng.choice(missing)
            return Turn("refuse", self.colour_question(name), f"There is no {name}.")
        i = self.rng.choice(shapes)
        return Turn("colour", self.colour_question(i.name), f"{i.colour.capitalize()}.", subject=i)

    def colour_question(self, name: str) -> str:
        return self.pick(f"What colour is the {name}?", f"What color is the {name}?", f"Which colour does the {name} have?")

    def shape(self) -> Turn | None:
        among = [i for i in self.things if sum(o.colour == i.colour for o in self.things) == 1]
        if not among:
            return None
        i = self.rng.choice(among)
        q = self.pick(f"What shape is the {i.colour} object?", f"What is the {i.colour} object?", f"Which shape is {i.colour}?")
        return Turn("shape", q, f"{a(i.name).capitalize()}.", subject=i)

    def count(self) -> Turn | None:
        kind = self.rng.random()
        if kind < 0.35 or not self.things:
            group, n = "objects", len(self.things)
            if not self.things:
                return None
        elif kind < 0.7:
            present = self.rng.random() < 0.8
            name = self.rng.choice(self.things).name if present else self.rng.choice(SHAPES)
            group, n = plural(name), sum(i.name == name for i in self.things)
        else:
            present = self.rng.random() < 0.8
            colour = self.rng.choice(self.things).colour if present else self.rng.choice(list(COLOURS))
            group, n = f"{colour} objects", sum(i.colour == colour for i in self.things)
        q = self.pick(f"How many {group} are there?", f"How many {group} are in the picture?", f"Count the {group}.")
        return Turn("count", q, f"{NUMBERS[n]}.")

    def position(self) -> Turn | None:
        found = self.unique([i for i in self.things + self.words if zone(self.s, i)])
        if not found:
            return None
        i, name = found
        q = self.pick(f"In which part of the picture is the {name}?", f"What is the position of the {name}?")
        return Turn("position", q, f"{zone(self.s, i).capitalize()}.", subject=i)

    def at_zone(self) -> Turn | None:
        zones = {}
        for i in self.s.items:
            zones.setdefault(zone(self.s, i), []).append(i)
        single = [z for z, items in zones.items() if z and len(items) == 1]
        if not single or None in zones or self.bars:
            return None
        z = self.rng.choice(single)
        i = zones[z][0]
        q = self.pick(f"What is at the {z}?", f"What do you see at the {z}?")
        if z == "center":
            q = q.replace("at the", "in the")
        return Turn("zone", q, f"{shown(i)[0].upper()}{shown(i)[1:]}.", subject=i)

    def exists(self) -> Turn | None:
        yes = self.rng.random() < 0.5 and self.things
        name = said(self.rng.choice(self.things)) if yes else self.absent()
        q = self.pick(f"Is there {a(name)}?", f"Can you see {a(name)}?", f"Is there {a(name)} in the picture?")
        return Turn("exists", q, "Yes." if yes else f"No, there is no {name}.")

    def relation(self) -> Turn | None:
        if len(self.things) < 2:
            return None
        one, two = self.rng.sample(self.things, 2)
        x, y = self.unique_name(one), self.unique_name(two)
        if not x or not y:
            return None
        kind = self.rng.random()
        if kind < 0.35:
            ratio = one.size / two.size
            if 0.77 < ratio < 1.3:
                return None
            if self.rng.random() < 0.6:
                big = (x if ratio > 1 else y)
                return Turn("compare", self.pick(f"Which is larger, the {x} or the {y}?", f"Which is bigger, the {x} or the {y}?"), f"The {big}.")
            return Turn("compare", f"Is the {x} larger than the {y}?", "Yes." if ratio > 1 else "No.")
        axis = self.rng.randrange(2)
        delta = (one.centre[axis] - two.centre[axis]) / (self.s.width, self.s.height)[axis]
        if abs(delta) < 0.08:
            return None
        low, high = (("to the left of", "to the right of"), ("above", "below"))[axis]
        word = self.pick(low, high)
        return Turn("relation", f"Is the {x} {word} the {y}?", "Yes." if (delta < 0) == (word == low) else "No.")

    def more(self) -> Turn | None:
        names = sorted({i.name for i in self.things})
        if not names:
            return None
        x, y = self.rng.choice(names), self.rng.choice(SHAPES)
        if self.rng.random() < 0.5:
            x, y = y, x
        n = [sum(i.name == k for i in self.things) for k in (x, y)]
        if n[0] == n[1]:
            return None
        return Turn("compare", f"Are there more {plural(x)} than {plural(y)}?", "Yes." if n[0] > n[1] else "No.")

    # --- charts

    def chart(self) -> Turn | None:
        if not self.bars:
            return None
        high = sorted(self.bars, key=lambda b: b.size)
        kind = self.rng.random()
        if kind < 0.3:
            i, word = self.rng.choice([(high[-1], "tallest"), (high[0], "shortest")])
            if self.rng.random() < 0.5:
                return Turn("chart", f"Which bar is the {word}?", f"The {i.colour} bar.", subject=i)
            return Turn("chart", f"What colour is the {word} bar?", f"{i.colour.capitalize()}.", subject=i)
        if kind < 0.5:
            return Turn("chart", self.pick("How many bars are there?", "Count the bars."), f"{NUMBERS[len(high)]}.")
        if kind < 0.75:
            x, y = self.rng.sample(self.bars, 2)
            return Turn("chart", f"Is the {x.colour} bar taller than the {y.colour} bar?", "Yes." if x.size > y.size else "No.")
        return self.where()

    # --- localisation

    def where(self) -> Turn | None:
        if self.rng.random() < 0.1:
            name = self.absent()
            return Turn("refuse", self.where_question(name), f"There is no {name}.")
        found = self.unique(self.s.items)
        if not found:
            return None
        i, name = found
        if not self.held_out and self.rng.random() < 0.25:
            # As `qvl detect` asks.
            phrase = i.name if i.kind == "word" and self.rng.random() < 0.7 else name
            answer, boxes = grounded(self.s, i.name if i.kind == "word" else name, i)
            return Turn("where", f"Find {phrase}.", answer, boxes, i)
        answer, boxes = grounded(self.s, i.name if i.kind == "word" else name, i)
        return Turn("where", self.where_question(name), answer, boxes, i)

    def where_question(self, name: str) -> str:
        if not self.held_out and self.rng.random() < 0.2:
            return f"Find {name}."
        return self.pick(f"Where is the {name}?", f"Where is the {name}?", f"Find the {name}.", f"Frame the {name}.", f"Locate the {name}.")

    def frame_all(self) -> Turn | None:
        if not self.things:
            return None
        i = self.rng.choice(self.things)
        label, group = self.rng.choice([
            (plural(i.name), [o for o in self.things if o.name == i.name]),
            (f"{i.colour} objects", [o for o in self.things if o.colour == i.colour]),
        ])
        group = sorted(group, key=lambda o: o.box[0])
        answer, boxes = grounded(self.s, label, *group)
        if not self.held_out and self.rng.random() < 0.3:
            return Turn("frame_all", f"Find {label}.", answer, boxes)
        return Turn("frame_all", self.pick(f"Frame all {label}.", f"Find all {label}.", f"Where are all {label}?"), answer, boxes)

    def region(self) -> Turn | None:
        i = self.rng.choice(self.s.items)
        b = thousandths(self.s, i.box)
        b = box_text([min(999, max(0, v + self.rng.randint(-12, 12))) for v in b])
        kind = self.rng.random()
        if i.kind == "word" and kind < 0.5:
            return Turn("region_read", self.pick(f"Read {b}.", f"What is written in {b}?"), i.name, subject=i)
        if i.kind == "shape" and kind < 0.3:
            return Turn("region", f"What colour is {b}?", f"{i.colour.capitalize()}.", subject=i)
        answer = shown(i)
        return Turn("region", self.pick(f"What is in {b}?", f"What is {b}?"), f"{answer[0].upper()}{answer[1:]}.", subject=i)

    # --- reading

    def read(self) -> Turn | None:
        if not self.words:
            if self.rng.random() < 0.25:
                return Turn("refuse", self.read_question("text"), "There is no text.")
            return None
        if len(self.words) == 1:
            i = self.words[0]
            noun = "number" if i.name.isdigit() else "word"
            return Turn("read", self.read_question(self.pick("text", noun)), i.name, subject=i)
        if self.rng.random() < 0.3:
            lines = sorted(self.words, key=lambda w: w.centre[1])
            if min((q.centre[1] - p.centre[1]) / self.s.height for p, q in zip(lines, lines[1:])) < 0.06:
                return None
            q = self.pick("Read all words from top to bottom.", "Read all text from top to bottom.")
            return Turn("read_all", q, "\n".join(w.name for w in lines))
        i = self.rng.choice(self.words)
        if sum(w.colour == i.colour for w in self.words) > 1:
            return None
        noun = "number" if i.name.isdigit() else "word"
        q = self.pick(f"What does the {i.colour} {noun} say?", f"Read the {i.colour} {noun}.")
        return Turn("read", q, i.name, subject=i)

    def read_question(self, noun: str) -> str:
        return self.pick(f"What does the {noun} say?", f"Read the {noun}.", f"Which {noun} is in the picture?", "What is written here?")

    # --- whole pictures

    def in_order(self) -> list[Item]:
        return sorted(self.s.items, key=lambda i: i.centre[0])

    def caption(self) -> Turn | None:
        q = self.pick("Describe the picture.", "What is in the picture?", "What do you see?", "What is in this picture?")
        return Turn("caption", q, self.list_of([shown(i) for i in self.in_order()]))

    def list_of(self, parts: list[str]) -> str:
        text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
        return text[0].upper() + text[1:] + "."

    def grounded_caption(self) -> Turn | None:
        if len(self.s.items) > 4:
            return None
        parts = [grounded(self.s, shown(i), i) for i in self.in_order()]
        text = " and ".join(p[0] for p in parts)
        q = self.pick("Describe the picture with boxes.", "Describe the picture with grounding.")
        return Turn("grounded_caption", q, text, tuple(b for p in parts for b in p[1]))

    # --- Chinese

    def chinese(self) -> Turn | None:
        kind = self.rng.randrange(6)
        name = lambda i: f"{ZH_COLOURS[i.colour]}色的{ZH_SHAPES[i.name]}"
        if kind == 0 and self.words and len(self.words) == 1:
            return Turn("zh_read", self.pick("图中写着什么?", "图中的文字是什么?"), self.words[0].name)
        if not self.things:
            return None
        i = self.rng.choice(self.things)
        alone = sum((o.name, o.colour) == (i.name, i.colour) for o in self.things) == 1
        if kind == 1 and sum(o.name == i.name for o in self.things) == 1:
            return Turn("zh", f"{ZH_SHAPES[i.name]}是什么颜色?", f"{ZH_COLOURS[i.colour]}色。")
        if kind == 2:
            n = sum(o.name == i.name for o in self.things)
            return Turn("zh", f"图中有几个{ZH_SHAPES[i.name]}?", f"{ZH_NUMBERS[n]}。")
        if kind == 3 and alone:
            answer, boxes = grounded(self.s, name(i), i)
            return Turn("zh_where", self.pick(f"框出图中{name(i)}的位置", f"{name(i)}在哪里?"), answer, boxes)
        if kind == 4:
            if self.rng.random() < 0.5:
                return Turn("zh", f"图中有{name(i)}吗?", "有。")
            while True:
                colour, shape = self.rng.choice(list(COLOURS)), self.rng.choice(SHAPES)
                if not any((o.colour, o.name) == (colour, shape) for o in self.things):
                    return Turn("zh", f"图中有{ZH_COLOURS[colour]}色的{ZH_SHAPES[shape]}吗?", "没有。")
        if kind == 5 and not self.words:
            return Turn("zh", self.pick("描述这张图片。", "这是什么?"), "、".join(name(o) for o in self.in_order()) + "。")
        return None

    def it(self, before: Turn) -> Turn | None:
        """A question about what was just spoken of."""
        i = before.subject
        if i is None or before.boxes:
            return None
        kind = self.rng.random()
        if kind < 0.6:
            label = i.name if i.kind == "word" else said(i)
            answer, boxes = grounded(self.s, label, i)
            return Turn("it_where", self.pick("Where is it?", "Frame it."), answer, boxes, i)
        return Turn("it_colour", self.pick("What colour is it?", "And what colour is it?"), f"{i.colour.capitalize()}.", subject=i)

    WEIGHTS = {
        "colour": 9, "shape": 7, "count": 14, "position": 8, "at_zone": 5, "exists": 7, "relation": 12, "more": 4,
        "chart": 30, "where": 22, "frame_all": 14, "region": 8, "read": 44, "caption": 6, "grounded_caption": 4, "chinese": 6,
    }

    def turn(self, kinds: dict[str, float] | None = None) -> Turn:
        """One question that fits this scene."""
        weights = kinds or self.WEIGHTS
        while True:
            kind = self.rng.choices(list(weights), list(weights.values()))[0]
            if made := getattr(self, kind)():
                return made


# --- two pictures


def about_two(first: Asker, second: Asker, rng: random.Random) -> Turn:
    """A question for which both pictures, or the right one of them, must be looked at."""
    both = (first, second)
    while True:
        kind = rng.random()
        n = [len(x.things) for x in both]
        if kind < 0.2 and n[0] != n[1]:
            word = rng.choice(["more", "fewer"])
            return Turn("two", f"Which picture has {word} objects?", f"Picture {1 + ((n[1] > n[0]) == (word == 'more'))}.")
        if kind < 0.45:
            k = rng.randrange(2)
            if not both[k].s.items:
                continue
            i = rng.choice(both[k].s.items)
            if any((o.name, o.colour) == (i.name, i.colour) or (i.kind == "word" and o.name == i.name) for o in both[1 - k].s.items):
                continue
            return Turn("two", f"Which picture shows {shown(i)}?", f"Picture {k + 1}.")
        k = rng.randrange(2)
        turn = both[k].turn({"colour": 1, "shape": 1, "count": 1, "read": 4, "caption": 1.5})
        if turn.kind == "refuse" or not turn.question.endswith("?") or "in the picture" in turn.question or "in this picture" in turn.question:
            continue
        if turn.question in ("What is written here?", "What do you see?") or not turn.question.startswith(("What", "How many", "Which")):
            continue
        where = rng.choice([f" in picture {k + 1}?", f" in picture {k + 1}?"])
        return Turn("two", turn.question[:-1].replace(" are there", " are") + where, turn.answer)
