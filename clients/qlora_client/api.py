"""The client for Python: submit jobs, read what is known of them, follow and cancel them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from qlora_client.follow import LOOK_SECONDS, LastLine, follow_job, read_events
from qlora_client.progress import Progress, after, progress_of
from qlora_client.records import find_job, list_records, load_record
from qlora_engine.job.errors import Exit, JobRejected, QloradError
from qlora_engine.job.events import Event
from qlora_engine.job.folder import Home, RunFolder
from qlora_engine.job.jobfile import SUFFIXES, read_job_file
from qlora_engine.job.record import JobRecord
from qlora_engine.job.states import State
from qlora_worker.queue import Requests
from qlora_worker.settings import Settings

# The daemon answers a submission when the job is examined, which may ask the model hub.
SUBMIT_SECONDS = 660.0
CANCEL_SECONDS = 30.0


class NoJobFile(JobRejected):
    """There is no job file where one was named."""

    exit_code = Exit.NOINPUT


class JobHasEnded(QloradError):
    """The job is done or failed, so that there is nothing to cancel."""

    exit_code = Exit.DATAERR


class WaitEnded(QloradError):
    """The job was not final when the time to wait was over; it goes on."""

    exit_code = Exit.TEMPFAIL


class Client:
    """A home's jobs. Reading works without the daemon; `submit` and `cancel` ask it.

    Wherever an `id_part` is asked for, any part of the job's id will do that no other id contains.

    Args:
        home: QLORAD_HOME; by default that of the environment, else `~/qlora`.

    Raises:
        BadSetting: a `QLORAD_*` variable cannot be used.
    """

    def __init__(self, home: Path | None = None) -> None:
        settings = Settings.read()
        self.settings = settings.model_copy(update={"home": Path(home)}) if home is not None else settings

    @property
    def home(self) -> Home:
        """The home's folders."""
        return self.settings.folders

    def submit(self, path: str | Path, *, timeout: float = SUBMIT_SECONDS) -> str:
        """Hand a job file to the daemon; relative paths in it start from its folder.

        Args:
            path: a job file, or a folder that holds job.yaml, job.yml, job.json or job.toml.
            timeout: seconds to wait for the daemon's answer.

        Returns:
            The job's id; the job is then on disk and will not be lost.

        Raises:
            JobRejected: it is not a valid job; says what, where, and the remedy.
            DaemonUnavailable: the daemon does not run or does not answer.
        """
        file = job_file_in(Path(path).expanduser())
        # Read behind links, which are refused only where somebody else may have put them.
        text, _ = read_job_file(file.resolve())
        payload = {"text": text, "name": file.name, "base": str(file.absolute().parent)}
        answer = Requests.of(self.settings).ask("submit", payload, timeout)
        answer.raise_if_refused()
        if answer.job is None:
            raise JobRejected("The daemon accepted the job but did not name it.", remedy="Look with `qlora ls`.")
        return answer.job

    def jobs(self, limit: int | None = None) -> list[JobRecord]:
        """All jobs, or the newest `limit`, newest first. One that vanishes meanwhile is left out."""
        return list_records(self.home, limit).jobs

    def run(self, id_part: str) -> RunFolder:
        """The job's run folder: its files, adapters and events.

        Raises:
            NoSuchJob: no job, or more than one, has such an id; names those that there are.
        """
        return find_job(self.home, id_part)

    def job(self, id_part: str) -> JobRecord:
        """The job's record. Raises `NoSuchJob`."""
        return load_record(self.run(id_part))

    def events(self, id_part: str, *, follow: bool = False) -> Iterator[Event]:
        """What happened to the job, oldest first.

        Args:
            id_part: of the job's id.
            follow: go on, with the newest `training.step` as it changes, until the job is final.

        Raises:
            NoSuchJob: at once, not at the first event.
        """
        run = self.run(id_part)
        return follow_job(run) if follow else read_events(run.events)

    def progress(self, id_part: str) -> Progress:
        """How far the job is by now: step, losses, speed, memory, time left. Raises `NoSuchJob`."""
        run = self.run(id_part)
        so_far = progress_of(read_events(run.events))
        newest = LastLine(run.metrics).event()
        return after(so_far, newest) if newest else so_far

    def cancel(self, id_part: str) -> JobRecord:
        """Ask the daemon to cancel the job. A running one stops at a checkpoint: `wait` for it.

        Returns:
            The record after the request, which may still be `stopping`.

        Raises:
            NoSuchJob: no job, or more than one, has such an id.
            JobHasEnded: it is done or failed.
            DaemonUnavailable: the daemon does not run or does not answer.
        """
        record = self.job(id_part)
        if record.state is State.CANCELLED:
            return record
        if record.is_final:
            raise JobHasEnded(
                f"The job {record.id} is {record.state} already.",
                where=str(self.home.run(record.id).path),
                remedy=f"Nothing needs to be done; `qlora show {record.id}` shows its result.",
            )
        answer = Requests.of(self.settings).ask("cancel", {"job": record.id}, CANCEL_SECONDS)
        answer.raise_if_refused()
        return self.job(record.id)

    def wait(self, id_part: str, timeout: float | None = None) -> JobRecord:
        """Wait until the job is final.

        Raises:
            NoSuchJob: no job, or more than one, has such an id, or it vanishes.
            WaitEnded: it was not final within `timeout` seconds.
        """
        run = self.run(id_part)
        end = None if timeout is None else time.monotonic() + timeout
        while not (record := load_record(run)).is_final:
            if end is not None and time.monotonic() >= end:
                raise WaitEnded(
                    f"The job {run.id} is still {record.state} after {timeout:g} seconds.",
                    where=str(run.path),
                    remedy=f"Watch it with `qlora logs -f {run.id}`.",
                )
            time.sleep(LOOK_SECONDS)  # the record is a file; see `follow.LOOK_SECONDS`
        return record


def job_file_in(path: Path) -> Path:
    """The job file that a path names: itself, or job.yaml (or its kin) in a folder. Raises `NoJobFile`."""
    if path.is_dir():
        for suffix in SUFFIXES:
            if (path / f"job{suffix}").is_file():
                return path / f"job{suffix}"
        raise NoJobFile(
            f"The folder {path} holds no job file.",
            where=str(path.absolute()),
            remedy="Name the job file itself, or call it job.yaml.",
        )
    if not path.exists():
        raise NoJobFile(
            f"There is no file {path}.",
            where=str(path.absolute()),
            remedy="Check the path; examples/ in the source holds job files that work.",
        )
    return path
