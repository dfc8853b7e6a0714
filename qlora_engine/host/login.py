"""What a Mac needs a person for before it is of use again: an encrypted disk, and a login."""

from __future__ import annotations

import shutil

from qlora_engine.host.program import run

SECONDS = 2.0
WINDOW = "/Library/Preferences/com.apple.loginwindow"


def encrypted() -> bool | None:
    """FileVault is on, so a start waits for a password; None where the system does not tell.

    Raises:
        ProgramFailed: fdesetup does not answer.
    """
    if not shutil.which("fdesetup"):
        return None
    said = run(["fdesetup", "status"], timeout=SECONDS).out
    return True if "FileVault is On" in said else False if "FileVault is Off" in said else None


def logs_in() -> str | None:
    """The user who is logged in by the machine itself after a start; None for nobody.

    Raises:
        ProgramFailed: defaults does not answer.
    """
    said = run(["defaults", "read", WINDOW, "autoLoginUser"], timeout=SECONDS)
    return said.out.strip() or None if said.code == 0 else None
