"""`pmset -g batt`, `pmset -g therm` and `pmset -g custom` in the words of macOS (pmset.c of Apple's PowerManagement).

State: `source`, `AC Power`, `Battery Power` or `UPS Power`; `percent`, None for a Mac without a battery; `status` as
`discharging`; `warning`, a thermal warning level, and `speed`, CPU_Speed_Limit of an Intel Mac, each None where none
was recorded since the start; `custom`, settings by source of power and name; `hangs`, seconds that it takes to answer.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from support.recorded import Unexpected


def main(arguments: list[str], state: dict[str, Any]) -> int:
    time.sleep(state.get("hangs", 0.0))
    match arguments:
        case ["-g", "batt"]:
            sys.stdout.write(batteries(**{key: state[key] for key in ("source", "percent") if key in state}))
        case ["-g", "therm"]:
            sys.stdout.write(thermal(state.get("warning"), state.get("speed")))
        case ["-g", "custom"]:
            sys.stdout.write(custom(state.get("custom", {})))
        case _:
            raise Unexpected(f"pmset {arguments}")
    return 0


def batteries(source: str = "AC Power", percent: int | None = 87) -> str:
    lines = f"Now drawing from '{source}'\n"
    if percent is None:
        return lines
    status = {"AC Power": "charging; 1:02 remaining"}.get(source, "discharging; 5:12 remaining")
    name = "CP1500" if source == "UPS Power" else "InternalBattery-0"
    return lines + f" -{name} (id=4653155)\t{percent}%; {status} present: true\n"


def thermal(warning: int | None = None, speed: int | None = None) -> str:
    if warning is None:
        lines = "Note: No thermal warning level has been recorded\n"
    else:
        lines = f"2026-11-22 14:35:00 +0100 \n\tThermal Warning Level = {warning}\n"
    lines += "Note: No performance warning level has been recorded\n"
    if speed is None:
        return lines + "Note: No CPU power status has been recorded\n"
    return lines + (
        "2026-11-22 14:35:00 +0100 CPU Power notify\n"
        f"\tCPU_Scheduler_Limit \t= 100\n\tCPU_Available_CPUs \t= 8\n\tCPU_Speed_Limit \t= {speed}\n"
    )


def custom(settings: dict[str, dict[str, int]]) -> str:
    lines = []
    for source, values in settings.items():
        lines += [f"{source}:", " Sleep On Power Button 1"]
        lines += [f" {name:<20} {value}" for name, value in values.items()]
        lines += [f" {'hibernatefile':<20} /var/vm/sleepimage"]
    return "".join(f"{line}\n" for line in lines)
