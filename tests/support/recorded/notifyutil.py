"""`notifyutil -g NAME` of macOS: the name and its state, 0 for a name that nobody has set (notifyutil(1)).

State: `values` by name.
"""

from __future__ import annotations

import sys
from typing import Any

from support.recorded import Unexpected


def main(arguments: list[str], state: dict[str, Any]) -> int:
    match arguments:
        case ["-g", name]:
            sys.stdout.write(f"{name} {state['values'].get(name, 0)}\n")
            return 0
    raise Unexpected(f"notifyutil {arguments}")
