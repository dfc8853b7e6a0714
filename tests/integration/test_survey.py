"""A job's data, memory and time are known before it is accepted, and what cannot work is refused then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qlora_client.cli import main as qlora
from qlora_engine import blas
from qlora_engine.job.errors import Exit
from qlora_engine.job.verdict import ExamineRequest, Verdict
from qlora_engine.training.survey import verdict_on
from support import foreground, tiny
from support.service import REAL, Daemon, daemon_in, short_home


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and data of mixed lengths."""
    folder = tmp_path_factory.mktemp("survey")
    tiny.make_model(folder / "model")
    tiny.make_data(folder / "data", train=40)
    return folder


def ask(place: Path, **keys: Any) -> Verdict:
    """The survey's verdict, in this process; `qlora validate` and the daemon start one of its own."""
    job = tiny.write_job(place / "job.json", tiny.job(place / "model", place / "data") | keys)
    request = ExamineRequest(job_file=str(job), home=str(place / "home"), base=str(place), shown_as="job.json")
    return verdict_on(request)


def test_truncation_is_said_with_the_share_of_tokens_lost(place: Path) -> None:
    """Silent truncation is what users of other trainers complain of most."""
    survey = ask(place, max_seq_length=40).survey
    assert survey is not None
    assert survey.rows == 40
    assert survey.truncated
    assert survey.tokens
    assert survey.longest
    assert survey.peak_gb
    said = next(warning for warning in survey.warnings if "max_seq_length" in warning)
    assert f"{survey.truncated} of 40 rows are longer than max_seq_length 40" in said
    assert f"{survey.lost_share:.1%} of the tokens are cut; {survey.longest} would keep all" in said


def test_the_tokens_that_a_survey_makes_are_there_for_training(place: Path, tmp_path: Path) -> None:
    """Tokenizing a large file twice, once to admit it and once to train on it, takes twice as long; and both must
    say the same of it."""
    (tmp_path / "home").mkdir()
    for name in ("model", "data"):
        (tmp_path / name).symlink_to(place / name)
    sampled, made, kept = ask(place).survey, ask(tmp_path).survey, ask(tmp_path, max_seq_length=40).survey
    assert made == sampled
    assert kept is not None
    assert kept.truncated
    job = tiny.write_job(tmp_path / "job.yaml", tiny.job(place / "model", place / "data", iters=2, max_seq_length=40))
    (loaded,) = foreground.events(foreground.train(job, tmp_path / "run"), "data.loaded")
    assert loaded["truncated"] == kept.truncated
    entries = [entry for entry in (tmp_path / "home" / "cache" / "tokens").iterdir() if entry.is_dir()]
    assert len(entries) == 2  # training rows and validation rows: both windows and both programs share them


def test_rows_whose_prompt_fills_the_window_are_refused(place: Path) -> None:
    """Such a job trains for hours and learns nothing, or gives NaN."""
    verdict = ask(place, max_seq_length=16, mask_prompt=True)
    assert verdict.job is None
    assert "every prompt fills max_seq_length 16" in (verdict.what or "")
    assert "Set max_seq_length to" in (verdict.remedy or "")
    assert verdict.exit_code == Exit.DATAERR


def test_what_cannot_fit_is_refused_unless_training_can_step_down(place: Path) -> None:
    """Nobody should learn in the morning that the night's job ran out of memory in its first minute."""
    whole = ask(place, batch_size=16).survey
    assert whole is not None
    assert whole.peak_gb
    limit = {"limit_gb": 0.55 * whole.peak_gb}
    refused = ask(place, batch_size=16, memory=limit, on_out_of_memory="fail")
    assert refused.job is None
    assert "does not fit into memory" in (refused.what or "")
    assert "GB would be enough" in (refused.remedy or "")
    accepted = ask(place, batch_size=16, memory=limit)
    assert accepted.survey is not None
    assert any("Training will step down" in warning for warning in accepted.survey.warnings)


def test_a_broken_tokenizer_is_an_error_with_a_remedy(place: Path) -> None:
    """A folder without its tokenizer fails at admission, not after the jobs before it."""
    model = place / "broken"
    tiny.make_model(model)
    (model / "tokenizer.json").write_text("{")
    verdict = ask(place, model=str(model))
    assert "tokenizer" in (verdict.what or "")
    assert "tokenizer.json" in (verdict.remedy or "")
    assert verdict.exit_code == Exit.NOINPUT


def test_validate_prints_what_a_job_needs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a long run a person wants one look at what it will take, without a daemon."""
    monkeypatch.setenv("QLORAD_HOME", str(place / "home"))
    monkeypatch.setenv("QLORAD_GPU_LOCK", str(place / "lock"))
    job = tiny.write_job(place / "job.json", tiny.job(place / "model", place / "data"))
    assert qlora(["validate", str(job)]) == Exit.OK
    shown = capsys.readouterr().out
    for words in ("40 to train on", "base weights", "GB may be used", "time", "It would be accepted"):
        assert words in shown
    tiny.write_job(job, tiny.job(place / "model", place / "data", learning_rat=1))
    assert qlora(["validate", str(job), "--json"]) == Exit.DATAERR
    answer = json.loads(capsys.readouterr().out)
    assert answer["accepted"] is False
    assert "learning_rate" in answer["remedy"]
    assert not (place / "home").exists()


@pytest.fixture
def real() -> Iterator[Daemon]:
    """The real daemon with the real worker."""
    with short_home() as home, daemon_in(home, module=REAL) as daemon:
        yield daemon


def test_the_daemon_says_what_it_found_out(real: Daemon, place: Path) -> None:
    """The warnings stand in the job's own events, where every view of it shows them."""
    real.start()
    values = tiny.job(place / "model", place / "data", max_seq_length=40, iters=2)
    real.drop("short.json", json.dumps(values))
    event = real.wait_for("job.examined", 40)
    assert event["rows"] == 40
    assert event["truncated"]
    assert event["peak_gb"]
    assert any("tokens are cut" in warning for warning in event["warnings"])
    events = (real.home.run(event["job"]).events).read_text().splitlines()
    assert [json.loads(line)["event"] for line in events[:2]] == ["job.accepted", "job.examined"]


@pytest.mark.parametrize("keys", [{"batch_size": 8}, {"batch_size": 8, "grad_checkpoint": True}])
def test_the_estimate_is_near_the_measured_peak(tmp_path: Path, keys: dict[str, Any]) -> None:
    """An estimate that is off by more than 15% refuses what fits or accepts what does not."""
    tiny.make_model(tmp_path / "model", hidden=256, layers=4)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text((json.dumps({"text": "q" * 256}) + "\n") * 16)
    keys = {"max_seq_length": 257, "iters": 2, "steps_per_report": 1, "samples": 0, "val_batches": 0, **keys}
    survey = ask(tmp_path, **keys).survey
    environment = {**os.environ, "QLORAD_HOME": str(tmp_path), "QLORAD_GPU_LOCK": str(tmp_path / "lock")}
    done = subprocess.run(
        [sys.executable, "-m", "qlora_engine", str(tmp_path / "job.json"), "--run", str(tmp_path / "run"), "--json"],
        env=environment | blas.training_environment("auto", None), capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith(b"{")]
    peak = max(event["peak_gb"] for event in events if event["event"] == "training.report")
    assert survey is not None
    assert survey.peak_gb == pytest.approx(peak, rel=0.15)
