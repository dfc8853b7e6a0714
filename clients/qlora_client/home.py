"""The home without the settings' checks, which cost time and may be what failed."""

from __future__ import annotations

import os

from qlora_engine.job.errors import BadSetting
from qlora_engine.job.folder import USUAL_HOME, Home, absolute


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
