"""What a checkpoint must agree with to be gone on from, and what is done when it does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from qlora_engine.job.errors import ResumeRefused
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.training import checkpoint
from qlora_engine.training.fingerprint import FREE_KEYS, changes, fingerprint, identity
from support.rig import Process, numbered
from support.small import assert_same

ROWS = numbered(13)

OTHER: dict[str, Any] = {
    "model": "other/model",
    "fine_tune_type": "dora",
    "optimizer": "sgd",
    "optimizer_config": {"adam": {"eps": 1e-6}},
    "data": "elsewhere",
    "hf_dataset": {"path": "x"},
    "prompt_feature": "p",
    "completion_feature": "c",
    "chat_feature": "m",
    "text_feature": "t",
    "mask_prompt": True,
    "seed": 1,
    "num_layers": 4,
    "batch_size": 3,
    "iters": 7,
    "val_batches": 3,
    "learning_rate": 1e-3,
    "steps_per_eval": 9,
    "save_every": 9,
    "resume_adapter_file": "x.safetensors",
    "max_seq_length": 77,
    "grad_accumulation_steps": 5,
    "lr_schedule": {"name": "exponential_decay", "arguments": [0.1, 0.9]},
    "lora_parameters": {"rank": 4},
    "epochs": 2.0,
    "validate_every": 3,
    "checkpoint_every": 3,
    "grad_clip": 1.0,
    "lora_plus_ratio": 4.0,
    "max_loss": 10.0,
    "packing": "on",
    "early_stopping": {"patience": 2},
}
FREE: dict[str, Any] = {
    "name": "x",
    "priority": 5,
    "urgent": True,
    "hold": True,
    "power": "ac",
    "after": ["20261120-080000-first"],
    "not_before": "2030-01-01T00:00:00+00:00",
    "max_runtime": "2h",
    "retries": 2,
    "notify": ["phone"],
    "project_name": "x",
    "adapter_path": "x",
    "config": "x",
    "steps_per_report": 3,
    "checkpoint_minutes": 1.0,
    "clear_cache_threshold": 5,
    "grad_checkpoint": True,
    "keep": "best",
    "memory": {"limit_gb": 3.0},
    "on_change": "restart",
    "on_out_of_memory": "fail",
    "report_to": "wandb",
    "samples": 0,
    "test": True,
    "test_batches": 3,
}
CONSTANT = {"train", "trust_remote_code", "sweep"}  # may have one value only in a job


def job_of(**keys: Any) -> ResolvedJob:
    return ResolvedJob(spec=JobSpec(**keys))


# Fingerprints


def test_every_key_either_shapes_training_or_is_free() -> None:
    """A new key must be put on one side or the other."""
    assert set(JobSpec.model_fields) == OTHER.keys() | FREE.keys() | CONSTANT
    assert FREE.keys() == FREE_KEYS


@pytest.mark.parametrize("key", OTHER)
def test_a_key_that_shapes_training_may_not_change(key: str) -> None:
    """Going on with another value would give adapters that no job file describes."""
    then, now = fingerprint(job_of(), {}), fingerprint(job_of(**{key: OTHER[key]}), {})
    assert changes(json.loads(json.dumps(then)), now) == [key]


@pytest.mark.parametrize("key", FREE)
def test_a_key_that_changes_nothing_that_is_trained_is_free(key: str) -> None:
    """To end a day's run for a new name would be petty."""
    assert fingerprint(job_of(), {}) == fingerprint(job_of(**{key: FREE[key]}), {})


def test_the_data_is_compared_by_content() -> None:
    """By split; the test rows teach nothing."""
    then = fingerprint(job_of(), {"train": "a", "valid": "b", "test": "c"})
    assert changes(then, fingerprint(job_of(), {"train": "a", "valid": "b", "test": "x"})) == []
    assert changes(then, fingerprint(job_of(), {"train": "x", "valid": "b"})) == ["data.train"]
    assert changes(then, fingerprint(job_of(), {"train": "a"})) == ["data.valid"]
    assert changes(then, fingerprint(job_of(), {"train": "x", "valid": "x"})) == ["data.train", "data.valid"]


@pytest.mark.parametrize("key", ["lora_plus_ratio", "max_loss", "early_stopping", "grad_clip", "epochs"])
def test_a_key_that_an_older_version_did_not_know_had_its_default(key: str) -> None:
    """An update of qlorad may not strand the runs that are under way."""
    now = fingerprint(job_of(), {})
    then = {name: value for name, value in now.items() if name != key}
    assert changes(then, now) == []
    assert changes(now, then) == []  # nor a step back to an older version
    assert changes(then, fingerprint(job_of(**{key: OTHER[key]}), {})) == [key]


def test_so_had_a_key_inside_a_section() -> None:
    """`lora_parameters.rank_stabilized` is one that older checkpoints lack."""
    now = fingerprint(job_of(lora_parameters={"rank": 4}), {})
    then = json.loads(json.dumps(now))
    del then["lora_parameters"]["rank_stabilized"]
    assert changes(then, now) == []
    stabilized = fingerprint(job_of(lora_parameters={"rank": 4, "rank_stabilized": True}), {})
    assert changes(then, stabilized) == ["lora_parameters"]


def model_folder(folder: Path, value: float = 1.0, rows: int = 3) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    mx.save_safetensors(str(folder / "model.safetensors"), {"a": mx.full((rows, 4), value)})
    return folder


