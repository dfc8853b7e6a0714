"""The real daemon, with the wall clock of its own process as far off as the file `clock` in its home says, in days."""

import sys
from datetime import datetime, timedelta
from pathlib import Path

from qlora_daemon import cli
from qlora_engine.job import record
from qlora_worker.settings import Settings

CLOCK = Settings.read().folders.path / "clock"


def days_off(path: Path) -> float:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return 0.0


class MovedClock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + timedelta(days=days_off(CLOCK))


if __name__ == "__main__":
    record.datetime = MovedClock  # what `utc_now` reads, wherever it is called
    sys.exit(cli.main())
