"""`qlora init` in a terminal: what it asks, and what it does with the answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from qlora_client.cli import main
from qlora_client.questions import from_folder
from support.terminal import in_terminal


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    model = tmp_path / "home" / "models" / "smollm2"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "llama"}')
    (model / "model.safetensors").touch()
    monkeypatch.chdir(tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("QLORAD_")}
    return {**kept, "QLORAD_HOME": str(tmp_path / "home"), "TERM": "xterm-256color"}


def test_it_asks_for_what_is_not_given_and_again_for_what_cannot_be(
    environment: dict[str, str], tmp_path: Path
) -> None:
    """Whoever has read nothing gets to a job file that is right; the empty folder of data is named at once."""
    (tmp_path / "empty").mkdir()
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "train.jsonl").write_text('{"text": "one row"}\n')
    with in_terminal(["init", "first"], environment) as terminal:
        terminal.answer("Name of the job [first]: ", "  ")
        terminal.answer("It must not be blank.", "poems")
        terminal.answer("Model [smollm2]: ", "smollm")
        terminal.answer("No model and no folder is called 'smollm'", "~nosuch/model")
        terminal.answer("Nobody knows whose home", "")
        terminal.answer("Data [data]: ", str(tmp_path / "empty"))
        terminal.answer("holds no train.jsonl", "rows")  # beside the job's folder, as the shell sees it
        assert terminal.wait() == 0, terminal.said
    assert "Models that are here: smollm2." in terminal.said
    found = yaml.safe_load((tmp_path / "first" / "job.yaml").read_text())
    assert (found["name"], found["model"], found["data"]) == ("poems", "smollm2", str(rows))


def test_a_question_is_broken_between_words(environment: dict[str, str]) -> None:
    """A terminal would break it anywhere."""
    with in_terminal(["init", "first", "--name", "x"], environment, columns=40) as terminal:
        terminal.wait_for_text("Model [smollm2]: ")
    said = terminal.said.splitlines()
    assert "Models that are here: smollm2. A folder," in said
    assert max(map(len, said)) <= 40


@pytest.mark.parametrize("key", ["C", "D"])
def test_ctrl_c_and_ctrl_d_end_the_questions_and_nothing_is_written(
    environment: dict[str, str], tmp_path: Path, key: str
) -> None:
    """Who changes his mind leaves no half of a job behind, and reads no traceback."""
    with in_terminal(["init", "first", "--name", "x"], environment) as terminal:
        terminal.wait_for_text("Model [smollm2]: ")
        terminal.interrupt() if key == "C" else terminal.type("\x04")
        assert terminal.wait() == 130
    assert "Nothing was done." in terminal.said
    assert not (tmp_path / "first").exists()


@pytest.mark.parametrize("there", ["job.yaml", ""])
def test_a_place_that_cannot_be_is_said_before_anything_is_asked(
    environment: dict[str, str], tmp_path: Path, there: str
) -> None:
    """Three answers for nothing would be the last that somebody gives."""
    place = tmp_path / "first" / there
    place.parent.mkdir(exist_ok=True)
    place.touch()
    with in_terminal(["init", "first"], environment) as terminal:
        assert terminal.wait() == 73
    assert "Name of the job" not in terminal.said
    assert "remedy" in terminal.said


def test_a_model_that_must_be_added_first_is_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise the next command fails."""
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "home"))
    assert main(["init", str(tmp_path / "first"), "--model", "smollm2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "smollm2"
    assert main(["init", str(tmp_path / "first"), "--model", "smollm2", "--force"]) == 0
    assert "qlora models add smollm2" in capsys.readouterr().err


def test_a_path_that_somebody_types_is_one_of_the_shell_or_of_the_job_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows beside the job's folder must not be taken for missing, and sample rows be made in their place."""
    monkeypatch.chdir(tmp_path)
    for folder in ("rows", "job/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "train.jsonl").touch()
    job = Path("job")
    assert from_folder("rows", job, "train.jsonl") == str(tmp_path / "rows")
    assert from_folder("data", job, "train.jsonl") == "data"
    assert from_folder("../rows", job, "train.jsonl") == "../rows"
    assert from_folder("none", job, "train.jsonl") == "none"
