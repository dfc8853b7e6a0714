"""Values set in place of a job file's own: how they are read, what they replace, and what is said of bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qlora_client.api import Client, LeftBehind, as_overrides
from qlora_client.cli import main
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.jobfile import parse
from qlora_engine.job.overrides import DEEPEST, LONGEST, MOST, applied, parsed
from qlora_engine.job.spec import LoraParameters
from qlora_engine.job.validate import validate
from qlora_worker import letters

JOB = """\
model: m
iters: 100
lora_parameters:
  rank: 8
  scale: 10.0
"""


def spec(*overrides: str) -> Any:
    return validate(applied(parse(JOB, "job.yaml"), overrides))


@pytest.mark.parametrize(
    ("text", "keys", "value"),
    [
        ("iters=5", ("iters",), 5),
        ("learning_rate=1e-5", ("learning_rate",), 1e-5),
        ("lora_parameters.rank=16", ("lora_parameters", "rank"), 16),
        ("after=[a, b]", ("after",), ["a", "b"]),
        ("memory={limit_gb: 8}", ("memory",), {"limit_gb": 8}),
        ("model=some/model", ("model",), "some/model"),
        ('name="a: b=c"', ("name",), "a: b=c"),
        (' name = "x" ', ("name",), "x"),
        ("epochs=", ("epochs",), None),
        ("epochs=null", ("epochs",), None),
        ('samples="one\\ntwo"', ("samples",), "one\ntwo"),
    ],
)
def test_a_value_is_read_as_a_job_file_would_read_it(text: str, keys: tuple[str, ...], value: object) -> None:
    """Who has written a job file knows how to write `--set`."""
    assert parsed(text) == (keys, value)


@pytest.mark.parametrize(
    "text",
    [
        "", "iters", "=5", "a..b=1", ".a=1", ".".join("a" * (DEEPEST + 1)) + "=1", f"name={'x' * LONGEST}",
        "name=[", "name=a: b", "name=x\niters: 5", "name=*a", "name={a: 1, a: 2}", "name=\0",
    ],
)  # fmt: skip
def test_what_is_no_key_and_value_is_refused_by_its_name(text: str) -> None:
    """A typing error must not become another job, nor a value smuggle a second key in."""
    with pytest.raises(JobRejected) as refused:
        parsed(text)
    assert refused.value.where == f"--set {text:.80}"
    assert refused.value.remedy


def test_a_value_replaces_the_files_own_and_leaves_the_rest() -> None:
    """Setting a section's key must not reset the keys beside it."""
    found = spec("lora_parameters.rank=16", "iters=7", "memory.limit_gb=8")
    assert (found.lora_parameters.rank, found.lora_parameters.scale) == (16, 10.0)
    assert (found.iters, found.memory.limit_gb, found.model) == (7, 8.0, "m")


def test_of_two_values_for_a_key_the_later_counts_and_an_empty_one_takes_it_away() -> None:
    """A script appends its own to what it was given; `epochs` cannot stand beside `iters`."""
    assert spec("iters=7", "iters=9").iters == 9
    found = spec("iters=", "epochs=2")
    assert (found.iters, found.epochs) == (1000, 2)


def test_an_empty_value_takes_a_key_of_a_section_away() -> None:
    """As the documentation says of every key."""
    assert spec("lora_parameters.rank=").lora_parameters == LoraParameters(scale=10.0)
    assert spec("lora_parameters.rank=", "lora_parameters.scale=null").lora_parameters == LoraParameters()


def test_the_file_itself_stays_as_it_was() -> None:
    """It is read once for a whole sweep."""
    job = parse(JOB, "job.yaml")
    applied(job, ["lora_parameters.rank=16"])
    assert job.values["lora_parameters"]["rank"] == 8
    assert job.where(("lora_parameters", "rank")) == "job.yaml, line 4"


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("lora_parameters.rank=x", "--set lora_parameters.rank=x"),
        ("lora_parameters={rank: x}", "--set lora_parameters={rank: x}"),
        ("lora_parameters.alpha=16", "--set lora_parameters.alpha=16"),
        ("itres=5", "--set itres=5"),
        ("seed=1", "job.yaml, line 2"),
    ],
)
def test_what_is_wrong_with_a_value_is_said_of_the_place_where_it_was_set(override: str, where: str) -> None:
    """Line 4 of a file that is right would send its reader astray."""
    text = JOB.replace("100", "-1") if override == "seed=1" else JOB
    with pytest.raises(JobRejected) as refused:
        validate(applied(parse(text, "job.yaml"), [override]))
    assert refused.value.where == where


def test_a_key_within_a_value_that_is_no_section_is_refused() -> None:
    """There is no sensible job that both mean."""
    with pytest.raises(JobRejected, match="`iters` is 100 in the job file, so it has no `x`"):
        spec("iters.x=1")


def test_there_is_an_end_to_how_many_there_are() -> None:
    """A request has a size."""
    assert spec(*["iters=5"] * MOST).iters == 5
    with pytest.raises(JobRejected, match=f"{MOST + 1} values"):
        spec(*["iters=5"] * (MOST + 1))


# From Python


def test_python_values_become_what_set_would_take() -> None:
    """One way to the daemon for both."""
    values = {"iters": 5, "lora_parameters.rank": 16, "name": "a: b", "epochs": None, "urgent": True, "after": ["x"]}
    assert {key: value for (key,), value in map(parsed, as_overrides({"name": 'ü"\n'}))} == {"name": 'ü"\n'}
    read = {".".join(keys): value for keys, value in map(parsed, as_overrides(values))}
    assert read == values
    assert as_overrides(["iters=5"]) == ("iters=5",)
    with pytest.raises(JobRejected, match="cannot be sent"):
        as_overrides({"iters": object()})


@settings(derandomize=True, database=None)
@given(st.text(max_size=200))
@example("sql 🚀")
@example("\x7f\x85\u2028\ufeff\uffff")
def test_a_text_is_sent_as_it_is(text: str) -> None:
    """What JSON writes as two halves of a character, and what YAML breaks lines at, is a part of names, too."""
    ((_, read),) = map(parsed, as_overrides({"samples": [text]}))
    assert read == [text]


def test_the_job_to_wait_for_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named as `qlora ls` shows it."""
    monkeypatch.delenv("QLORAD_REDIS_URL", raising=False)
    monkeypatch.setenv("QLORAD_HOME", str(tmp_path / "home"))
    (tmp_path / "job.yaml").write_text(JOB)
    assert main(["submit", str(tmp_path), "--after", "sql 🚀"]) == 0
    (left,) = (tmp_path / "home" / "jobs").iterdir()
    assert spec(*letters.read(left).submission.overrides).after == ["sql 🚀"]


def test_a_submission_that_is_left_behind_keeps_them_and_a_bad_one_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon that comes later must run the job that was asked for; and nobody would read its refusal."""
    monkeypatch.delenv("QLORAD_REDIS_URL", raising=False)
    client = Client(home=tmp_path / "home")
    (tmp_path / "job.yaml").write_text(JOB)
    left = client.submit_or_leave(tmp_path / "job.yaml", overrides={"iters": 5})
    assert isinstance(left, LeftBehind)
    assert letters.read(left.path).submission.overrides == ("iters=5",)
    with pytest.raises(JobRejected, match="does not say"):
        client.submit_or_leave(tmp_path / "job.yaml", overrides=["iters"])
    assert len(list(client.home.jobs.iterdir())) == 1
