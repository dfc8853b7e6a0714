"""Where messages go: names that jobs and settings may use, and the addresses behind them, which are secrets."""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from qlora_engine.job.errors import BadSetting, JobRejected

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")
MAX_BYTES = 100_000


def read_targets(path: Path) -> dict[str, list[str]]:
    """The addresses of each name in `notify.toml`; none where there is no such file.

    Raises:
        BadSetting: others may read the file, or it does not say names and addresses. Never shows an address.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}", "Make it a file of your own.") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _bad(path, "is no regular file", "Make it one.")
        if status.st_mode & 0o077:
            raise _bad(path, "can be read by others", f"It holds secrets: chmod 600 {path}")
        content = file.read(MAX_BYTES)
    try:
        found = tomllib.loads(content.decode())
    except ValueError as error:
        line = re.search(r"line \d+", str(error))  # the rest of the message may show what stands there
        where = f" ({line[0]})" if line else ""
        raise _bad(path, f"is not valid TOML{where}", 'Write one `name = "address"` a line.') from None
    targets = {name: _addresses(value) for name, value in found.items()}
    for name, addresses in targets.items():
        if not NAME.fullmatch(name) or not addresses:
            raise _bad(
                path, f"says of `{name:.40}` what is no address", 'Write `name = "ntfy://…"`, or a list of them.'
            )
    return targets


def check_targets(names: Iterable[str], path: Path) -> None:
    """Refuse a job that names a target which nobody knows.

    Raises:
        JobRejected: says which there are.
    """
    wanted = list(names)
    if not wanted:
        return
    try:
        known: Mapping[str, object] = read_targets(path)
    except BadSetting as error:
        raise JobRejected(error.what, where=error.where, remedy=error.remedy) from None
    for name in wanted:
        if name not in known:
            there = f"There are: {', '.join(sorted(known))}." if known else "There are none yet."
            raise JobRejected(
                f"`notify` names {name!r:.60}, which is no target.",
                where="notify",
                remedy=f'{there} A target is a line of {path}: {name:.40} = "ntfy://…" (docs/messages.md).',
            )


def _addresses(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str) and "://" in one]


def _bad(path: Path, what: str, remedy: str) -> BadSetting:
    return BadSetting(f"{path.name} {what}.", where=str(path), remedy=remedy)
