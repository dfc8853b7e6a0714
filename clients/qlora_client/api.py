"""The client for Python: submit jobs, read what is known of them, follow and cancel them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from qlora_client.columns import columns_of
from qlora_client.follow import LOOK_SECONDS, LastLine, follow_job, read_events
from qlora_client.groups import Group, find_group
from qlora_client.home import expanded
from qlora_client.progress import Progress, after, progress_of
from qlora_client.records import find_job, list_records, load_record
from qlora_engine.job.errors import DaemonUnavailable, Exit, JobRejected, NoJobFile, NoSuchJob, QloradError
from qlora_engine.job.events import Event
from qlora_engine.job.folder import NAME_AT, Home, RunFolder
from qlora_engine.job.hindrance import hindrances_in
from qlora_engine.job.jobfile import SUFFIXES, as_yaml, must_be_there, parse, read_job_file
from qlora_engine.job.overrides import applied
from qlora_engine.job.pause import Pause
from qlora_engine.job.record import JobRecord, utc_now
from qlora_engine.job.states import State
from qlora_engine.job.text import plain
from qlora_engine.job.turn import why_it_waits
from qlora_worker import letters
from qlora_worker.letters import Letter
from qlora_worker.messages import Kind, Submission
from qlora_worker.requests import Requests, new_key
from qlora_worker.settings import Settings

# The daemon answers a submission when the job is examined, which may ask the model hub.
SUBMIT_SECONDS = 660.0
ANSWER_SECONDS = 30.0


class JobHasEnded(QloradError):
    """The job is done or failed, so that there is nothing to cancel."""

    exit_code = Exit.DATAERR


class WaitEnded(QloradError):
    """The job was not final when the time to wait was over; it goes on."""

    exit_code = Exit.TEMPFAIL


@dataclass(frozen=True)
class LeftBehind:
    """A submission that lies in the watched folder, since the daemon did not answer for this reason."""

    path: Path
    reason: DaemonUnavailable


class Client:
    """A home's jobs. Reading works without the daemon; `submit` and `cancel` ask it.

    Wherever an `id_part` is asked for, any part of the job's id will do that no other id contains, and of several ids
    that one whose name begins with it.

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

    def submit(
        self,
        path: str | Path,
        *,
        overrides: Mapping[str, object] | Sequence[str] = (),
        again: bool = False,
        timeout: float = SUBMIT_SECONDS,
    ) -> str:
        """Hand a job file to the daemon; relative paths in it start from its folder.

        Args:
            path: a job file, or a folder that holds job.yaml, job.yml, job.json or job.toml.
            overrides: values in place of the file's: `{"lora_parameters.rank": 16}`, or as `--set` takes them.
            again: even if a job just like it has not ended yet.
            timeout: seconds to wait for the daemon's answer.

        Returns:
            The job's id, or that of a sweep, for `group`; all of it is then on disk and will not be lost.

        Raises:
            JobRejected: it is not a valid job; says what, where, and the remedy.
            DaemonUnavailable: the daemon does not run or does not answer.
        """
        submission = _submission(Path(path), as_overrides(overrides), again=again)
        return self._ask_to_run(Letter(key=new_key(), submission=submission), timeout)

    def submit_or_leave(
        self,
        path: str | Path,
        *,
        overrides: Mapping[str, object] | Sequence[str] = (),
        again: bool = False,
        timeout: float = SUBMIT_SECONDS,
    ) -> str | LeftBehind:
        """`submit`, but where the daemon does not answer the job is left in the watched folder.

        The daemon takes it from there when it runs. Both ways carry the same key: a submission that was only
        not answered in time runs once.

        Returns:
            The job's id, or where the submission lies and why.

        Raises:
            JobRejected: it is not a valid job.
            OSError: the watched folder cannot be written.
        """
        submission = _submission(Path(path), as_overrides(overrides), again=again)
        return self.send_or_leave(Letter(key=new_key(), submission=submission), timeout)

    def fuse(
        self,
        id_part: str,
        *,
        best: bool = False,
        dequantize: bool = False,
        add_as: str | None = None,
        again: bool = False,
        timeout: float = SUBMIT_SECONDS,
        **wishes: object,
    ) -> str:
        """Make one model of a job's adapters and its base, as a job of the queue; it begins when that job has ended.

        Args:
            id_part: of the id of the job that trained, or trains.
            best: take the checkpoint of the lowest validation loss instead of the job's result.
            dequantize: make the model 16 bits wide.
            add_as: put it among the home's models under this name.
            again: even if just this is on its way already.
            timeout: seconds to wait for the daemon's answer.
            wishes: keys that every job file has: `name`, `priority`, `urgent`, `hold`, `after`, `not_before`, `notify`.

        Returns:
            The id of the job that fuses; the model will be in `run(id).model`.

        Raises:
            NoSuchJob: no job, or more than one, has such an id.
            JobRejected: it cannot be fused, or a wish is no such key; says what, and the remedy.
            DaemonUnavailable: the daemon does not run or does not answer.
        """
        keys = {"weights": "best" if best else None, "dequantize": dequantize or None, "add_as": add_as, **wishes}
        return self._ask_to_run(self.fusing(id_part, "fuse", keys, again=again), timeout)

    def export(
        self,
        id_part: str,
        *,
        best: bool = False,
        again: bool = False,
        timeout: float = SUBMIT_SECONDS,
        **wishes: object,
    ) -> str:
        """`fuse`, but into one GGUF file in 16 bits, with a Modelfile for Ollama beside it: `run(id).gguf`.

        Args, returns and raises as `fuse` does; models of other architectures than llama and mistral are rejected.
        """
        keys = {"export": "gguf", "weights": "best" if best else None, **wishes}
        return self._ask_to_run(self.fusing(id_part, "export", keys, again=again), timeout)

    def fusing(self, id_part: str, what: str, keys: Mapping[str, object], *, again: bool = False) -> Letter:
        """The submission of a job that fuses, not sent. Raises `NoSuchJob`.

        Args:
            id_part: of the id of the job that trained.
            what: the first word of the new job's name.
            keys: of the job file beside `fuse`; None for those that are left out.
            again: even if just this is on its way already.
        """
        run = self.run(id_part)
        text = json.dumps(
            {"fuse": run.id, **{key: value for key, value in keys.items() if value is not None}}, indent=2
        )
        name = f"{what}-{run.id[NAME_AT:]}.json"
        submission = Submission(text=text, name=name, base=str(run.path), again=again)
        return Letter(key=new_key(), submission=submission)

    def send_or_leave(self, letter: Letter, timeout: float = SUBMIT_SECONDS) -> str | LeftBehind:
        """Hand a submission over, or leave it in the watched folder. Returns and raises as `submit_or_leave` does."""
        try:
            return self._ask_to_run(letter, timeout)
        except DaemonUnavailable as reason:
            return LeftBehind(letters.leave(self.home, letter), reason)

    def _ask_to_run(self, letter: Letter, timeout: float) -> str:
        payload = letter.submission.model_dump()
        answer = Requests.of(self.settings).ask("submit", payload, timeout, key=letter.key)
        try:
            answer.raise_if_refused()
        except JobRejected as error:
            error.where = _place_of(error.where, letter.submission)
            raise
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

    def group(self, id_part: str) -> Group:
        """A sweep, its jobs ranked by their lowest validation losses.

        Raises:
            NoSuchJob: no sweep has such an id, or a job has it, or more than one does.
        """
        if (found := find_group(self.home, id_part)) is not None:
            return found
        run = find_job(self.home, id_part)
        raise NoSuchJob(
            f"{run.id} is a job, and no sweep.", where=str(run.path), remedy=f"`qlora show {run.id}` shows it."
        )

    def waits_for(self, id_part: str) -> str | None:
        """What a queued job waits for, in words; None for a job in another state. Raises `NoSuchJob`."""
        job = self.job(id_part)
        if job.state is not State.QUEUED:
            return None
        pause = Pause.load(self.home.pause)
        return why_it_waits(job, self.jobs(), pause, utc_now(), hindrances_in(self.home))

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

    def metrics(self, id_part: str, kind: Literal["step", "report", "validation"] = "step") -> dict[str, list[Any]]:
        """The job's numbers as columns: `pandas.DataFrame(client.metrics("sql"))`.

        Args:
            id_part: of the job's id.
            kind: a row for each micro-batch, report or validation; of what: docs/events.md, `training.step`,
                `training.report` and `validation`.

        Returns:
            By field, values in the order of steps; a step that was done twice counts as it was done last. Losses
            are in nats, memory in 10^9 bytes, times in seconds.

        Raises:
            NoSuchJob: no job, or more than one, has such an id.
        """
        run = self.run(id_part)
        if kind == "step":
            return columns_of(event for event in read_events(run.metrics) if event["event"] == "training.step")
        name = "validation" if kind == "validation" else "training.report"
        wanted = (event for event in read_events(run.events) if event["event"] == name)
        return columns_of(event for event in wanted if event.get("split", "valid") == "valid")

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
        answer = Requests.of(self.settings).ask("cancel", {"job": record.id}, ANSWER_SECONDS)
        answer.raise_if_refused()
        return self.job(record.id)

    def hold(self, id_part: str) -> JobRecord:
        """Let the job wait for a person; a running one stops at a checkpoint.

        Raises:
            NoSuchJob: no job, or more than one, has such an id.
            WrongState: the job has ended.
            DaemonUnavailable: the daemon does not run or does not answer.
        """
        return self._ask("hold", id_part)

    def release(self, id_part: str) -> JobRecord:
        """Let a held job go on; it waits no longer for jobs that did not end well. Raises as `hold` does."""
        return self._ask("release", id_part)

    def retry(self, id_part: str) -> JobRecord:
        """Let a job that failed or was cancelled go on from its checkpoint. Raises as `hold` does."""
        return self._ask("retry", id_part)

    def prioritise(self, id_part: str, priority: int | None = None, *, urgent: bool | None = None) -> JobRecord:
        """Change a job's place in the queue. Raises as `hold` does.

        Args:
            id_part: of the job's id.
            priority: -100 to 100, the highest goes first; None leaves it.
            urgent: it goes before all others, and the running job stops for it; None leaves it.
        """
        return self._ask("prioritise", id_part, priority=priority, urgent=urgent)

    def pause(self, seconds: float | None = None) -> str:
        """Have nothing start, for a time or until `resume`; the running job stops at a checkpoint.

        Returns:
            What holds now, in words.

        Raises:
            DaemonUnavailable: the daemon does not run or does not answer.
        """
        return self._ask_queue("pause", {"seconds": seconds})

    def resume(self) -> str:
        """End the pause. Returns and raises as `pause` does."""
        return self._ask_queue("resume", {})

    def _ask(self, kind: Kind, id_part: str, **more: object) -> JobRecord:
        record = self.job(id_part)
        answer = Requests.of(self.settings).ask(kind, {"job": record.id, **more}, ANSWER_SECONDS)
        answer.raise_if_refused()
        return self.job(record.id)

    def _ask_queue(self, kind: Kind, payload: dict[str, object]) -> str:
        answer = Requests.of(self.settings).ask(kind, payload, ANSWER_SECONDS)
        answer.raise_if_refused()
        return answer.what or ""

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


