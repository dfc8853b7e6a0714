"""`python -m qlora_engine job.yaml`: the engine without the daemon, as a person meets it."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.job.lock import held, holder_of
from qlora_engine.job.vocabulary import COMMON, EVENTS
from support import tiny

TIME_LIMIT = 90
SHOW_CURSOR, HIDE_CURSOR = b"\x1b[?25h", b"\x1b[?25l"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model and data."""
    folder = tmp_path_factory.mktemp("foreground")
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "data", test=4)
    return folder


@pytest.fixture
def work(made: Path, tmp_path: Path) -> Path:
    """An empty folder to work in, with a job file."""
    write_job(made, tmp_path)
    return tmp_path


def write_job(made: Path, folder: Path, **keys: Any) -> Path:
    return tiny.write_job(folder / "job.yaml", tiny.job(made / "model", made / "data", **keys))


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("QLORAD_")}
    return {
        **kept,
        "QLORAD_HOME": str(folder / "home"),
        "QLORAD_GPU_LOCK": str(folder / "gpu.lock"),
        "QLORAD_REPORT": "0",
        "PYTHONPATH": os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p),
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def engine(work: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qlora_engine", *arguments],
        cwd=work,
        env=environment(work, **more),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=False,
    )


def start(work: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "qlora_engine", *arguments],
        cwd=work,
        env=environment(work),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def events(run: Path, name: str = "events.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def only_run(work: Path) -> Path:
    (run,) = (work / "runs").iterdir()
    return run


class Terminal:
    """A pseudo-terminal with the engine in it, as a shell starts it: in the foreground, in a session of its own."""

    def __init__(self, work: Path, *arguments: str) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.seen = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", CONTROLLING, *arguments],
            cwd=work,
            env=environment(work, TERM="xterm-256color", COLUMNS="120"),
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
        )

    def read_until(self, found: Callable[[bytes], bool]) -> None:
        deadline = time.monotonic() + TIME_LIMIT
        while not found(self.seen):
            assert time.monotonic() < deadline, self.seen.decode(errors="replace")
            ready, _, _ = select.select([self.master], [], [], 0.1)
            if ready:
                self.seen += os.read(self.master, 65536)
            elif self.process.poll() is not None:
                break
        assert found(self.seen), self.seen.decode(errors="replace")

    def press_control_c(self) -> None:
        os.write(self.master, b"\x03")

    def end(self) -> int:
        self.read_until(lambda _: self.process.poll() is not None)
        while select.select([self.master], [], [], 0.2)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.wait(timeout=10)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(timeout=10)
        os.close(self.master)
        os.close(self.slave)


