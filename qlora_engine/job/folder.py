"""The home folder and the run folder: where everything lies."""

from __future__ import annotations

import itertools
import re
import secrets
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

NAME_AT = len("20261122-143501-")  # where the job's name begins in its id
JOB_ID = re.compile(r"\d{8}-\d{6}-[a-z0-9][a-z0-9-]{0,63}")
_LONGEST_ID = 80  # characters, as above
GROUP_NAME = 30  # characters of a sweep's name in its id, which leaves room for what its jobs have of their own
APPEARING = ".group-"
USUAL_HOME = Path("~/qlora")


def absolute(named: Path | str) -> Path:
    """The path from the root, with `~` and `~user` expanded.

    Raises:
        ValueError: there is no such user, or nobody knows the home of this one.
    """
    try:
        return Path(named).expanduser().absolute()
    except RuntimeError:
        raise ValueError(f"nobody knows whose home the ~ in {str(named)!r:.80} is") from None


@dataclass(frozen=True)
class Home:
    """QLORAD_HOME and the fixed places in it."""

    path: Path

    @cached_property
    def jobs(self) -> Path:
        """The watched folder."""
        return self.path / "jobs"

    @cached_property
    def taking(self) -> Path:
        """Claimed files that are not yet a job or rejected; finished after a restart."""
        return self.jobs / ".taking"

    @cached_property
    def accepted(self) -> Path:
        """Files and folders that became jobs, under the job's id."""
        return self.jobs / "accepted"

    @cached_property
    def rejected(self) -> Path:
        """Files that are not valid jobs, each with a text beside it."""
        return self.jobs / "rejected"

    @cached_property
    def runs(self) -> Path:
        """One folder a job."""
        return self.path / "runs"

    @cached_property
    def models(self) -> Path:
        """Models added by `qlora models add`."""
        return self.path / "models"

    @cached_property
    def tokens(self) -> Path:
        """Tokenized data, made anew when it is deleted."""
        return self.path / "cache" / "tokens"

    @cached_property
    def measured(self) -> Path:
        """What was measured on this machine, measured anew when it is deleted."""
        return self.path / "cache" / "measured.json"

    @cached_property
    def kernels(self) -> Path:
        """What MLX has compiled on this machine, compiled anew when it is deleted."""
        return self.path / "cache" / "kernels"

    @cached_property
    def targets(self) -> Path:
        """Names of whom messages may go to, and their addresses; 0600."""
        return self.path / "notify.toml"

    @cached_property
    def logs(self) -> Path:
        """The service log."""
        return self.path / "logs"

    @cached_property
    def service_log(self) -> Path:
        """JSON lines of the daemon and what its jobs report."""
        return self.logs / "qlorad.jsonl"

    @cached_property
    def state(self) -> Path:
        """Socket, append-only file and locks; 0700."""
        return self.path / "state"

    @cached_property
    def daemon_lock(self) -> Path:
        """Held by the daemon that serves this home."""
        return self.state / "daemon.lock"

    @cached_property
    def status(self) -> Path:
        """How the daemon and its children stand, as it last said."""
        return self.state / "status.json"

    @cached_property
    def pause(self) -> Path:
        """Whether the queue is paused."""
        return self.state / "pause.json"

    @cached_property
    def socket(self) -> Path:
        """The embedded server's unix socket."""
        return self.state / "valkey.sock"

    def run(self, job_id: str) -> RunFolder:
        """The run folder of a job, whether it exists or not."""
        return RunFolder(self.runs / job_id)

    def make(self) -> None:
        """Create every folder that is missing."""
        for folder in (self.path, self.jobs, self.taking, self.accepted, self.rejected, self.runs, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.state.chmod(0o700)


@dataclass(frozen=True)
class RunFolder:
    """`runs/<job id>/`: the job as submitted and resolved, its record, its events and its results."""

    path: Path

    @property
    def id(self) -> str:
        """The job's id."""
        return self.path.name

    @property
    def spec(self) -> Path:
        """The resolved job: every default written out, paths absolute, hashes of the data."""
        return self.path / "spec.json"

    @property
    def state(self) -> Path:
        """The record; only the daemon writes it."""
        return self.path / "state.json"

    @property
    def runtime(self) -> Path:
        """What was measured or found when the job first started, reused when it resumes."""
        return self.path / "runtime.json"

    @property
    def events(self) -> Path:
        """Everything of note that happened, one JSON object a line."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """One `training.step` event a micro-batch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Complete checkpoints; a partial one is never visible here."""
        return self.path / "checkpoints"

    @property
    def adapters(self) -> Path:
        """The result, in mlx_lm's format."""
        return self.path / "adapters"

    @property
    def model(self) -> Path:
        """The result of a job that fuses, an MLX model; complete or absent."""
        return self.path / "model"

    @property
    def gguf(self) -> Path:
        """The result of a job that exports: a GGUF file and what goes with it; complete or absent."""
        return self.path / "gguf"

    @property
    def temporary(self) -> Path:
        """An attempt's own folder for temporary files; its worker removes it."""
        return self.path / ".tmp"

    @property
    def making(self) -> Path:
        """Where such a result is made."""
        return self.temporary / "making"

    @property
    def output(self) -> Path:
        """What the training process printed outside its events: library warnings, crash dumps."""
        return self.path / "output.log"

    @property
    def ladder(self) -> Path:
        """How training was laid out anew after it ran out of memory."""
        return self.path / "ladder.json"

    @property
    def pulse(self) -> Path:
        """The phase that the training process is in and how far it has come; rewritten in place."""
        return self.path / "pulse.json"

    @property
    def stacks(self) -> Path:
        """Where the training process writes the stacks of its threads when it is asked to."""
        return self.path / "stacks.txt"

    @property
    def report(self) -> Path:
        """The report: one file, to be opened without a network."""
        return self.path / "report.html"

    def exit(self, attempt: int) -> Path:
        """How an attempt's training process ended, as its worker saw it."""
        return self.path / f"exit-{attempt}.json"

    def job_file(self) -> Path | None:
        """The job file as submitted, whichever of the three formats it has."""
        found = [self.path / f"job{suffix}" for suffix in (".yaml", ".json", ".toml")]
        return next((path for path in found if path.exists()), None)


def new_job_id(name: str, now: datetime, taken: Path, also: Callable[[str], bool] = lambda _: False) -> str:
    """An id that sorts by time and can be read: `20261122-143501-sql-assistant`.

    Args:
        name: what the job calls itself; reduced to lower-case letters, digits and hyphens.
        now: the time of acceptance.
        taken: the folder of runs; an id that exists there, or is being made, gets a random suffix.
        also: whether an id is taken that is no run folder.
    """
    job_id = f"{now:%Y%m%d-%H%M%S}-{slug(name)}"
    while (taken / job_id).exists() or unfinished_run(taken, job_id).exists() or also(job_id):
        job_id = f"{now:%Y%m%d-%H%M%S}-{slug(name)[:56]}-{secrets.token_hex(3)}"
    return job_id


def member_ids(group: str, labels: Sequence[str]) -> list[str]:
    """The ids of a sweep's jobs: its own id, and what each has of its own: `…-sql-sweep-learning-rate-1e-4-rank-8`.

    Args:
        group: of the sweep, from a name of at most `GROUP_NAME` characters.
        labels: of the jobs; where two are the same once reduced, the later gets its number, or the next that is free.
    """
    own = [f"{group}-{slug(label)}"[:_LONGEST_ID].rstrip("-") for label in labels]
    found: dict[str, None] = {}
    for number, job_id in enumerate(own, 1):
        numbered = (f"{job_id[: _LONGEST_ID - len(end)]}{end}" for end in map("-{}".format, itertools.count(number)))
        # A number may make what another label is by itself: `epochs=1` with -3 is `epochs=1.3`.
        free = (one for one in numbered if one not in found and one not in own)
        found[next(free) if job_id in found else job_id] = None
    return list(found)


def unfinished_run(runs: Path, job_id: str) -> Path:
    """Where a run folder, or those of a sweep, are made, before they appear under their own names."""
    return runs / f".tmp-{job_id}"


def appearing_group(runs: Path, group: str) -> Path:
    """The run folders of a sweep that is accepted, until each has moved to its place beside this."""
    return runs / f"{APPEARING}{group}"


def slug(name: str) -> str:
    """`name` in the letters that are safe in file names and terminals; `job` when nothing is left."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:56].strip("-") or "job"
