"""What travels through Redis is JSON of a known form, and nothing that comes from there is imported or run."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from qlora_engine.job.errors import DataRejected, JobRejected, NoSuchJob, QloradError
from qlora_worker.messages import Answer, OfJob, Request, Submission
from qlora_worker.queue import read_rq_arguments

KEY = "0" * 32


def test_a_request_survives_the_way() -> None:
    """Both sides read the same."""
    request = Request(key=KEY, kind="submit", payload={"text": "model: ü\n", "name": "j.yaml", "base": "/b"})
    assert Request.model_validate_json(request.model_dump_json()) == request
    assert Submission.model_validate(request.payload).text == "model: ü\n"


@pytest.mark.parametrize(
    "payload",
    [
        {"text": "", "name": "../../etc/passwd", "base": "/"},
        {"text": "", "name": "a\nb", "base": "/"},
        {"text": "", "name": "", "base": "/"},
        {"text": "", "name": "a.yaml", "base": "relative"},
        {"text": "x" * 300_001, "name": "a.yaml", "base": "/"},
        {"text": "", "name": "a.yaml", "base": "/", "more": 1},
        {"name": "a.yaml", "base": "/"},
    ],
)
def test_a_submission_out_of_form_is_refused(payload: dict[str, object]) -> None:
    """Its name becomes a file name, its base a folder."""
    with pytest.raises(ValidationError):
        Submission.model_validate(payload)


@pytest.mark.parametrize("job", ["", "..", "20261122-143501-a/../b", "20261122-143501-A", "*"])
def test_only_a_full_id_can_be_cancelled(job: str) -> None:
    """An id becomes a path."""
    with pytest.raises(ValidationError):
        OfJob.model_validate({"job": job})


@pytest.mark.parametrize(
    "arguments",
    [
        None, [], ["20261122-143501-a"], ["20261122-143501-a", "1"], ["../x", 1], ["20261122-143501-a", 0],
        ["20261122-143501-a", 1, 2], ["20261122-143501-a;reboot", 1], ["20261122-143501-a", 1.5], {"a": 1},
    ],
)  # fmt: skip
def test_the_worker_takes_nothing_but_an_id_and_an_attempt(arguments: object) -> None:
    """Whoever can write to Redis must not get further than starting a job that exists."""
    with pytest.raises(ValueError, match="not a job id"):
        read_rq_arguments(arguments)
    assert read_rq_arguments(["20261122-143501-a", 3]) == ("20261122-143501-a", 3)


@pytest.mark.parametrize("kind", [JobRejected, NoSuchJob, DataRejected])
def test_a_refusal_arrives_as_the_error_that_it_was(kind: type[QloradError]) -> None:
    """The client's exit code is the error's."""
    answer = Answer.model_validate_json(Answer.refused(kind("no", where="w", remedy="r")).model_dump_json())
    with pytest.raises(kind) as caught:
        answer.raise_if_refused()
    assert (caught.value.what, caught.value.where, caught.value.remedy) == ("no", "w", "r")


def test_clients_and_daemon_import_neither_mlx_nor_rq() -> None:
    """RQ costs a client a quarter of a second; mlx costs the daemon hundreds of megabytes."""
    check = "import sys, {}; print([m for m in ('mlx', 'mlx_lm', 'transformers', 'rq', 'numpy') if m in sys.modules])"
    for module in ("qlora_client.api", "qlora_daemon.service"):
        result = subprocess.run(
            [sys.executable, "-c", check.format(module)], capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == "[]"


def test_the_worker_imports_no_mlx() -> None:
    """It stays for months beside a training process that needs the memory."""
    check = "import sys, qlora_worker.worker; print([m for m in ('mlx', 'transformers', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
