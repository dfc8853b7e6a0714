"""Waiting in a terminal until a job has ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import islice

from qlora_client.api import Client
from qlora_client.groups import Group
from qlora_engine.job.errors import Exit
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_engine.job.sweep import label
from qlora_engine.job.wording import describe

# How a program that waited learns what became of the job.
OUTCOME = {State.DONE: Exit.OK, State.FAILED: Exit.SOFTWARE, State.CANCELLED: Exit.TEMPFAIL}


def wait_until_ended(client: Client, job_id: str, say: Callable[[str], None]) -> JobRecord:
    """Say each change of the job's state until it is final; Ctrl-C leaves the job alone.

    Raises:
        NoSuchJob: it vanishes.
    """
    said = 0
    while True:
        said += _say_changes(client, job_id, say, passing_over=said)
        if (record := client.job(job_id)).is_final:  # else it was retried meanwhile
            return record


def wait_until_group_ended(client: Client, group: Group, say: Callable[[str], None]) -> Group:
    """`wait_until_ended` for every job of a sweep, in the order in which they run; how they stand in the end."""
    said: Counter[str] = Counter()
    while True:
        for job in sorted((one.job for one in group.members), key=lambda job: job.created):
            name = label(job.settings)
            said[job.id] += _say_changes(
                client,
                job.id,
                lambda text, name=name: say(f"{name}: {text}"),  # type: ignore[misc]
                passing_over=said[job.id],
            )
        if (ended := client.group(group.id)).is_final:  # else one was retried while others were waited for
            return ended


def _say_changes(client: Client, job_id: str, say: Callable[[str], None], *, passing_over: int) -> int:
    """Say each change of the job's state until it is final, but so many that were said before; how many were said."""
    changes = (event for event in client.events(job_id, follow=True) if event["event"] == "job.state")
    said = 0
    try:
        for change in islice(changes, passing_over, None):
            say(describe(change))
            said += 1
    except KeyboardInterrupt:
        say(f"The job goes on. Watch it: qlora logs -f {job_id}")
        raise
    return said


def group_exit_code(group: Group) -> int:
    """70 if a job failed, 75 if a person cancelled one, else 0: that the poor ones are ended is how a sweep goes."""
    codes = {exit_code(one.job) for one in group.members if one.job.outdone_by is None}
    return int(Exit.SOFTWARE) if Exit.SOFTWARE in codes else max(codes, default=int(Exit.OK))


def exit_code(record: JobRecord) -> int:
    """0 for a job that is done, 70 for one that failed, 75 for one that was cancelled."""
    return int(OUTCOME[record.state])
