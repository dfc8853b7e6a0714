"""A sweep's section becomes the same jobs everywhere, each checked before any is taken, each with a name of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.examine import examine, examine_request
from qlora_engine.job.folder import GROUP_NAME, JOB_ID, member_ids, slug
from qlora_engine.job.jobfile import parse
from qlora_engine.job.members import ResolvedSweep, drafts, sweep_of
from qlora_engine.job.overrides import applied
from qlora_engine.job.schema import job_schema
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.sweep import MOST, Sweep, label, shown
from qlora_engine.job.verdict import ExamineRequest
from support.service import Daemon

KEYS = st.sampled_from(["learning_rate", "seed", "lora_parameters.rank", "num_layers"])
GRIDS = st.dictionaries(KEYS, st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True), min_size=1)


def as_tuples(settings: list[dict[str, Any]]) -> list[tuple[tuple[str, Any], ...]]:
    return [tuple(one.items()) for one in settings]


@given(GRIDS)
def test_a_grid_is_every_combination_once(grid: dict[str, list[int]]) -> None:
    """A combination that is missing is a question without an answer; one twice is a night for nothing."""
    sweep = Sweep(grid=grid)
    made = as_tuples(sweep.settings())
    assert len(set(made)) == len(made) == sweep.combinations
    assert {key for one in made for key, _ in one} == grid.keys()
    assert made[0] == tuple((key, values[0]) for key, values in grid.items())


@given(GRIDS, st.integers(0, 2**40), st.data())
def test_draws_are_of_the_grid_without_repetition_and_more_begin_with_the_fewer(
    grid: dict[str, list[int]], seed: int, data: st.DataObject
) -> None:
    """Whoever asks for more samples must get those that have been trained, and new ones."""
    whole = as_tuples(Sweep(grid=grid).settings())
    count = data.draw(st.integers(1, len(whole)))
    drawn = as_tuples(Sweep(grid=grid, samples=count, seed=seed).settings())
    assert len(set(drawn)) == count
    assert set(drawn) <= set(whole)
    fewer = data.draw(st.integers(1, count))
    assert as_tuples(Sweep(grid=grid, samples=fewer, seed=seed).settings()) == drawn[:fewer]


def test_so_many_samples_as_there_are_combinations_are_drawn_too() -> None:
    """Else one sample more would reorder those that have been trained. Also of as many as a sweep can have."""
    grid = {"learning_rate": [1e-5, 1e-4], "lora_parameters.rank": [4, 8, 16]}
    drawn, fewer = (Sweep(grid=grid, samples=count).settings() for count in (6, 5))
    assert drawn[:5] == fewer
    assert drawn != Sweep(grid=grid).settings()
    every = [one["seed"] for one in Sweep(grid={"seed": list(range(MOST))}, samples=MOST).settings()]
    assert sorted(every) == list(range(MOST))


def test_a_seed_draws_the_same_on_every_machine() -> None:
    """Pinned: another draw under the same seed would be another experiment."""
    grid = {"learning_rate": [1e-3, 1e-4, 1e-5], "lora_parameters.rank": [4, 8, 16]}
    drawn = Sweep(grid=grid, samples=4, seed=7).settings()
    assert [label(one) for one in drawn] == [
        "learning_rate=1e-3 rank=4",
        "learning_rate=1e-4 rank=4",
        "learning_rate=1e-4 rank=8",
        "learning_rate=1e-3 rank=8",
    ]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_in_a_name_reads_back_as_itself(value: float) -> None:
    """Two jobs whose names round to the same could not be told apart."""
    assert float(shown(value)) == value


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"learning_rate": 1e-4, "lora_parameters.rank": 8}, "learning_rate=1e-4 rank=8"),
        ({"memory.x": 1, "early_stopping.x": 2.0}, "memory.x=1 early_stopping.x=2"),
        ({"packing": "off", "grad_checkpoint": True}, "packing=off grad_checkpoint=true"),
        ({"learning_rate": 2.5e-4, "max_loss": 20.0}, "learning_rate=2.5e-4 max_loss=20"),
    ],
)
def test_a_job_is_named_by_what_it_has_of_its_own(settings: dict[str, Any], name: str) -> None:
    """The name is what a person compares."""
    assert label(settings) == name


@given(st.text(max_size=90), st.lists(st.text(max_size=120), min_size=1, max_size=20))
def test_ids_of_a_sweeps_jobs_are_ids_all_different_and_begin_with_the_sweeps(name: str, labels: list[str]) -> None:
    """A sweep is found by any part of its id since that is in the ids of all of its jobs."""
    group = f"20261122-143501-{slug(name)[:GROUP_NAME].strip('-') or 'job'}"
    ids = member_ids(group, labels)
    assert len(set(ids)) == len(labels)
    assert all(JOB_ID.fullmatch(one) and one.startswith(group) for one in ids)


def test_a_number_behind_an_id_makes_no_id_of_another_job() -> None:
    """Of two jobs with one id only one has a run folder, and the sweep is never accepted."""
    sweep = Sweep.model_validate({"grid": {"num_layers": [-1, 1], "epochs": [1.0, 1.3]}})
    group = "20261122-143501-poems"
    first = f"{group}-num-layers-1-epochs-1"
    ids = member_ids(group, [label(one) for one in sweep.settings()])
    assert ids == [first, f"{first}-3", f"{first}-4", f"{first}-3-4"]
    assert member_ids(group, ["a=1", "a=-1", "a=1.2"]) == [f"{group}-a-1", f"{group}-a-1-3", f"{group}-a-1-2"]
    assert len(set(member_ids(group, ["x" * 90, *["x" * 90 + "y"] * 20]))) == 21


# What is wrong with one


def refusal(sweep: str, *overrides: str) -> JobRejected:
    job = applied(parse(f"model: m\niters: 10\nsweep:\n{sweep}", "job.yaml"), overrides)
    with pytest.raises(JobRejected) as refused:
        drafts(job, sweep_of(job) or pytest.fail("no sweep"))
    return refused.value


@pytest.mark.parametrize(
    ("sweep", "words", "line"),
    [
        ("  grid:\n    learning_rate: [1e-5, fast]", ["`learning_rate` is 'fast'"], 5),
        ("  grid:\n    seed: [1]\n    lora_parameters.rank: [4, 0]", ["`lora_parameters.rank` is 0"], 6),
        ("  grid:\n    lora_parameters:\n      rank: [4, 0]", ["`lora_parameters.rank` is 0"], 6),
        ("  grid:\n    learning_rat: [1e-5]", ["`learning_rat` is not a key"], 5),
        ("  grid:\n    learning_rate: 1e-5", ["`sweep.grid.learning_rate` is 1e-05", "list"], 5),
        ("  grid:\n    seed: []", ["`sweep.grid.seed`", "at least 1"], 5),
        ("  grid: {}", ["`sweep.grid`", "at least 1"], 4),
        ("  grid:\n    max_runtime: [3600, 1h]", ["lists 3600 and '1h', which are the same"], 5),
        ("  grid:\n    name: [a, b]", ["`name`", "whole sweep"], 3),
        ("  grid:\n    a.b.c.d: [1]", ["`a.b.c.d`", "no key"], 3),
        ("  grid:\n    lora_parameters: [{rank: 4}]\n    lora_parameters.rank: [4]", ["both", "part of it"], 3),
        ("  grid:\n    seed: [1, 2]\n  samples: 3", ["`sweep.samples` is 3", "2 combinations"], 3),
        ("  grid:\n    seed: [1, 2]\n  stop_worse_than: -1", ["`sweep.stop_worse_than` is -1"], 6),
        ("  grad:\n    seed: [1, 2]", ["`sweep.grid` is missing", "`sweep.grad` is not a key"], 3),
        (f"  grid:\n    seed: {list(range(15))}\n    iters: {list(range(1, 15))}", ["210 jobs", f"at most {MOST}"], 3),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_of_its_key_and_line(sweep: str, words: list[str], line: int) -> None:
    """The eleventh job must not fail at night for a typing error in a list."""
    refused = refusal(sweep)
    assert all(word in refused.what for word in words), refused.what
    assert refused.where == f"job.yaml, line {line}"
    assert refused.remedy


def test_an_empty_key_means_its_default() -> None:
    """Of the section itself, and of one that is listed: a job without it is one of the sweep."""
    text = "sweep:\n  grid:\n    lora_parameters.rank: [null, 4]\n  seed:\n  samples:\n"
    job = parse(text, "job.yaml")
    sweep = sweep_of(job)
    assert sweep is not None
    assert (sweep.seed, sweep.samples) == (0, None)
    assert [draft.settings for draft in drafts(job, sweep)] == [
        {"lora_parameters.rank": 8},
        {"lora_parameters.rank": 4},
    ]


def test_a_value_that_is_not_drawn_is_checked_all_the_same() -> None:
    """Another seed, or more samples, would draw it."""
    for seed in range(5):
        sweep = f"  grid:\n    seed: [1, 2, 3, -4]\n  samples: 1\n  seed: {seed}"
        assert "`seed` is -4" in refusal(sweep).what


def test_values_that_do_not_go_together_are_refused_by_their_job() -> None:
    """Each alone is right."""
    refused = refusal("  grid:\n    validate_every: [50, 60]\n    steps_per_eval: [50, 60]")
    assert "mean the same but differ" in refused.what


def test_a_value_that_is_set_and_swept_is_refused_and_a_list_can_be_set() -> None:
    """A value on the command line that counts for nothing would mislead."""
    refused = refusal("  grid:\n    seed: [1, 2]", "seed=3")
    assert refused.where == "--set seed=3"
    job = applied(parse("sweep: {grid: {seed: [1, 2]}}", "job.yaml"), ["sweep.grid.seed=[4, 5, 6]", "iters=3"])
    sweep = sweep_of(job)
    assert sweep is not None
    assert [(draft.settings, draft.text.values["iters"]) for draft in drafts(job, sweep)] == [
        ({"seed": seed}, 3) for seed in (4, 5, 6)
    ]


@pytest.mark.parametrize(
    ("grid", "setting", "what"),
    [
        ("lora_parameters: [{rank: 4}, {rank: 8}]", "lora_parameters.scale=5", "for `lora_parameters`"),
        ("lora_parameters: [{rank: 4}, {rank: 8}]", "lora_parameters={scale: 5}", "for it"),
        ("lora_parameters.rank: [4, 8]", "lora_parameters={scale: 5, rank: 2}", "for it"),
        ("lora_parameters.rank: [4, 8]", "lora_parameters.rank=2", "for it"),
    ],
)
def test_a_set_value_that_a_listed_one_replaces_is_refused(grid: str, setting: str, what: str) -> None:
    """Also where one of the two is a section, and the other a part of it."""
    refused = refusal(f"  grid:\n    {grid}", setting)
    assert refused.what.endswith(f"is set, and the sweep lists values {what}.")
    assert refused.where == f"--set {setting}"


@pytest.mark.parametrize("setting", ["lora_parameters={scale: 5}", "lora_parameters.scale=5"])
def test_other_parts_of_a_section_can_be_set(setting: str) -> None:
    """Each job has them beside what is listed."""
    text = "model: m\niters: 9\nlora_parameters: {rank: 2}\nsweep: {grid: {lora_parameters.rank: [4, 8]}}"
    job = applied(parse(text, "job.yaml"), [setting])
    made = drafts(job, sweep_of(job) or pytest.fail("no sweep"))
    assert [one.text.values["lora_parameters"] for one in made] == [{"scale": 5, "rank": rank} for rank in (4, 8)]


def test_an_option_for_sweeps_of_a_job_that_is_none(files: Daemon) -> None:
    """`--stop-worse-than` makes no sweep, so no part of one is missing; a file that begins one lacks the rest."""
    with pytest.raises(JobRejected, match=r"`sweep.stop_worse_than` is for a sweep, and job.yaml is none") as refused:
        sweep_of(applied(parse(files.text(), "job.yaml"), ["sweep.stop_worse_than=2"]))
    assert refused.value.where == "--set sweep.stop_worse_than=2"
    with pytest.raises(JobRejected, match=r"`sweep.grid` is missing"):
        sweep_of(applied(parse(files.text(sweep={"samples": 2}), "job.yaml"), ["sweep.stop_worse_than=2"]))


# Examined


def request(daemon: Daemon, text: str) -> ExamineRequest:
    return ExamineRequest(
        job_file="job.yaml", text=text, home=str(daemon.home.path), base=str(daemon.home.path), shown_as="job.yaml"
    )


@pytest.fixture
def files(tmp_path: Path) -> Daemon:
    """The files of a home; no daemon is started."""
    daemon = Daemon(tmp_path)
    daemon.home.make()
    return daemon


def test_each_job_is_an_ordinary_one_and_says_nothing_of_the_sweep(files: Daemon) -> None:
    """What trains knows of no sweep: two equal resolved jobs train equal adapters, whoever made them."""
    found = examine_request(request(files, files.text(sweep={"grid": {"packing": ["on", "off"], "seed": [1, 2]}})))
    assert isinstance(found, ResolvedSweep)
    assert [label(one.settings) for one in found.members] == [
        f"packing={packing} seed={seed}" for packing in ("on", "off") for seed in (1, 2)
    ]
    for member in found.members:
        alone = examine_request(request(files, files.text(**member.settings)))
        assert member.job == alone
        assert "sweep" not in json.loads(member.job.model_dump_json())["spec"]


def test_jobs_that_cannot_be_compared_are_not_ended_by_comparing_them(files: Daemon) -> None:
    """`stop_worse_than` without validation would be a promise that nothing keeps."""
    text = files.text(sweep={"grid": {"seed": [1, 2]}, "stop_worse_than": 0.1})
    with pytest.raises(JobRejected, match=r"With seed=1: .* holds no valid.jsonl"):
        examine_request(request(files, text))


def test_where_one_job_is_trained_a_sweep_is_refused(files: Daemon) -> None:
    """`python -m qlora_engine job.yaml` trains one job."""
    file = files.home.path / "job.yaml"
    file.write_text(files.text(sweep={"grid": {"seed": [1, 2]}}))
    with pytest.raises(JobRejected, match="a sweep of several jobs"):
        examine(file, home=files.home.path, base=files.home.path)


def test_editors_know_the_section() -> None:
    """The schema is made from what reads the file."""
    check = jsonschema.Draft202012Validator(job_schema())
    good = {"sweep": {"grid": {"seed": [1, 2], "lora_parameters": {"rank": [4]}}, "samples": 1, "stop_worse_than": 0.1}}
    assert check.is_valid(good)
    for bad in ({"grid": {"seed": 1}}, {"grid": {}}, {"samples": 3}, {"grid": {"seed": [1]}, "sample": 3}):
        assert not check.is_valid({"sweep": bad})
    assert JobSpec().sweep is None