# Takes the terminal as its own, so that Ctrl-C reaches it; then becomes the engine.
CONTROLLING = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "qlora_engine", *sys.argv[1:]])
"""


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(*arguments: Any) -> Terminal:
        opened.append(Terminal(*arguments))
        return opened[-1]

    yield open_terminal
    for each in opened:
        each.close()


def test_control_c_stops_at_a_checkpoint_and_the_same_command_goes_on(
    made: Path, work: Path, terminal: Callable[..., Terminal]
) -> None:
    """A person presses Ctrl-C, gets the terminal back, and later loses nothing."""
    write_job(made, work, iters=3000, save_every=1000)
    first = terminal(work, "job.yaml", "--run", "mine")
    first.read_until(lambda seen: b"train" in seen and b"/3000" in seen and b"loss 0" not in seen)
    assert HIDE_CURSOR in first.seen
    first.read_until(lambda seen: seen.count(b"tokens/s") >= 3)
    first.press_control_c()
    assert first.end() == 75
    text = first.seen.decode()
    assert "SIGINT" in text
    assert "Traceback" not in text
    assert first.seen.count(SHOW_CURSOR) == first.seen.count(HIDE_CURSOR) == 1
    assert termios.tcgetattr(first.slave) == first.before
    assert holder_of(work / "gpu.lock") is None

    stopped = events(work / "mine")[-1]
    assert stopped["event"] == "training.stopped"
    assert max(c.name for c in (work / "mine" / "checkpoints").iterdir()) == f"step-{stopped['step']:06d}"

    second = terminal(work, "job.yaml", "--run", "mine")
    second.read_until(lambda seen: b"step %d" % stopped["step"] in seen and b"tokens/s" in seen)
    second.press_control_c()
    assert second.end() == 75
    steps = [event["step"] for event in events(work / "mine", "metrics.jsonl")]
    assert steps[0] == 1
    assert all(b in (a + 1, stopped["step"] + 1) for a, b in itertools.pairwise(steps))


def test_a_second_control_c_ends_at_once(made: Path, work: Path, terminal: Callable[..., Terminal]) -> None:
    """Also while a long validation runs, and the terminal comes back all the same."""
    write_job(made, work, iters=3000, save_every=1000)
    session = terminal(work, "job.yaml", "--run", "mine")
    session.read_until(lambda seen: b"tokens/s" in seen)
    session.press_control_c()
    session.press_control_c()
    assert session.end() == 75
    assert session.seen.count(SHOW_CURSOR) == session.seen.count(HIDE_CURSOR) == 1
    assert termios.tcgetattr(session.slave) == session.before
    assert b"Traceback" not in session.seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["while libraries load", "while the model loads"])
def test_a_signal_before_training_ends_at_once(work: Path, number: signal.Signals, moment: str) -> None:
    """There is nothing to lose yet, and nobody wants a traceback of an import."""
    process = start(work, "job.yaml", "--run", "mine", "--json")
    deadline = time.monotonic() + TIME_LIMIT
    while holder_of(work / "gpu.lock") is None:
        assert time.monotonic() < deadline
    if moment == "while the model loads":
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "training.started"
    process.send_signal(number)
    _, errors = process.communicate(timeout=TIME_LIMIT)
    # At the very first the signal still does what it does to any program.
    assert process.returncode in ((75,) if moment == "while the model loads" else (75, 130, -number))
    assert "Traceback" not in errors
    assert not (work / "mine" / "checkpoints").exists()


def test_every_line_of_json_is_an_event_of_the_vocabulary(made: Path, work: Path) -> None:
    """Another program reads them: nothing else may stand between, whatever a library prints."""
    tiny.make_model(work / "plain", hidden=64, bits=None)  # quantized on load, which mlx_lm announces with print
    tiny.write_job(work / "job.yaml", tiny.job(work / "plain", made / "data", test=True, test_batches=-1))
    done = engine(work, "job.yaml", "--json")
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    for event in lines:
        assert event.keys() - COMMON.keys() == EVENTS[event["event"]].fields.keys()
        assert event["job"] == only_run(work).name
    names = [event["event"] for event in lines]
    assert names[0] == "training.started"
    assert names[-1] == "training.done"
    phases = [event["phase"] for event in lines if event["event"] == "phase.started"]
    assert phases == ["load", "data", "measure", "train", "test"]
    assert names.count("training.step") == 12
    assert [(e["step"], e["split"]) for e in lines if e["event"] == "validation"] == [
        (0, "valid"), (6, "valid"), (12, "valid"), (12, "test"),
    ]  # fmt: skip
    assert [(e["step"], e["why"]) for e in lines if e["event"] == "checkpoint.saved"] == [
        (0, "start"), (4, "count"), (6, "best"), (8, "count"), (12, "end"),
    ]  # fmt: skip
    files = events(only_run(work)) + events(only_run(work), "metrics.jsonl")
    assert sorted(map(json.dumps, files)) == sorted(map(json.dumps, lines))


def test_the_result_loads_in_mlx_lm(made: Path, work: Path) -> None:
    """`mlx_lm generate --adapter-path` takes the folder as it is."""
    assert engine(work, "job.yaml", "--run", "mine").returncode == 0
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "generate", "--model", str(made / "model"), "--adapter-path",
         str(work / "mine" / "adapters"), "--prompt", "12?", "--max-tokens", "3"],
        env=environment(work), capture_output=True, text=True, timeout=TIME_LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Generation: 3 tokens" in done.stdout


def test_a_finished_run_is_not_trained_again(work: Path) -> None:
    """The same command a second time says that it is done, and its result is the same."""
    assert engine(work, "job.yaml", "--run", "mine").returncode == 0
    before = (work / "mine" / "adapters" / "adapters.safetensors").read_bytes()
    again = engine(work, "job.yaml", "--run", "mine")
    assert again.returncode == 0
    assert "12 steps" in again.stdout
    assert (work / "mine" / "adapters" / "adapters.safetensors").read_bytes() == before
    assert len(events(work / "mine", "metrics.jsonl")) == 12


@pytest.mark.parametrize(
    ("content", "code", "what"),
    [
        (None, 66, "There is no file"),
        ("model: m\niterz: 5\n", 65, "iters"),
        ("model: /nowhere/model\ndata: .\n", 66, "does not exist"),
        ("model: {model}\ndata: /nowhere/data\n", 65, "does not exist"),
        ("model: {model}\ndata: {data}\nnum_layers: 9\n", 66, "num_layers"),
        ("model: {model}\ndata: {data}\nnum_layers: 1\noptimizer_config: {{adam: {{x: 1}}}}\n", 65, "optimizer_config"),
        ("model: {model}\ndata: {data}\nnum_layers: 1\nlora_parameters: {{keys: [nothing]}}\n", 66, "nothing"),
        ("model: {model}\ndata: {data}\nnum_layers: 2\nmax_seq_length: 8\nmask_prompt: true\n", 65, "learn"),
    ],
)
def test_a_mistake_is_one_clear_error(made: Path, work: Path, content: str | None, code: int, what: str) -> None:
    """What, where, the remedy and an exit code; never a traceback."""
    path = work / "mine.yaml"
    if content is not None:
        path.write_text(content.format(model=made / "model", data=made / "data"))
    done = engine(work, "mine.yaml", "--json")
    assert done.returncode == code
    assert what in done.stderr
    assert "where:" in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr
    error = json.loads(done.stdout.splitlines()[-1])
    assert error["exit_code"] == code


def test_a_held_gpu_is_a_clear_refusal(work: Path) -> None:
    """Two trainings at once would both be slow, or neither fit."""
    with held(work / "gpu.lock", {"pid": 4242, "job": "another"}):
        done = engine(work, "job.yaml")
    assert done.returncode == 75
    assert "4242" in done.stderr
    assert "another" in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_a_clear_error(work: Path) -> None:
    """The system's refusals are errors that a person can mend, too."""
    (work / "file").write_text("")
    done = engine(work, "job.yaml", "--run", "file/run")
    assert done.returncode == 71
    assert "file/run" in done.stderr
    assert "remedy:" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_cannot_be_used_is_a_clear_error(work: Path) -> None:
    """`QLORAD_CPU_BLAS` is read where it matters alone."""
    done = engine(work, "job.yaml", QLORAD_CPU_BLAS="/nowhere/libblas.so")
    if sys.platform.startswith("linux"):
        assert done.returncode == 78
        assert "QLORAD_CPU_BLAS" in done.stderr


