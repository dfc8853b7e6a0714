"""The home without the settings' checks, which cost time and may be what failed; and `~` in paths."""

from __future__ import annotations

import os
from pathlib import Path

from qlora_engine.job.errors import BadSetting, Exit, JobRejected
from qlora_engine.job.folder import USUAL_HOME, Home, absolute


class NoSuchUser(JobRejected):
    """A path begins with the `~` of a user whom there is not."""

    exit_code = Exit.NOINPUT


def expanded(path: Path | str) -> Path:
    """A path as somebody has typed it, with `~` and `~user` expanded. Raises `NoSuchUser`."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise NoSuchUser(
            f"Nobody knows whose home the ~ in {str(path)!r:.80} is.", where=str(path), remedy="Correct the path."
        ) from None


def plain_home() -> Home:
    """The home that QLORAD_HOME names, or `~/qlora`.

    Raises:
        BadSetting: it is in the home of a user whom there is not.
    """
    named = os.environ.get("QLORAD_HOME", "")
    try:
        return Home(absolute(named if named.strip() else USUAL_HOME))
    except ValueError as error:
        raise BadSetting(
            f"QLORAD_HOME cannot be used: {error}.", where="QLORAD_HOME", remedy="Correct or unset the variable."
        ) from None
