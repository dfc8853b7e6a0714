"""The property list that tells launchd about the daemon; docs/install.md says of each key why it is as it is."""

from __future__ import annotations

import plistlib
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from qlora_engine.host.service import OPEN_FILES, STOP_SECONDS, ServiceDefinition

# Apple: lets a display that is lit wait for a long Metal command rather than end the program; see docs/install.md.
METAL = {"AGX_RELAX_CDM_CTXSTORE_TIMEOUT": "1"}


def keys(definition: ServiceDefinition) -> dict[str, Any]:
    """The keys of launchd.plist(5), for an agent of the user or, with a user's name, for a daemon of the machine."""
    found: dict[str, Any] = {
        "Label": definition.label,
        "ProgramArguments": list(definition.program),
        "WorkingDirectory": str(definition.home),
        "EnvironmentVariables": {**METAL, **definition.environment},
        "RunAtLoad": True,
        "KeepAlive": True,
        "ExitTimeOut": STOP_SECONDS,
        "ProcessType": "Interactive",
        "Umask": 0o077,
        "SoftResourceLimits": {"NumberOfFiles": OPEN_FILES},
        "StandardOutPath": str(definition.output),
        "StandardErrorPath": str(definition.output),
    }
    if definition.user is None:
        found["LimitLoadToSessionType"] = ["Aqua", "Background"]
    else:
        found["UserName"] = definition.user
    return found


def render(definition: ServiceDefinition) -> bytes:
    """The property list as XML."""
    return plistlib.dumps(keys(definition), sort_keys=False)


def read(content: bytes) -> ServiceDefinition:
    """The definition that a property list was made from.

    Raises:
        ValueError: it is none of ours.
    """
    try:
        found = plistlib.loads(content)
        environment = {name: value for name, value in found["EnvironmentVariables"].items() if name not in METAL}
        program, home = tuple(found["ProgramArguments"]), Path(found["WorkingDirectory"])
        return ServiceDefinition(found["Label"], home, program, environment, found.get("UserName"))
    except (plistlib.InvalidFileException, ExpatError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no property list of qlorad: {error}") from None