def test_a_model_is_known_by_its_config_and_its_tables_of_arrays(tmp_path: Path) -> None:
    """Another model under the same name must not be trained on with the old one's adapters."""
    model = model_folder(tmp_path / "model")
    first = identity(model)
    shutil.copytree(model, tmp_path / "moved")
    assert identity(tmp_path / "moved") == first
    assert identity(model_folder(tmp_path / "wider", rows=5)) != first
    (model / "config.json").write_text('{"model_type": "llama", "rope_theta": 5}')
    assert identity(model) != first
    (tmp_path / "moved" / "model-00002.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    assert identity(tmp_path / "moved") != first


def test_the_model_s_identity_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """It is what a person sees in the refusal."""
    model = model_folder(tmp_path / "model")
    job = job_of().model_copy(update={"model_path": str(model)})
    then = fingerprint(job, {})
    (model / "config.json").write_text("{}")
    assert changes(then, fingerprint(job, {})) == ["model files"]


# Resuming


def stopped(folder: Path, **keys: Any) -> Process:
    made = Process(folder, ROWS, stop_after=4, hashes={"train": "a"}, keys=keys)
    made.go()
    return made


def test_a_changed_job_is_refused_with_what_changed(quick_path: Path) -> None:
    """And nothing is touched, so that putting it back goes on."""
    stopped(quick_path)
    before = sorted(path.name for path in (quick_path / "checkpoints").iterdir())
    changed = Process(quick_path, ROWS, hashes={"train": "b"}, keys={"learning_rate": 0.5})
    with pytest.raises(ResumeRefused) as caught:
        changed.go()
    assert "data.train, learning_rate" in caught.value.what
    assert "step 4" in caught.value.what
    for way in ("Put them back", "on_change: restart", "submit"):
        assert way in str(caught.value.remedy)
    assert sorted(path.name for path in (quick_path / "checkpoints").iterdir()) == before
    again = Process(quick_path, ROWS, hashes={"train": "a"})
    again.go()
    assert again.said("training.resumed")[0]["step"] == 4


def test_on_change_restart_starts_over(quick_path: Path) -> None:
    """The result is that of a run that began with the new job, and the run folder says which job that was."""
    stopped(quick_path / "run")
    keys = {"learning_rate": 0.5, "optimizer": "sgd", "on_change": "restart"}
    changed = Process(quick_path / "run", ROWS, hashes={"train": "a"}, keys=keys)
    progress = changed.go()
    (event,) = changed.said("training.restarted")
    assert (event["changed"], event["step"]) == (["learning_rate", "optimizer"], 4)
    assert progress.step == 7
    assert len(changed.metrics) == 7
    fresh = Process(quick_path / "fresh", ROWS, hashes={"train": "a"}, keys=keys)
    fresh.go()
    assert_same(changed.state, fresh.state)
    assert ResolvedJob.load(changed.run.spec).spec == changed.spec
    # And what changed is now what is: it goes on.
    again = Process(quick_path / "run", ROWS, hashes={"train": "a"}, keys=keys)
    again.go()
    assert again.said("training.restarted") == []
    assert again.metrics == []


def test_a_run_that_started_over_and_was_stopped_goes_on_with_the_new(quick_path: Path) -> None:
    """A checkpoint of the old job that lay beside its own would make it start over for ever."""
    stopped(quick_path)
    keys = {"learning_rate": 0.5, "on_change": "restart"}
    Process(quick_path, ROWS, stop_after=2, hashes={"train": "a"}, keys=keys).go()
    assert [found.step for found in checkpoint.listed(quick_path / "checkpoints")] == [0, 2]
    again = Process(quick_path, ROWS, hashes={"train": "a"}, keys=keys)
    again.go()
    assert again.said("training.restarted") == []
    assert again.said("training.resumed")[0]["step"] == 2


def test_on_change_restart_does_not_start_over_when_nothing_changed(quick_path: Path) -> None:
    """It says what to do on a change, not to forget."""
    stopped(quick_path, on_change="restart")
    again = Process(quick_path, ROWS, hashes={"train": "a"}, keys={"on_change": "restart", "steps_per_report": 1})
    again.go()
    assert again.said("training.resumed")[0]["step"] == 4


def test_a_damaged_checkpoint_is_said_and_the_one_before_it_goes_on(quick_path: Path) -> None:
    """To the same end: what the lost steps had done is done again."""
    through = Process(quick_path / "through", ROWS)
    through.go()
    first = Process(quick_path / "run", ROWS, stop_after=6)
    first.go()
    file = first.run.checkpoints / "step-000006" / checkpoint.STATE
    file.write_bytes(file.read_bytes().replace(b'"step": 6', b'"step": 5', 1))
    second = Process(quick_path / "run", ROWS)
    second.go()
    assert [Path(event["path"]).name for event in second.said("checkpoint.damaged")] == ["step-000006"]
    assert second.said("training.resumed")[0]["step"] == 4
    assert_same(second.state, through.state)
    assert checkpoint.newest(second.run.checkpoints, lambda *_: None) is not None


def test_when_every_checkpoint_is_damaged_the_run_begins_again(quick_path: Path) -> None:
    """The data and the job are still there; nothing of a damaged checkpoint is used."""
    through = Process(quick_path / "through", ROWS)
    through.go()
    first = Process(quick_path / "run", ROWS, stop_after=6)
    first.go()
    for file in first.run.checkpoints.glob(f"*/{checkpoint.ARRAYS}"):
        file.write_bytes(b"")
    second = Process(quick_path / "run", ROWS)
    second.go()
    assert len(second.said("checkpoint.damaged")) == 3
    assert second.said("training.resumed") == []
    assert_same(second.state, through.state)
