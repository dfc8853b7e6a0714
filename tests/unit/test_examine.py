"""Examining a job: every rejection says what is wrong, where, and what to do."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.job.datafiles import digest
from qlora_engine.job.errors import Exit, JobRejected, ModelRejected
from qlora_engine.job.examine import examine, examine_request
from qlora_engine.job.models import models_dir
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.verdict import ExamineRequest, Verdict

TIME_LIMIT = 30


def model_folder(folder: Path) -> Path:
    """What examining looks at: it loads no weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(bytes(8))
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a model, data and a home."""
    model_folder(tmp_path / "model")
    model_folder(models_dir(tmp_path / "home") / "small")
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "valid"):
        (data / f"{name}.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    return tmp_path


def look(here: Path, job: dict[str, Any] | str | bytes, *, base: bool = True, name: str = "job.yaml") -> ResolvedJob:
    path = here / name
    path.write_bytes(job if isinstance(job, bytes) else (job if isinstance(job, str) else json.dumps(job)).encode())
    return examine(path, home=here / "home", base=here if base else None, shown_as=f"~/{name}")


def refused(here: Path, job: dict[str, Any] | str | bytes, **options: Any) -> JobRejected:
    with pytest.raises(JobRejected) as caught:
        look(here, job, **options)
    assert caught.value.what
    assert caught.value.where
    assert caught.value.remedy
    return caught.value


def good(here: Path, **keys: Any) -> dict[str, Any]:
    return {"model": str(here / "model"), "data": str(here / "data")} | keys


def test_a_job_is_resolved(here: Path) -> None:
    """What trains later is what was seen now: absolute paths, defaults, hashes."""
    job = look(here, good(here, iters=5))
    assert job.model_path == str(here / "model")
    assert job.spec.iters == 5
    assert job.spec.batch_size == 4
    assert set(job.data) == {"train", "valid"}
    assert job.data["train"].path == str(here / "data" / "train.jsonl")
    assert job.data["train"].sha256 == digest(here / "data" / "train.jsonl")


def test_relative_paths_start_from_the_job_file(here: Path) -> None:
    """A folder with its job file and data can lie anywhere."""
    (here / "adapters.safetensors").write_bytes(b"x")
    job = look(here, {"model": "model", "data": "data", "resume_adapter_file": "./adapters.safetensors"})
    assert job == look(here, {"model": "./model", "data": "./data/", "resume_adapter_file": "adapters.safetensors"})\
        .model_copy(update={"spec": job.spec})  # fmt: skip
    assert job.model_path == str(here / "model")
    assert job.data["train"].path == str(here / "data" / "train.jsonl")
    assert job.resume_adapter_file == str(here / "adapters.safetensors")


@pytest.mark.parametrize("name", ["adapters.npz", "adapters.pkl", "adapters"])
def test_adapters_in_another_format_are_refused(here: Path, name: str) -> None:
    """Other formats may hold pickles, and a pickle runs what it likes."""
    (here / name).write_bytes(b"x")
    error = refused(here, good(here, resume_adapter_file=name))
    assert ".safetensors" in error.what


def test_a_model_of_the_home_is_known_by_its_name(here: Path) -> None:
    """`model: smollm2` works in every job file."""
    assert look(here, good(here, model="small"), base=False).model_path == str(here / "home" / "models" / "small")


@pytest.mark.parametrize("key", ["data", "resume_adapter_file"])
def test_relative_paths_of_a_file_dropped_alone_are_refused(here: Path, key: str) -> None:
    """It lies in the watched folder, which is not where its author wrote it; the remedy is the command that works."""
    error = refused(here, good(here) | {key: "some/where"}, base=False, name="mine.yaml")
    if key == "data" and "hub" in error.what:
        pytest.skip("`some/where` may be a data set of the hub when the package `datasets` is there")
    assert "relative" in error.what
    assert error.remedy is not None
    assert "qlora submit ~/mine.yaml" in error.remedy


@pytest.mark.parametrize(
    ("job", "what", "where"),
    [
        ("model: m\niterz: 5\n", "`iterz` is not a key", "job.yaml, line 2"),
        ("model: m\niters: many\n", "`iters` is 'many'", "job.yaml, line 2"),
        ("model: m\n  iters: [\n", "not valid YAML", "job.yaml, line 2"),
        (b"\x89PNG\r\n\x1a\n\0\xff", "not text", "job.yaml"),
        (b"x" * 300_000, "300,000 bytes", "job.yaml"),
        ("", "nothing", "job.yaml"),
    ],
)
def test_a_job_file_that_is_wrong(here: Path, job: str | bytes, what: str, where: str) -> None:
    """The mistakes of a job file, each with its line."""
    error = refused(here, job)
    assert what in error.what
    assert str(error.where).startswith(where)


def test_data_that_is_wrong(here: Path) -> None:
    """Missing, empty, and a row that is not JSON, with its line."""
    assert "does not exist" in refused(here, good(here, data=str(here / "none"))).what
    (here / "data" / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{oops\n')
    error = refused(here, good(here))
    assert error.where == f"{here / 'data' / 'train.jsonl'}, line 2"
    (here / "data" / "train.jsonl").write_text("")
    assert "no rows" in refused(here, good(here)).what
    (here / "data" / "train.jsonl").unlink()
    assert "no train.jsonl" in refused(here, good(here)).what


@pytest.mark.parametrize("name", ["nobody-has-this", "/nowhere/model", "./model-2", "a/b/c"])
def test_a_model_that_does_not_exist(here: Path, name: str) -> None:
    """Known without asking the hub: it has no such names."""
    error = refused(here, good(here, model=name))
    assert isinstance(error, ModelRejected)
    assert error.exit_code == Exit.NOINPUT
    assert "does not exist" in error.what
    assert error.where == "job.yaml, line 1"


@pytest.mark.parametrize("text", ["~nobody-here/x", "a\0b", "/a\0b", "x" * 5000, "/" + "x/" * 5000])
@pytest.mark.parametrize("key", ["model", "data", "resume_adapter_file"])
def test_a_text_that_can_be_no_path(here: Path, key: str, text: str) -> None:
    """The system's refusal to look is a wrong value of the job's, not a crash."""
    error = refused(here, good(here) | {key: text})
    assert error.where == "job.yaml, line 1"
    assert error.what.startswith(f"`{key}` is ")
    assert len(str(error)) < 500
    assert "\0" not in str(error)


@pytest.mark.parametrize("missing", ["config", "model"])
def test_a_folder_that_is_no_model(here: Path, missing: str) -> None:
    """Found now, not after an hour in the queue."""
    next((here / "model").glob(f"{missing}*")).unlink()
    assert missing in refused(here, good(here)).what


def test_an_adapter_file_that_does_not_exist(here: Path) -> None:
    """Training would otherwise start from nothing, or fail later."""
    assert "adapter file" in refused(here, good(here, resume_adapter_file=str(here / "none.safetensors"))).what


@pytest.mark.parametrize(
    "line", ["model: nosuch", "data: nosuch", "resume_adapter_file: nosuch.safetensors", "notify: nosuch"]
)
def test_what_is_not_there_is_named_with_its_line(here: Path, line: str) -> None:
    """The file has many lines; and where `--set` says it, the file has none of it."""
    model, data = f"model: {here / 'model'}", f"data: {here / 'data'}"
    lines = [other for other in (model, data) if other.partition(":")[0] != line.partition(":")[0]]
    assert refused(here, "\n".join([*lines, "iters: 1", line])).where == f"job.yaml, line {len(lines) + 2}"
    key, _, value = line.partition(": ")
    (here / "job.yaml").write_text("\n".join(lines))
    request = ExamineRequest(
        job_file=str(here / "job.yaml"), home=str(here / "home"), base=str(here), shown_as="job.yaml",
        overrides=(f"{key}={value}",),
    )  # fmt: skip
    with pytest.raises(JobRejected) as caught:
        examine_request(request)
    assert caught.value.where == f"--set {key}={value}"


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does to a question for a model."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").split("?")[0]
        status, code = {
            "someone/there": (200, ""),
            "someone/gated": (403, "GatedRepo"),
            "someone/broken": (500, ""),
        }.get(name, (401, "RepoNotFound"))
        body = json.dumps({"id": name, "modelId": name, "tags": [], "siblings": []} if status == 200 else {}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: the test's output is for the test."""


