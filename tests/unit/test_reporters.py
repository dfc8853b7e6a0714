"""`report_to`: real services get the numbers, and no service can harm training."""

from __future__ import annotations

import importlib.util
import os
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.events import Event, EventLog
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.services import check_installed, is_installed
from qlora_engine.job.spec import JobSpec
from qlora_engine.training.reporters import Message, Reporters, message_of, run_id

REPORT = {
    "event": "training.report", "step": 10, "loss": 2.5, "learning_rate": 1e-4, "steps_per_second": 2.0,
    "tokens_per_second": 100.0, "tokens": 1000, "peak_gb": 1.5, "gradient_norm": None,
}  # fmt: skip
VALIDATION = {"event": "validation", "step": 10, "split": "valid", "loss": 2.25, "seconds": 3.0}


class Service:
    """Reporters of a run, with the events that they log."""

    def __init__(self, folder: Path, names: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.events: list[Event] = []
        self.run = RunFolder(folder)
        self.reporters = Reporters(JobSpec(report_to=names, project_name="p"), self.run, EventLog([self.events.append]))

    @property
    def failures(self) -> list[tuple[str, str]]:
        return [(event["to"], event["what"]) for event in self.events if event["event"] == "report.failed"]

    def wait_for_failure(self, seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not self.failures and time.monotonic() < end:
            self.reporters.sink({**REPORT})
            time.sleep(0.02)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Writes a package `trackio` of the test's own, for services that misbehave."""

    def write(code: str) -> None:
        folder = tmp_path / "packages" / "trackio"
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(code)
        path = os.pathsep.join([str(folder.parent), *(str(Path(p).absolute()) for p in sys.path if p)])
        monkeypatch.setenv("PYTHONPATH", path)

    return write


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard's event files hold. A record is its length, a checksum, the event, and a checksum."""
    from tensorboardX.proto.event_pb2 import Event as TensorboardEvent

    found: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.glob("events*"), key=lambda path: path.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = TensorboardEvent.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_tensorboard_gets_the_numbers_of_both_attempts(tmp_path: Path) -> None:
    """`report_to: tensorboard` promises the curves under mlx_lm's names; a resumed run goes on in the same place."""
    for step in (10, 20):
        service = Service(tmp_path / "run", "tensorboard")
        service.reporters.sink({**REPORT, "step": step})
        service.reporters.sink({**VALIDATION, "step": step})
        service.reporters.close()
        assert service.failures == []
    found = scalars(tmp_path / "run" / "tensorboard")
    assert found["train_loss"] == [(10, 2.5), (20, 2.5)]
    assert found["val_loss"] == [(10, 2.25), (20, 2.25)]
    assert set(found) >= {
        "learning_rate",
        "iterations_per_second",
        "tokens_per_second",
        "trained_tokens",
        "peak_memory",
    }


def test_a_service_that_fails_is_left_out_once_and_others_go_on(tmp_path: Path, stand_in: Any) -> None:
    """A service's trouble is one event; it never reaches training or another service."""
    stand_in("def init(**_):\n    raise ConnectionError('no route')\n")
    service = Service(tmp_path / "run", "trackio, tensorboard")
    service.wait_for_failure()
    service.reporters.sink({**REPORT, "step": 30})
    service.reporters.close()
    assert service.failures == [("trackio", "no route")]
    assert (30, 2.5) in scalars(tmp_path / "run" / "tensorboard")["train_loss"]


@pytest.mark.parametrize(("reports", "why"), [(1, "did not take the last reports"), (20_000, "does not keep up")])
def test_a_service_that_hangs_holds_up_neither_training_nor_its_end(
    tmp_path: Path, stand_in: Any, reports: int, why: str
) -> None:
    """A dead network may cost the reports, not the run: nothing waits, and the end comes in the time given."""
    stand_in(
        "import atexit, time\natexit.register(time.sleep, 600)\n"
        "def init(**_):\n    print('asks for a password')\n    time.sleep(600)\n"
    )
    service = Service(tmp_path / "run", "trackio")
    process = service.reporters._process
    assert process is not None
    started = time.monotonic()
    for step in range(reports):
        service.reporters.sink({**REPORT, "step": step})
    assert time.monotonic() - started < 5
    service.reporters.close(within=1.0)
    assert time.monotonic() - started < 8
    assert process.returncode is not None
    assert len(service.failures) == 1
    assert why in service.failures[0][1]


def test_a_process_that_is_killed_is_one_failure(tmp_path: Path, stand_in: Any) -> None:
    """The system may kill it for memory; training goes on."""
    stand_in("import time\ndef init(**_):\n    time.sleep(600)\n")
    service = Service(tmp_path / "run", "trackio")
    process = service.reporters._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    service.wait_for_failure()
    service.reporters.close()
    assert len(service.failures) == 1
    assert "its process has ended" in service.failures[0][1]


def test_what_a_service_prints_stays_out_of_our_output(
    tmp_path: Path, stand_in: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """`--json` promises JSON lines and nothing else on standard output."""
    stand_in(
        "class Run:\n    def log(self, values, step): print('logged', step)\n    def finish(self): pass\n"
        "def init(**_): return Run()\n"
    )
    service = Service(tmp_path / "run", "trackio")
    service.reporters.sink({**REPORT})
    service.reporters.close()
    assert service.failures == []
    assert capfd.readouterr().out == ""
    assert (service.run.path / "report_to.log").read_text() == "logged 10\n"


def test_without_report_to_nothing_is_started(tmp_path: Path) -> None:
    """Most jobs name no service."""
    reporters = Reporters(JobSpec(), RunFolder(tmp_path), EventLog([]))
    reporters.sink({**REPORT})
    reporters.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["wandb", "swanlab", "trackio"])
def test_a_service_that_is_installed_takes_two_attempts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, each service must take what mlx_lm would send, and go on with its run when ours is resumed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    for variable, value in (("WANDB_MODE", "offline"), ("SWANLAB_MODE", "offline"), ("TRACKIO_DIR", str(tmp_path))):
        monkeypatch.setenv(variable, value)
    for step in (10, 20):
        service = Service(tmp_path / "run", name)
        service.reporters.sink({**REPORT, "step": step})
        service.reporters.sink({**VALIDATION, "step": step})
        service.reporters.close(within=60)
        assert service.failures == []


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (
            REPORT,
            Message(
                10,
                {
                    "train_loss": 2.5, "learning_rate": 1e-4, "iterations_per_second": 2.0,
                    "tokens_per_second": 100.0, "trained_tokens": 1000.0, "peak_memory": 1.5,
                },
            ),
        ),
        (VALIDATION, Message(10, {"val_loss": 2.25, "val_time": 3.0})),
        ({**VALIDATION, "split": "test", "loss": float("nan")}, Message(10, {"test_time": 3.0})),
        (
            {"event": "training.done", "step": 10, "loss_before": None, "loss_after": 1.5},
            Message(10, {"val_loss_after": 1.5}),
        ),
        ({"event": "checkpoint.saved", "step": 10}, None),
    ],
)  # fmt: skip
def test_an_event_becomes_the_numbers_that_mlx_lm_reports(event: Event, expected: Message | None) -> None:
    """Runs of mlx_lm and of qlorad must lie in one plot; a number that is none must not break a service."""
    assert message_of(event) == expected


def test_a_run_has_one_id_at_a_service(tmp_path: Path) -> None:
    """A resumed run goes on with its run; another folder of the same name must not get into it."""
    here, there = RunFolder(tmp_path / "a" / "my run"), RunFolder(tmp_path / "b" / "my run")
    assert run_id(here) == run_id(RunFolder(tmp_path / "a" / "my run"))
    assert run_id(here) != run_id(there)
    assert run_id(here).startswith("my-run-")


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job must not find out after hours that its reports go nowhere."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(JobRejected) as refused:
        check_installed(JobSpec(report_to="swanlab"))
    assert f"{sys.executable} -m pip install swanlab" in str(refused.value)


def test_a_folder_of_that_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb leaves a folder `wandb` where it ran, which Python would take for a package."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert not is_installed("wandb")
