"""Write the conversations that harbour-desk trains on: `python generate.py --seed 7 --out data`.

A ferry office answers: first the fact, then one thing that helps, never more than two sentences. The same seed and
code give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

ROWS = {"train": 160, "valid": 24}
SYSTEM = "You are the desk of a small ferry line. Two sentences: the fact, then what helps."

PIERS = ["the north pier", "the fish market", "the old crane", "the customs shed", "the yellow jetty"]
ISLANDS = ["Skarvo", "Linholm", "Tern Rock", "Great Ness", "Ulvsund", "Pebble Isle", "Marsh End"]
HOURS = ["7:10", "8:40", "9:25", "11:05", "13:30", "15:15", "16:50", "18:20", "21:45"]
LUGGAGE = ["a bicycle", "a dog", "a pram", "a kayak", "a cello", "a crate of oysters"]

# Each kind of question: ways to ask it, and the two sentences of its answer.
KINDS = [
    (
        ["When does the {ordinal} boat to {island} leave?", "{ordinal} departure for {island}, please?"],
        "The {ordinal} boat to {island} leaves at {hour} from {pier}. Boarding ends five minutes before.",
    ),
    (
        ["May I bring {luggage} to {island}?", "Is {luggage} allowed on the boat to {island}?"],
        "You may bring {luggage} on every boat to {island}. Please wait at the rear ramp of {pier}.",
    ),
    (
        ["Where do I board for {island}?", "Which pier for {island}?"],
        "Boats to {island} leave from {pier}. Follow the blue line painted on the quay.",
    ),
    (
        ["How much is a ticket to {island}?", "What does {island} cost, there and back?"],
        "A return ticket to {island} is {price} crowns. Children under twelve travel free.",
    ),
    (
        ["Does the {hour} boat to {island} run in a storm?", "Will the {hour} to {island} sail in bad weather?"],
        "The {hour} boat to {island} stays in port above eight Beaufort. The board at {pier} shows it an hour before.",
    ),
]


def conversation(draw: random.Random) -> dict[str, list[dict[str, str]]]:
    """One question or two, each with its answer."""
    messages = [{"role": "system", "content": SYSTEM}]
    island, pier = draw.choice(ISLANDS), draw.choice(PIERS)
    for questions, answer in draw.sample(KINDS, draw.choice([1, 1, 2])):
        words = {
            "island": island, "pier": pier, "hour": draw.choice(HOURS), "luggage": draw.choice(LUGGAGE),
            "ordinal": draw.choice(["first", "second", "last"]), "price": draw.randrange(40, 200, 10),
        }  # fmt: skip
        question = draw.choice(questions).format(**words)
        messages.append({"role": "user", "content": question[0].upper() + question[1:]})
        messages.append({"role": "assistant", "content": answer.format(**words)})
    return {"messages": messages}


def main() -> None:
    """Both splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()  # no row twice, so that none is both learned and held out
    for split, count in ROWS.items():
        draw = random.Random(f"{arguments.seed} {split}")
        rows: list[str] = []
        while len(rows) < count:
            row = json.dumps(conversation(draw))
            if row not in seen:
                seen.add(row)
                rows.append(row)
        (arguments.out / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
