"""The real daemon on clocks that a test moves: `clock` and `slept` in its home, seconds.

`clock` is how far the clock on the wall is off. `slept` is how long the machine is said to have slept: the wall's clock
and the one that never sleeps go on by it, the monotonic one does not, as on a Mac whose lid was closed.
"""

import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

from qlora_daemon import cli, clocks
from qlora_engine.job import record
from qlora_worker.settings import Settings

HOME = Settings.read().folders.path


def seconds(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


class MovedClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(seconds=seconds(HOME / "clock") + seconds(HOME / "slept"))


def sleepless() -> float:
    return time.monotonic() + seconds(HOME / "slept")


if __name__ == "__main__":
    record.datetime = MovedClock  # what `utc_now` reads, wherever it is called
    clocks.sleepless = sleepless
    sys.exit(cli.main())
