"""Dropping a job folder into the watched folder, and learning from the service log which job it became."""

from __future__ import annotations

import secrets
import shutil
import time
from pathlib import Path

from qlora_client.follow import LOOK_SECONDS, Tail
from qlora_client.own_daemon import ServingDaemon
from qlora_engine.job.errors import DaemonUnavailable, JobRejected
from qlora_engine.job.events import Event
from qlora_engine.job.folder import Home, RunFolder

ACCEPT_SECONDS = 120.0


def drop_job(example: Path, home: Home, daemon: ServingDaemon) -> RunFolder:
    """Copy a job folder into the watched folder and wait until it is a job.

    Raises:
        JobRejected: the daemon says what is wrong with it.
        DaemonUnavailable: the daemon ends or does not take it.
    """
    # A name of its own, by which the service log can be asked for it.
    name = f"{example.name}-{secrets.token_hex(3)}"
    hidden = home.jobs / f".{name}"  # copied under a name that the daemon leaves alone, then whole at once
    check = daemon.watch()
    with Tail(home.service_log, at_end=True) as log:
        try:
            shutil.copytree(example, hidden, ignore=shutil.ignore_patterns("__pycache__"))
            hidden.rename(home.jobs / name)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)
        end = time.monotonic() + ACCEPT_SECONDS
        while time.monotonic() < end:
            for event in log.events():
                if job_id := accepted_job(event, name):
                    return home.run(job_id)
            check()
            time.sleep(LOOK_SECONDS)
    raise DaemonUnavailable(
        f"The daemon did not take {name} within {ACCEPT_SECONDS:g} seconds.",
        where=str(home.jobs / name),
        remedy="See `qlora logs` for what it does instead.",
    )


def accepted_job(event: Event, name: str) -> str | None:
    """The id of the job that a dropped file or folder became, where this event says so.

    Raises:
        JobRejected: this event says that it was rejected.
    """
    if event["event"] == "job.accepted" and Path(str(event.get("source"))).name == name:
        return str(event["job"])
    if event["event"] == "file.rejected" and Path(str(event.get("path"))).name == name:
        raise JobRejected(str(event.get("what")), where=event.get("where"), remedy=event.get("remedy"))
    return None