def as_overrides(values: Mapping[str, object] | Sequence[str]) -> tuple[str, ...]:
    """Values by key, as `--set` takes them. Raises `JobRejected` for one that JSON does not have."""
    if not isinstance(values, Mapping):
        return tuple(values)
    try:
        return tuple(f"{key}={as_yaml(value)}" for key, value in values.items())
    except (TypeError, ValueError) as error:
        raise JobRejected(
            f"A value cannot be sent: {error}.", remedy="Use numbers, text, lists and dictionaries."
        ) from None


def _submission(path: Path, overrides: tuple[str, ...], *, again: bool) -> Submission:
    file = job_file_in(expanded(path))
    # Read behind links, which are refused only where somebody else may have put them.
    text, job = read_job_file(file.resolve())
    applied(job, overrides)  # what is wrong with them is said here, where they were written
    base = str(file.absolute().parent)
    try:
        base.encode()
    except UnicodeEncodeError:
        raise JobRejected(
            "The path of the job file's folder is not UTF-8, so it cannot be sent.",
            where=ascii(base),
            remedy="Rename the folder, or drop the job folder into the watched folder.",
        ) from None
    return Submission(text=text, name=_sendable(file), base=base, again=again, overrides=overrides)


def _place_of(where: str | None, submission: Submission) -> str | None:
    """Where a person finds what the daemon found wrong, which knows some of it only by its key.

    A job file that was made here, of a job that fuses, is nowhere.
    """
    if where is None or (where == submission.name and not (Path(submission.base) / where).exists()):
        return None
    return applied(parse(submission.text, submission.name), submission.overrides).place_of(where)


def _sendable(file: Path) -> str:
    """The file's name without what no terminal should see, short enough, with its ending."""
    return f"{plain(file.stem, 150) or 'job'}{file.suffix}"


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
    return must_be_there(path)
