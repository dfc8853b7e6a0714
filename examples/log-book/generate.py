"""Write the log book that log-book goes on training with: `python generate.py --seed 7 --out data`.

Entries of a lighthouse: plain text with a form of its own, no questions and no answers. The same seed and code give the
same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

ROWS = {"train": 160, "valid": 24}

WINDS = ["north", "north-east", "east", "south-east", "south", "south-west", "west", "north-west"]
SEAS = ["calm", "slight", "moderate", "rough", "very rough", "high"]
SIGHTS = [
    "A schooner passed inside the reef, all sails set",
    "Two trawlers lay at anchor under the cliff",
    "No sail all day",
    "The supply boat came and could not land",
    "A whale was seen twice off the point",
    "Gulls on the gallery in great number, which means weather",
]
WORK = [
    "Trimmed the wick and polished the lens",
    "Mended the handrail of the stair",
    "Painted the landing stage white",
    "Carried water from the spring, eleven buckets",
    "Wound the clockwork and oiled its chain",
    "Wrote to the board for new panes",
]


def entry(draw: random.Random) -> str:
    """One day."""
    day, month = draw.randrange(1, 29), draw.choice(["March", "April", "May", "October", "November", "December"])
    first, second = draw.sample(WORK, 2)
    lines = [
        f"{day} {month}. Wind {draw.choice(WINDS)}, force {draw.randrange(1, 11)}; sea {draw.choice(SEAS)}.",
        f"{draw.choice(SIGHTS)}.",
        f"{first}. {second}.",
        f"Lamp lit at {draw.randrange(4, 9)} in the evening, out at {draw.randrange(4, 8)}. All well.",
    ]
    return "\n".join(lines)


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
            row = json.dumps({"text": entry(draw)})
            if row not in seen:
                seen.add(row)
                rows.append(row)
        (arguments.out / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
