"""`sysctl -n NAME` as macOS has it: the value on a line of its own, or a complaint and code 1 (sysctl(8), XNU).

State: `values` by name; `hangs`, seconds that it takes to answer.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from support.recorded import Unexpected


def main(arguments: list[str], state: dict[str, Any]) -> int:
    match arguments:
        case ["-n", name] if not name.startswith("-"):
            time.sleep(state.get("hangs", 0.0))
            if name not in state["values"]:
                sys.stderr.write(f"sysctl: unknown oid '{name}'\n")
                return 1
            sys.stdout.write(f"{state['values'][name]}\n")
            return 0
    raise Unexpected(f"sysctl {arguments}")
