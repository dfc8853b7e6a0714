"""`caffeinate -is -w PID` of macOS: waits for the process and ends with 0; any display that it keeps lit is a mistake.

State: `fails`, what it complains of at once, ending with 1.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from support.recorded import Unexpected, lives


def main(arguments: list[str], state: dict[str, Any]) -> int:
    match arguments:
        case ["-is", "-w", pid] if pid.isdigit():
            if state.get("fails"):
                sys.stderr.write(f"caffeinate: {state['fails']}\n")
                return 1
            while lives(int(pid)):
                time.sleep(0.05)
            return 0
    raise Unexpected(f"caffeinate {arguments}")
