"""The first ten minutes, in the order of docs/first-job.md: what is typed, and what must be seen."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from newcomer.window import Unexpected, Window, lines_of

JOB = "my-job"
QUESTION = "Name a fruit that is red."


@dataclass(frozen=True)
class Way:
    """How the ten minutes are gone through.

    Attributes:
        folder: the newcomer's home.
        environment: of his shell.
        install: commands after which `qlora` is found.
        values: that are set in place of the job file's, as `--set` takes them.
        seconds: that any step may take.
        step: of which `qlora top` is looked at.
        closes: at the end the daemon's window is closed; otherwise it is ended with Ctrl-C.
    """

    folder: Path
    environment: dict[str, str]
    install: Sequence[str]
    values: Sequence[str] = ()
    seconds: float = 300.0
    step: int = 1
    closes: bool = False


@dataclass
class Told:
    """What was typed and seen, by the step's name: for the tutorial, and for whoever wonders what went wrong."""

    steps: dict[str, list[str]] = field(default_factory=dict)

    def tell(self, step: str, typed: str, seen: Sequence[str]) -> None:
        """Add a command and what it left on the terminal."""
        self.steps.setdefault(step, []).extend([f"$ {typed}", *seen])


def first_minutes(way: Way, told: Told) -> None:
    """Go through them. Raises `Unexpected` where something else is seen than is promised."""
    first, second = (Window(way.folder, way.environment, way.seconds) for _ in range(2))
    try:
        _prepare(first, way, told)
        _write_a_job(first, told)
        second.run(way.install[-1])  # the environment, in this window as well
        _start_the_daemon(second, told)
        job_id = _submit(first, way, told)
        _look(first, job_id, way, told)
        _ask(first, job_id, told)
        _end(second, way, told)
    finally:
        first.close()
        second.close()


def _prepare(window: Window, way: Way, told: Told) -> None:
    for command in way.install:
        told.tell("install", command, window.run(command))
    _type(window, told, "install", "qlora --version", sees=["qlora "])
    _type(window, told, "doctor", "qlora doctor", sees=["Python", "mlx", "Start one: qlorad", "checks"])
    _type(window, told, "model", "qlora models add smollm2", sees=["Added smollm2"])


def _write_a_job(window: Window, told: Told) -> None:
    questions = ("Name of the job [my-job]: ", "Model [smollm2]: ", "Data [data]: ")
    seen = window.run(f"qlora init {JOB}", answers=[(question, "") for question in questions])
    told.tell("init", f"qlora init {JOB}", seen)
    _must_see([f"{JOB}/job.yaml", f"qlora validate {JOB}"], seen)
    _type(window, told, "job-file", f"cat {JOB}/job.yaml", sees=["model: smollm2"])
    _type(window, told, "validate", f"qlora validate {JOB}", sees=["8 to train on", "It would be accepted."])


def _start_the_daemon(window: Window, told: Told) -> None:
    window.start("qlorad")
    told.tell("daemon", "qlorad", window.wait_for(re.compile(r"worker started, process \d+\r\n")))


def _submit(window: Window, way: Way, told: Told) -> str:
    sets = "".join(f" --set {value}" for value in way.values)
    seen = window.run(f"qlora submit {JOB}{sets}")
    told.tell("submit", f"qlora submit {JOB}", seen)
    job_id = seen[0]
    _must_see([f"-{JOB}", f"Watch it: qlora logs -f {job_id}"], seen)
    return job_id


def _look(window: Window, job_id: str, way: Way, told: Told) -> None:
    window.start("qlora top")
    screen = window.watch(lambda text: _shows_training(text, job_id, way.step))
    window.press("q")
    window.end()
    told.tell("top", "qlora top", screen)
    _type(window, told, "logs", f"qlora logs -f {JOB}", sees=["accepted → queued", "trained ", "running → done"])
    _type(window, told, "ls", "qlora ls", sees=[job_id, "done"])
    _type(window, told, "show", f"qlora show {JOB}", sees=["(100%)", "validation", "adapters"])


def _shows_training(screen: str, job_id: str, step: int) -> bool:
    """Whether `qlora top` shows everything of a job that has come so far; or its end, where a machine is that fast."""
    if f"{job_id}  failed" in screen:
        raise Unexpected(f"the job failed:\n{screen}")
    if any(part not in screen for part in ("qlorad  runs since", job_id, "Queue", "Events", "q quits")):
        return False
    found = re.search(r"step (\d+) of \d+", screen)
    trains = f"{job_id}  running" in screen and found is not None and int(found.group(1)) >= step
    return f"{job_id}  done" in screen or (
        trains and all(part in screen for part in ("loss ", "tokens/s", "of memory"))
    )


def _ask(window: Window, job_id: str, told: Told) -> None:
    _type(window, told, "try", f'qlora try {JOB} "{QUESTION}" --max-tokens 24', sees=["BASE", "ADAPTED"])
    _type(window, told, "report", f"qlora report {JOB}", sees=[f"{job_id}/report.html"])


def _end(window: Window, way: Way, told: Told) -> None:
    if way.closes:
        window.close()
        return
    window.press("\x03")
    said = lines_of(window.end())
    told.steps["stop"] = said
    _must_see(["the daemon has stopped"], said)


def _type(window: Window, told: Told, step: str, command: str, *, sees: Sequence[str]) -> None:
    seen = window.run(command)
    told.tell(step, command, seen)
    _must_see(sees, seen)


def _must_see(wanted: Sequence[str], seen: Sequence[str]) -> None:
    text = "\n".join(seen)
    if missing := [part for part in wanted if part not in text]:
        raise Unexpected(f"{missing} not in:\n{text}")
