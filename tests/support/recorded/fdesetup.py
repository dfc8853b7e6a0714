"""`fdesetup status` of macOS (fdesetup(8)); it needs no root.

State: `on`; `encrypting`, percent of a disk that is being encrypted, or None.
"""

from __future__ import annotations

import sys
from typing import Any

from support.recorded import Unexpected


def main(arguments: list[str], state: dict[str, Any]) -> int:
    if arguments != ["status"]:
        raise Unexpected(f"fdesetup {arguments}")
    sys.stdout.write(f"FileVault is {'On' if state['on'] else 'Off'}.\n")
    if state.get("encrypting") is not None:
        sys.stdout.write(f"Encryption in progress: Percent completed = {state['encrypting']}\n")
    return 0