def test_a_reader_that_goes_away_is_no_crash(made: Path, work: Path) -> None:
    """`… --json | head -1` ends the output, and the run stands for the next command."""
    write_job(made, work, iters=3000)
    process = start(work, "job.yaml", "--run", "mine", "--json")
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "training.started"
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait(timeout=TIME_LIMIT) == 75
    assert errors == ""
    assert events(work / "mine")[-1]["event"] in ("training.stopping", "training.stopped")
    assert holder_of(work / "gpu.lock") is None


def test_a_stop_in_the_last_validation_is_not_the_end(made: Path, work: Path) -> None:
    """The report compares before and after; a run that says it is done has measured both."""
    write_job(made, work, val_batches=-1, steps_per_eval=1000)
    process = start(work, "job.yaml", "--run", "mine", "--json")
    assert process.stdout is not None
    for line in process.stdout:
        if '"training.step"' in line and '"step": 12,' in line:
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=TIME_LIMIT)
    last = events(work / "mine")[-1]
    if process.returncode == 0:
        pytest.skip("the validation was over before the signal came")
    assert process.returncode == 75
    assert last["event"] == "training.stopped"
    assert engine(work, "job.yaml", "--run", "mine").returncode == 0
    done = events(work / "mine")[-1]
    validations = [event for event in events(work / "mine") if event["event"] == "validation"]
    assert [event["step"] for event in validations] == [0, 12]
    assert (done["loss_before"], done["loss_after"]) == (validations[0]["loss"], validations[1]["loss"])
