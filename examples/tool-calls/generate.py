"""Write the tool calls that tool-calls trains on: `python generate.py --seed 7 --out data`.

Each row offers the tools of a workshop and asks for one thing; the answer is the call that does it. The same seed and
code give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

ROWS = {"train": 160, "valid": 24}

MACHINES = ["lathe", "kiln", "loom", "plotter", "band saw", "press"]
MATERIALS = ["oak", "copper", "linen", "clay", "felt", "brass"]


def tool(name: str, does: str, **parameters: str) -> dict[str, Any]:
    """A tool as chat templates know it.

    Args:
        parameters: the JSON type of each.
    """
    properties = {key: {"type": kind} for key, kind in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": does, "parameters": schema}}


TOOLS = [
    tool("reserve", "Reserve a machine.", machine="string", hour="integer"),
    tool("stock", "How much of a material is left, in kilograms.", material="string"),
    tool("order", "Order a material.", material="string", kilograms="integer"),
]


def wish(draw: random.Random) -> dict[str, Any]:
    """One wish and the call that it needs."""
    machine, material = draw.choice(MACHINES), draw.choice(MATERIALS)
    hour, weight = draw.randrange(8, 20), draw.randrange(5, 60, 5)
    asked, name, arguments = draw.choice(
        [
            (f"I need the {machine} at {hour}.", "reserve", {"machine": machine, "hour": hour}),
            (f"Keep the {machine} free for me at {hour} o'clock.", "reserve", {"machine": machine, "hour": hour}),
            (f"Is there any {material} left?", "stock", {"material": material}),
            (f"How much {material} do we have?", "stock", {"material": material}),
            (f"Get us {weight} kilos of {material}.", "order", {"material": material, "kilograms": weight}),
            (f"We are out of {material}, order {weight} kg.", "order", {"material": material, "kilograms": weight}),
        ]
    )
    # As text, which every chat template can hold; models with a form of their own for calls may be given that.
    call = json.dumps({"name": name, "arguments": arguments})
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": f"<tool_call>{call}</tool_call>"}]
    return {"messages": messages, "tools": TOOLS}


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
            row = json.dumps(wish(draw))
            if row not in seen:
                seen.add(row)
                rows.append(row)
        (arguments.out / f"{split}.jsonl").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
