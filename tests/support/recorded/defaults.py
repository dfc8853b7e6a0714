"""`defaults read DOMAIN KEY` of macOS: the value, or code 1 (defaults(1), and its texts as people quote them).

State: `values` by domain and key, separated by a blank.
"""

from __future__ import annotations

import sys
from typing import Any

from support.recorded import Unexpected


def main(arguments: list[str], state: dict[str, Any]) -> int:
    match arguments:
        case ["read", domain, key] if domain.startswith("/"):
            value = state["values"].get(f"{domain} {key}")
            if value is None:
                sys.stderr.write(
                    "2026-11-22 14:35:00.000 defaults[4117:81234] \n"
                    f"The domain/default pair of ({domain}, {key}) does not exist\n"
                )
                return 1
            sys.stdout.write(f"{value}\n")
            return 0
    raise Unexpected(f"defaults {arguments}")
