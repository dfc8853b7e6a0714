"""Write the rows that date-sweep trains on: `python generate.py --seed 7 --out data`.

Dates as people write them, and as a file name has them. The same seed and code give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from datetime import date, timedelta
from pathlib import Path

ROWS = {"train": 200, "valid": 24}
FIRST = date(1900, 1, 1)
DAYS = 55_000

MONTHS = [
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
]  # fmt: skip
WAYS = [
    "{day} {month} {year}",
    "{month} {day}, {year}",
    "the {nth} of {month} {year}",
    "{short} {day} {year}",
    "{month} the {nth}, {year}",
    "{day}. {number}. {year}",
]


def nth(day: int) -> str:
    """`1st`, `22nd`, `13th`."""
    ending = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"


def row(draw: random.Random) -> dict[str, str]:
    """One date, written in one of the ways."""
    found = FIRST + timedelta(days=draw.randrange(DAYS))
    month = MONTHS[found.month - 1]
    written = draw.choice(WAYS).format(
        day=found.day, nth=nth(found.day), month=month, short=month[:3], number=found.month, year=found.year
    )
    return {"prompt": f"Date for a file name: {written}", "completion": f"{found:%Y-%m-%d}"}


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
            line = json.dumps(row(draw))
            if line not in seen:
                seen.add(line)
                rows.append(line)
        (arguments.out / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
