"""Starts a server and leaves it running once it has said that it is ready, as a person does in a second terminal.

python -m support.left_running 'SAYS' FOLDER -- COMMAND …

SAYS is a pattern. Its process id becomes the name of a file in FOLDER, which holds what it said.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from support.service import NotInTime, wait_until

SECONDS = 30.0


def main(arguments: Sequence[str]) -> int:
    """Start it; returns 0 when it is ready, 124 where that does not come."""
    says, folder = arguments[:2]
    unnamed = Path(folder) / "starting"
    with unnamed.open("wb") as output:
        process = subprocess.Popen(
            arguments[3:], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    log = unnamed.rename(Path(folder) / str(process.pid))

    def is_ready() -> bool:
        return re.search(says, log.read_text(errors="replace")) is not None

    with contextlib.suppress(NotInTime):
        wait_until("it says that it is ready", lambda: is_ready() or process.poll() is not None, SECONDS)
    if is_ready():
        return 0
    sys.stdout.write(log.read_text(errors="replace"))
    return process.poll() or 124


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
