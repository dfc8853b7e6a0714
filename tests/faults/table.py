"""The page of the docs that the fault suite writes."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from faults.driver import Struck
from faults.fault import FAULTS

PAGE = Path(__file__).parents[2] / "docs" / "faults.md"

_HEAD = """# What qlorad survives

`make faults` starts a real daemon with a real Valkey, trains tiny real jobs, and strikes them with faults in an order
that a seed decides. After each fault it checks that every dropped file is one job with one final state, that no two
training processes trained at once, that steps went back to a checkpoint only, that no partial file can be seen; and in
the end that every job's adapters are, byte for byte, those of a run without faults. This page is written by it.

Times are from the end of the fault (and the start of the daemon, where the fault ended it) to the next trained step, on
two CPU cores of a shared machine; importing MLX and loading the model is part of them, and takes two to four seconds.

"""


def page(struck: list[Struck], seed: int, minutes: float) -> str:
    """The page in Markdown."""
    problems = sum(bool(one.problem) for one in struck)
    done = f"Seed {seed}: {len(struck)} faults in {minutes:.0f} minutes, {problems} problems.\n"
    rows = ["| fault | what happens | struck | until training goes on: median, longest |", "|---|---|---:|---:|"]
    for kind in FAULTS:
        seconds = [s.seconds for s in struck if s.fault is kind and s.seconds is not None and not s.problem]
        if seconds:
            longest = f"{median(seconds):.1f} s, {max(seconds):.1f} s" if kind.interrupts else "it did not stop"
            rows.append(f"| {kind.name} | {kind.happens} | {len(seconds)} | {longest} |")
    return _HEAD + done + "\n" + "\n".join(rows) + "\n"
