"""What the demo decides by itself; that it runs is an acceptance test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from qlora_client import models
from qlora_client.demo import EXAMPLE, PROMPTS_SHOWN, learned_enough
from qlora_client.drop import accepted_job
from qlora_client.examples import ExampleMissing, find_example
from qlora_client.models import ConverterFailed, convert, error_from, in_words
from qlora_client.progress import Progress
from qlora_engine.job.errors import Exit, JobRejected

JOB = "20261122-143501-sql-assistant"


@pytest.mark.parametrize(
    ("before", "after", "enough"), [(3.0, 2.0, True), (3.0, 1.0, True), (3.0, 2.1, False), (3.0, 4.0, False)]
)
def test_learning_enough_is_a_third(before: float, after: float, enough: bool) -> None:
    """The demo's exit code says that training works, not only that it ran."""
    assert learned_enough(Progress(first_validation=(0, before), validation=(80, after))) is enough
    assert not learned_enough(Progress())


def test_the_demo_recognises_its_own_job() -> None:
    """Other jobs may be accepted and rejected at the same time."""
    accepted = {"event": "job.accepted", "job": JOB, "source": "/home/a/qlora/jobs/sql-1f"}
    rejected = {
        "event": "file.rejected",
        "path": "/home/a/qlora/jobs/sql-1f",
        "what": "No.",
        "where": "x",
        "remedy": "y",
    }
    assert accepted_job(accepted, "sql-1f") == JOB
    assert accepted_job(accepted, "sql-2e") is None
    assert accepted_job(rejected, "sql-2e") is None
    with pytest.raises(JobRejected, match=r"No\."):
        accepted_job(rejected, "sql-1f")


def test_the_example_is_there_with_prompts() -> None:
    """`qlora demo` needs the example folder and enough held-out prompts in it."""
    example = find_example(EXAMPLE)
    prompts = [json.loads(line) for line in (example / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) >= PROMPTS_SHOWN
    assert all(isinstance(prompt["prompt"], str) for prompt in prompts)
    with pytest.raises(ExampleMissing):
        find_example("nothing")


def converter(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """Put a stand-in for the converter, which takes minutes and a network, in its place."""
    (folder / "stand_in_converter.py").write_text(f"import json, sys\n{body}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(models, "CONVERTER", "stand_in_converter")


def test_adding_a_model_tells_its_stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes without a word look like a hang; the source and the options must arrive as they were given."""
    converter(
        tmp_path,
        monkeypatch,
        "print(json.dumps({'stage': 'download', 'package': 'a 1', 'bytes': 92_000_000}))\n"
        "print('a library prints')\n"
        "print(json.dumps({'stage': 'done', 'path': ' '.join(sys.argv[1:])}))\n",
    )
    told: list[str] = []
    path = convert("-x.gguf", Path("/h"), name="n", replace=True, on_stage=lambda stage: told.append(in_words(stage)))
    assert told == ["downloading a 1 (92 MB)"]
    assert str(path) == "--home /h --json --name n --replace -- -x.gguf"


def test_a_refusal_of_the_converter_keeps_its_words_and_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The converter knows what is wrong; the client must not put other words in its place."""
    refusal = {"error": "ConversionRefused", "what": "Q5_K", "where": "t", "remedy": "r", "exit_code": 65}
    converter(tmp_path, monkeypatch, f"print(json.dumps({refusal}))\nsys.exit(65)")
    with pytest.raises(Exception, match="Q5_K") as raised:
        convert("a", Path("/h"), name=None, replace=False, on_stage=lambda _: None)
    assert type(raised.value).__name__ == "ConversionRefused"
    assert getattr(raised.value, "exit_code", None) == Exit.DATAERR
    assert error_from({"what": "x", "exit_code": 1234}).exit_code is Exit.SOFTWARE


def test_a_converter_that_crashes_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed or broken converter must not look like success, nor show a traceback."""
    converter(tmp_path, monkeypatch, "raise RuntimeError('boom')")
    with pytest.raises(ConverterFailed, match="code 1: RuntimeError: boom") as raised:
        convert("a", Path("/h"), name=None, replace=False, on_stage=lambda _: None)
    assert sys.executable in str(raised.value.where)
