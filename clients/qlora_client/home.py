"""The home without the settings' checks, which cost time and may be what failed."""

from __future__ import annotations

import os
from pathlib import Path

from qlora_engine.job.folder import Home


def plain_home() -> Home:
    """The home that QLORAD_HOME names, or `~/qlora`."""
    return Home(Path(os.environ.get("QLORAD_HOME") or "~/qlora").expanduser().absolute())