@contextlib.contextmanager
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(here: Path, model: str, **environment: str) -> tuple[Verdict, float]:
    """Examine in a process of its own, as the daemon does, with the hub's client told where the hub is."""
    (here / "job.json").write_text(json.dumps(good(here, model=model)))
    request = ExamineRequest(job_file=str(here / "job.json"), home=str(here / "home"), shown_as="job.json")
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "qlora_engine.job.examine"],
        input=request.model_dump_json(),
        capture_output=True,
        text=True,
        env={**kept, "HF_HOME": str(here / "hf"), "HF_HUB_OFFLINE": "0", **environment},
        timeout=TIME_LIMIT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return Verdict.model_validate_json(done.stdout), time.monotonic() - started


@pytest.mark.parametrize(
    ("model", "what"),
    [
        ("someone/there", None),
        ("someone/nowhere", "does not exist"),
        ("someone/gated", "accepted its terms"),
        ("someone/broken", "cannot be asked"),
        ("some one/there", "neither a folder nor a possible hub name"),
    ],
)
def test_the_hub_is_asked_for_a_name_it_may_know(here: Path, model: str, what: str | None) -> None:
    """A mistyped model is refused now; one that exists is fetched when its turn comes."""
    with hub() as address:
        verdict, _ = ask(here, model, HF_ENDPOINT=address)
    if what is None:
        assert verdict.job is not None
        assert verdict.job.model_path is None
    else:
        assert verdict.what is not None
        assert what in verdict.what
        assert verdict.where == f"model: {model}"
        assert verdict.remedy


