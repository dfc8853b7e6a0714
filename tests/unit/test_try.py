"""What `qlora try` refuses before any model is loaded, and how it shows what models say."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from qlora_client import answers
from qlora_client.answers import Answer, ask_both
from qlora_client.cli import main
from qlora_client.side_by_side import table
from qlora_engine.job.errors import QloradError
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.lock import held
from qlora_worker.settings import Settings

JOB = "20261122-143501-sql-assistant"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run folder with adapters that nobody reads, in a home and beside a GPU lock of its own."""
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QLORAD_GPU_LOCK", str(tmp_path / "gpu.lock"))
    folder = RunFolder(tmp_path / "home" / "runs" / JOB)
    folder.adapters.mkdir(parents=True)
    (folder.adapters / "adapters.safetensors").touch()
    return folder


def test_a_gpu_in_use_is_an_error_with_its_holder_for_who_will_not_wait(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script must not hang behind a job of hours, and a person must know which job it is."""
    monkeypatch.setattr(answers, "INSTANT", 0.0)
    with held(tmp_path / "gpu.lock", {"pid": os.getpid(), "job": "20261122-150000-other"}):
        assert main(["try", "sql", "Why?", "--now"]) == 75
    error = capsys.readouterr().err
    assert f"The GPU is in use by 20261122-150000-other (process {os.getpid()})." in error
    assert "qlora hold ID" in error


def test_a_run_without_a_checkpoint_is_not_waited_for(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    """Hours behind the GPU lock for an answer that cannot come would be worse than a refusal."""
    (run.adapters / "adapters.safetensors").unlink()
    assert main(["try", "sql", "Why?"]) == 65
    assert "has no adapters yet" in capsys.readouterr().err


@pytest.mark.usefixtures("run")
def test_an_empty_prompt_is_a_wrong_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An empty file piped in must not become an answer to nothing."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["try", "sql", "-"]) == 64
    assert "There is no prompt." in capsys.readouterr().err


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a process that loads no model in the place of the one that asks."""
    (folder / "stand_in_answerer.py").write_text(f"import json, sys\nrequest = json.load(sys.stdin)\n{body}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(answers, "ANSWERER", "stand_in_answerer")


def test_what_the_process_says_is_wrong_is_what_a_person_reads(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error has the remedy; its exit code is the command's."""
    error = {"error": "ModelRejected", "what": "No model.", "where": "/m", "remedy": "Add it.", "exit_code": 66}
    stand_in(tmp_path, monkeypatch, f"print(json.dumps({error!r}))\nsys.exit(66)")
    with pytest.raises(QloradError, match=r"No model\.") as caught:
        ask_both(run, ["Why?"], Settings.read())
    assert (caught.value.exit_code, caught.value.remedy) == (66, "Add it.")


def test_a_process_that_dies_is_one_error(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill for memory has no words of its own."""
    stand_in(tmp_path, monkeypatch, "sys.exit('out of words')")
    with pytest.raises(answers.NoAnswers, match=r"code 1\): out of words"):
        ask_both(run, ["Why?"], Settings.read())


def test_the_lock_lives_as_long_as_the_process_that_asks(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed client may not let a job train beside the model that it has loaded."""
    body = (
        "import fcntl, os\n"
        f"ours = os.stat({str(tmp_path / 'gpu.lock')!r})\n"
        "names = [f'/dev/fd/{n}' for n in os.listdir('/dev/fd')]\n"
        "opened = [n for n in names if os.path.exists(n) and os.path.samestat(os.stat(n), ours)]\n"
        "print(json.dumps(dict(prompt=request['prompts'][0], base=str(len(opened)), adapted='', weights='')))"
    )
    stand_in(tmp_path, monkeypatch, body)
    (answer,) = ask_both(run, ["Why?"], Settings.read())
    assert answer.base == "1"


def test_answers_stand_side_by_side_and_command_no_terminal() -> None:
    """A model may say anything, also what a terminal would obey."""
    console = Console(file=io.StringIO(), width=60)
    console.print(table(Answer("Why?", "I \x1b[31mguess", "", "step-000006")))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "\x1b" not in text
    assert "ADAPTED (step-000006)" in text
    line = next(line for line in text.splitlines() if "I guess" in line)
    assert line.rstrip().endswith("(nothing)")
