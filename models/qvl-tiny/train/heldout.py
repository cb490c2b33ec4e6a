"""Write the held-out set: heldout.py OUT_DIR (models/qvl-tiny/heldout).

Pictures of seeds, strings and (colour, shape) pairs that training never sees, and questions.jsonl, one question a line:
`id`, `group` (attributes, grounding, reading, region, reasoning, pictures, chat, chinese, charts), `kind`, `images`,
`question`, `answer`; `boxes` in thousandths where the answer has some; `history` [[question, answer]] of earlier turns;
`swap` {`image`, `answer`}: what the same question's answer is about another picture.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import questions
import world
from questions import Asker, Turn

FIRST_SEED = 900_000_000
PICTURES = {"shapes": 80, "text": 56, "mixed": 20, "chart": 16}
# group -> methods of Asker -> how many questions
QUOTAS = {
    "attributes": {"colour": 80, "shape": 60, "count": 90, "position": 70},
    "grounding": {"where": 170, "frame_all": 40},
    "reading": {"read": 170, "read_all": 10},
    "region": {"region": 50},
    "reasoning": {"exists": 40, "relation": 50, "more": 15, "at_zone": 25, "refuse": 20},
    "charts": {"chart": 40},
    "chinese": {"chinese": 40},
}
N_PAIRS, N_CHATS = 40, 40


def makes_sense(kind: str, turn: Turn) -> bool:
    """Whether a drawn turn is of the wanted kind: methods sometimes answer with another one."""
    wanted = {"more": "compare", "at_zone": "zone"}.get(kind, kind)
    if kind in ("relation", "region", "chart", "chinese"):
        return turn.kind != "refuse" and (kind != "chart" or turn.kind == "chart")
    return turn.kind == wanted


def draw_turn(asker: Asker, kind: str) -> Turn | None:
    method = {"read_all": "read", "refuse": asker.rng.choice(["where", "colour"])}.get(kind, kind)
    turn = getattr(asker, method)()
    return turn if turn and makes_sense(kind, turn) else None


def scenes() -> list[world.Scene]:
    """Every third picture of shapes shows a pair of colour and shape that training never does."""
    out, seed = [], FIRST_SEED
    for kind, n in PICTURES.items():
        found = 0
        while found < n:
            seed += 1
            s = world.make(seed, held_out=True, kind=kind)
            new_pair = any((i.colour, i.name) in world.HELD_OUT_PAIRS for i in s.items)
            if kind == "shapes" and found % 3 == 0 and not new_pair:
                continue
            out.append(s)
            found += 1
    return out


def entry(group: str, turn: Turn, images: list[str]) -> dict:
    made = {"group": group, "kind": turn.kind, "images": images, "question": turn.question, "answer": turn.answer}
    return made | ({"boxes": [list(b) for b in turn.boxes]} if turn.boxes else {})


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(FIRST_SEED)
    all_scenes = scenes()
    names = [f"{k:03}.png" for k in range(len(all_scenes))]
    for name, s in zip(names, all_scenes):
        world.render(s).save(out / name, optimize=True)
    askers = [Asker(s, rng, held_out=True) for s in all_scenes]

    entries: list[dict] = []
    for group, kinds in QUOTAS.items():
        for kind, quota in kinds.items():
            asked: set = set()
            order = list(range(len(askers)))
            while len(asked) < quota:
                rng.shuffle(order)
                for k in order:
                    turn = draw_turn(askers[k], kind)
                    if turn and (k, turn.question) not in asked and len(asked) < quota:
                        asked.add((k, turn.question))
                        entries.append(entry(group, turn, [names[k]]))
    # The same question about another picture, where the truth differs.
    truths: dict[str, dict[str, str]] = {}
    for k, asker in enumerate(askers):
        for _ in range(150):
            turn = draw_turn(asker, rng.choice(["colour", "shape", "count", "position", "read"]))
            if turn and "<" not in turn.answer:
                truths.setdefault(turn.question, {})[names[k]] = turn.answer
    for e in entries:
        if e["group"] in ("attributes", "reading"):
            others = [(n, a) for n, a in truths.get(e["question"], {}).items() if a != e["answer"] and n not in e["images"]]
            if others:
                name, answer = rng.choice(others)
                e["swap"] = {"image": name, "answer": answer}
    for _ in range(N_PAIRS):
        a, b = rng.sample(range(len(askers)), 2)
        entries.append(entry("pictures", questions.about_two(askers[a], askers[b], rng), [names[a], names[b]]))
    n_chats = 0
    while n_chats < N_CHATS:
        k = rng.randrange(len(askers))
        first = askers[k].turn({"colour": 1, "shape": 1, "at_zone": 2, "read": 1, "region": 1, "position": 1})
        second = askers[k].it(first)
        if second:
            entries.append(entry("chat", second, [names[k]]) | {"history": [[first.question, first.answer]]})
            n_chats += 1
    lines = [json.dumps({"id": k, **e}, ensure_ascii=False) for k, e in enumerate(entries)]
    (out / "questions.jsonl").write_text("\n".join(lines) + "\n")
    print(len(lines), "questions,", len(names), "pictures,", sum("swap" in e for e in entries), "with a swap")


if __name__ == "__main__":
    main()