def test_a_hub_that_cannot_be_reached_is_a_clear_refusal(here: Path) -> None:
    """No traceback and no long wait: a Mac is offline more often than not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    verdict, seconds = ask(here, "someone/there", HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert verdict.what is not None
    assert "cannot be asked" in verdict.what
    assert seconds < 15
    verdict, _ = ask(here, "someone/there", HF_HUB_OFFLINE="1")
    assert verdict.what is not None
    assert "cannot be asked" in verdict.what


def test_a_model_in_the_hubs_cache_needs_no_network(here: Path) -> None:
    """But only when its weights are there: a tokenizer that somebody looked at is not a model."""
    repository = here / "hf" / "hub" / "models--someone--there"
    snapshot = model_folder(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    verdict, _ = ask(here, "someone/there", HF_HUB_OFFLINE="1")
    assert verdict.job is not None
    assert verdict.job.model_path == str(snapshot)
    (snapshot / "model.safetensors").unlink()
    verdict, _ = ask(here, "someone/there", HF_HUB_OFFLINE="1")
    assert verdict.what is not None
    assert "cannot be asked" in verdict.what


def test_examining_imports_neither_mlx_nor_transformers(here: Path) -> None:
    """It runs for every dropped file, also while a job trains."""
    script = (
        "import sys; from pathlib import Path; from qlora_engine.job.examine import examine\n"
        f"examine(Path({str(here / 'job.json')!r}), home=Path({str(here / 'home')!r}), base=None)\n"
        "print([name for name in ('mlx', 'mlx_lm', 'transformers', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    (here / "job.json").write_text(json.dumps(good(here)))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.strip() == "[]"
