"""The job file's keys: mlx_lm's with mlx_lm's meaning and defaults, and ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from mlx_lm import lora as mlx_lm_lora

from qlora_engine.job.errors import JobRejected
from qlora_engine.job.jobfile import parse
from qlora_engine.job.overrides import applied
from qlora_engine.job.preflight.duration import steps_of
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import EarlyStopping, JobSpec
from qlora_engine.job.validate import validate
from qlora_engine.training.documents import Documents
from qlora_engine.training.memory import Device, limits_of
from qlora_engine.training.optimizer import OPTIMIZERS, build_optimizer
from support.token_rows import memory

# Every key of mlx_lm's own example, in its style: an optimizer_config whose entries are empty.
UPSTREAM = """
# The path to the local model directory or Hugging Face repo.
model: "mlx_model"
train: true
fine_tune_type: lora
optimizer: adamw
optimizer_config:
  adamw:
    betas: [0.9, 0.98]
    eps: 1e-6
    weight_decay: 0.05
    bias_correction: true
  adam:
  sgd:
data: "/path/to/training/data"
seed: 0
num_layers: 16
batch_size: 4
iters: 1000
val_batches: 25
learning_rate: 1e-5
# wandb:
report_to:
project_name: null
steps_per_report: 10
steps_per_eval: 200
grad_accumulation_steps: 1
resume_adapter_file: null
adapter_path: "adapters"
save_every: 100
test: false
test_batches: 100
max_seq_length: 2048
grad_checkpoint: false
mask_prompt: false
lora_parameters:
  keys: ["self_attn.q_proj", "self_attn.v_proj"]
  rank: 8
  scale: 20.0
  dropout: 0.0
lr_schedule:
  name: cosine_decay
  warmup: 100
  warmup_init: 1e-7
  arguments: [1e-5, 1000, 1e-7]
"""


def spec(text: str) -> JobSpec:
    return validate(parse(text, "job.yaml"))


def refused(text: str) -> JobRejected:
    with pytest.raises(JobRejected) as caught:
        spec(text)
    assert caught.value.where
    assert caught.value.remedy
    return caught.value


def test_mlx_lms_own_example_is_a_job() -> None:
    """A file that works there can be dropped here."""
    made = spec(UPSTREAM)
    assert made.optimizer_config["adamw"]["eps"] == 1e-6
    assert made.optimizer_config["sgd"] == {}
    assert made.lr_schedule is not None
    assert made.lr_schedule.arguments == [1e-5, 1000, 1e-7]
    assert made.lora_parameters.keys == ["self_attn.q_proj", "self_attn.v_proj"]
    assert build_optimizer(made).learning_rate.item() == pytest.approx(1e-7)


@pytest.mark.parametrize("key", sorted(mlx_lm_lora.CONFIG_DEFAULTS))
def test_every_key_of_mlx_lm_is_known_and_has_its_default(key: str) -> None:
    """Nothing is truncated, halved or renamed behind a user's back."""
    value = mlx_lm_lora.CONFIG_DEFAULTS[key]
    made = spec(json.dumps({key: True if key == "train" else value}))
    ours: Any = JobSpec().model_dump()[key]
    if key == "train":
        assert (ours, value) == (True, False)  # documented: a job trains
    elif key == "optimizer_config":
        assert ours == {}
        assert set(value) == set(OPTIMIZERS)
        assert all(entry == {} for entry in value.values())
    elif key == "lora_parameters":
        assert ours == value | {"keys": None, "rank_stabilized": False}
    else:
        assert ours == value
    assert made.model_dump()[key] == ours or key == "optimizer_config"


@pytest.mark.parametrize(
    "section",
    [
        '{"path": "a/b", "config": {"trust_remote_code": true}}',
        '[{"path": "a/b"}, {"path": "a/b", "config": {"name": "x", "trust_remote_code": true}}]',
        '{"path": "pandas", "config": {"data_files": "evil.pkl"}}',
        '{"path": "./load.py"}',
        '{"path": "a/b", "config": {"storage_options": {"key": "x"}}}',
        '{"path": "a/b", "config": ["x"]}',
    ],
)
def test_a_data_set_of_the_hub_brings_no_code(section: str) -> None:
    """A dropped file that names a data set must not run that data set's own code, nor unpickle its files."""
    with pytest.raises(JobRejected, match="hf_dataset"):
        validate(parse(f"hf_dataset: {section}", "job.yaml"))
    fine = '{"path": "a/b", "config": {"name": "x", "revision": "main"}, "train_split": "train[:80%]"}'
    assert validate(parse(f"hf_dataset: {fine}", "job.yaml")).hf_dataset == json.loads(fine)


def test_a_key_without_a_value_means_its_default() -> None:
    """As in mlx_lm, whose configs leave keys empty."""
    assert spec("iters:\nlr_schedule: null\nlora_parameters:\n") == JobSpec()
    assert spec("lora_parameters:\n  rank:\n  keys:\nmemory:\n  cleanup_every:\n") == JobSpec()
    assert spec("early_stopping:\n  patience:\n").early_stopping == EarlyStopping()
    schedule = spec("lr_schedule:\n  name: cosine_decay\n  arguments: [1e-5, 9]\n  warmup:\n").lr_schedule
    assert schedule is not None
    assert schedule.warmup == 0


def test_what_has_no_default_may_not_be_left_empty_and_what_is_a_librarys_stays_empty() -> None:
    """A schedule without a name is none; None may mean something to `load_dataset`."""
    error = refused("lr_schedule:\n  name:\n  arguments: [1e-5, 9]\n")
    assert "`lr_schedule.name` is missing" in error.what
    assert error.where == "job.yaml, line 2"
    text = "hf_dataset: {path: a/b, config: {name: }}\noptimizer_config: {adam: {x: }}"
    found = spec(text)
    assert found.hf_dataset == {"path": "a/b", "config": {"name": None}}
    assert found.optimizer_config == {"adam": {"x": None}}


def test_a_resolved_job_is_read_back_as_it_was(tmp_path: Any) -> None:
    """What was examined is what is trained, whichever of two names a key was given."""
    for text in (UPSTREAM, "epochs: 2", "validate_every: 3\ncheckpoint_every: 4", "hf_dataset: {path: x}"):
        job = ResolvedJob(spec=spec(text))
        job.store(tmp_path / "spec.json")
        assert ResolvedJob.load(tmp_path / "spec.json") == job


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("itres", "iters"),
        ("learning_rates", "learning_rate"),
        ("batchsize", "batch_size"),
        ("max_seq_len", "max_seq_length"),
        ("save_evry", "save_every"),
        ("lora_parameter", "lora_parameters"),
        ("gradient_accumulation_steps", "grad_accumulation_steps"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known(written: str, meant: str) -> None:
    """A key that is ignored is a job that does something else than its author believes."""
    error = refused(f"model: m\n{written}: 4\n")
    assert f"`{written}`" in error.what
    assert error.where == "job.yaml, line 2"
    assert error.remedy is not None
    assert f"`{meant}`" in error.remedy


def test_an_unknown_key_of_a_section_is_refused_too() -> None:
    """`alpha` is what other tools call it, with another meaning."""
    error = refused("lora_parameters:\n  rank: 8\n  rnk: 4\n")
    assert (error.where, error.remedy) == ("job.yaml, line 3", "Did you mean `rank`?")
    error = refused("lora_parameters: {alpha: 16}")
    assert error.remedy is not None
    assert "scale" in error.remedy


@pytest.mark.parametrize(
    ("text", "key", "hint"),
    [
        ("iters: many", "iters", "quotes"),
        ("iters: '200'", "iters", "quotes"),
        ("iters: 2.5", "iters", ""),
        ("iters: true", "iters", ""),
        ("iters: 0", "iters", ""),
        ("iters: -5", "iters", ""),
        ("batch_size: 0", "batch_size", ""),
        ("learning_rate: fast", "learning_rate", "1e-5"),
        ("learning_rate: 0", "learning_rate", ""),
        ("learning_rate: .nan", "learning_rate", ""),
        ("learning_rate: .inf", "learning_rate", ""),
        ("epochs: .inf", "epochs", ""),
        ("epochs: 1e308", "epochs", ""),
        ("memory: {limit_gb: 1e308}", "memory.limit_gb", ""),
        (f"max_seq_length: {2**31}", "max_seq_length", ""),
        (f"iters: {2**63}", "iters", ""),
        (f"lr_schedule: {{name: cosine_decay, arguments: [1e-5, 9], warmup: {2**31}}}", "lr_schedule.warmup", ""),
        ("grad_clip: .inf", "grad_clip", ""),
        ("mask_prompt: 1", "mask_prompt", ""),
        ("model: 5", "model", ""),
        ("model: ''", "model", ""),
        ("name: ''", "name", ""),
        ("optimizer: adamz", "optimizer", ""),
        ("fine_tune_type: qlora", "fine_tune_type", ""),
        ("hf_dataset: 5", "hf_dataset", ""),
        ("hf_dataset: {path: [a/b]}", "hf_dataset.path", ""),
        ('name: "\\ud83d"', "name", ""),
        ('config: "\\ud83d"', "config", ""),
        ('project_name: "\\ud83d"', "project_name", ""),
        ("lora_parameters: 5", "lora_parameters", ""),
        ("lora_parameters: {rank: 0}", "lora_parameters.rank", ""),
        ("lora_parameters: {dropout: 1}", "lora_parameters.dropout", ""),
        ("lora_parameters: {keys: q_proj}", "lora_parameters.keys", ""),
        ("lr_schedule: {name: cosine, arguments: [1]}", "lr_schedule.name", ""),
        ("lr_schedule: {name: cosine_decay}", "lr_schedule.arguments", ""),
        ("optimizer_config: {adam: [1]}", "optimizer_config.adam", ""),
        ("seed: -1", "seed", ""),
        ("trust_remote_code: true", "trust_remote_code", ""),
        ("train: false", "train", ""),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_line(text: str, key: str, hint: str) -> None:
    """What, where and the remedy, for every kind of mistake."""
    error = refused(f"adapter_path: x\n{text}\n")
    assert error.what.startswith(f"`{key}")
    assert f"`{key}`" in error.what or key == "train"
    assert error.where == "job.yaml, line 2"
    assert error.remedy is not None
    assert hint in error.remedy
    assert " it String" not in error.what
    assert "constrained" not in error.what


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("iters: many", "`iters` is 'many', but it should be a whole number."),
        ("iters: -1", "`iters` is -1, but it should be at least 1."),
        ("priority: 200", "`priority` is 200, but it should be at most 100."),
        ("hold: maybe", "`hold` is 'maybe', but it should be true or false."),
        ("model: 5", "`model` is 5, but it should be text."),
        ("lora_parameters: 5", "`lora_parameters` is 5, but it should be a section of keys and values."),
        ("lora_parameters: {keys: 5}", "`lora_parameters.keys` is 5, but it should be a list."),
        ("samples: x", "`samples` is 'x', but it should be a whole number or a list."),
        (
            "notify: [a b]",
            "is 'a b', but it should be letters, digits, dashes and underscores, a letter or digit first.",
        ),
    ],
)
def test_what_a_value_should_be_is_said_in_words(text: str, said: str) -> None:
    """`a valid dictionary or instance of LoraParameters` is what a library calls it."""
    error = refused(f"adapter_path: x\n{text}\n")
    assert error.what.endswith(said)
    assert error.remedy is not None
    assert "`0`" not in error.remedy


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("optimizer_config:\n  adam:\n    x: 2026-01-01", "`optimizer_config.adam.x` is a date", "'2026-01-01'"),
        ("hf_dataset:\n  config:\n    revision: 2024-05-01", "`hf_dataset.config.revision` is a date", "'2024-05-01'"),
        ("optimizer_config:\n  adam:\n    x: 2026-01-01 10:00:00", "is a date or time", "'2026-01-01 10:00:00'"),
        ("optimizer_config:\n  adam:\n    x: !!binary aGk=", "`optimizer_config.adam.x` is a value", "text, in quotes"),
        ("optimizer_config:\n  adam:\n    x: !!set {a}", "of the kind `set`", "as a list"),
        ("optimizer_config:\n  adam:\n    x: .nan", "`optimizer_config.adam.x` is nan", "Write a number"),
        (f"optimizer_config:\n  adam:\n    x: [1, {2**63}]", "`optimizer_config.adam.x.1` is 9", "a smaller number"),
        ("hf_dataset:\n  config:\n    data_files: {2024-05-01: x}", "has the key datetime", "Write the key in quotes"),
        ('hf_dataset:\n  config:\n    revision: "\\ud83d"', "holds half a character", "the whole character"),
    ],
)
def test_what_no_json_says_is_refused_in_a_section_of_anybodys_keys(text: str, what: str, remedy: str) -> None:
    """A job is stored as JSON, so such a value ended the examiner; YAML makes dates of what was meant as a name."""
    error = refused(f"{text}\n")
    assert what in error.what
    assert "also:" not in error.what
    assert error.where == "job.yaml, line 3"
    assert remedy in (error.remedy or "")


def test_a_key_too_long_to_show_is_cut() -> None:
    """A reason of thousands of characters is none that anybody reads."""
    assert len(refused(f"{'a' * 5000}: 1").what) < 200
    assert len(refused(f"optimizer_config: {{adam: {{{'a' * 1000}: .nan}}}}").what) < 200


def test_a_date_in_quotes_is_text_and_the_place_of_a_set_one_is_where_it_was_set() -> None:
    """As the remedy says."""
    assert spec("hf_dataset: {config: {revision: '2024-05-01'}}").hf_dataset == {"config": {"revision": "2024-05-01"}}
    with pytest.raises(JobRejected, match="is a date") as caught:
        validate(applied(parse("model: m", "job.yaml"), ["optimizer_config.adam.x=2026-01-01"]))
    assert caught.value.where == "--set optimizer_config.adam.x=2026-01-01"
    with pytest.raises(JobRejected, match=r"`hf_dataset\.1\.path` is a date"):
        validate(parse("hf_dataset = [{path = 'a/b'}, {path = 2024-05-01}]", "job.toml"))


@pytest.mark.parametrize(
    "key", ["seed", "iters", "max_seq_length", "val_batches", "memory.cleanup_every", "max_runtime"]
)
def test_a_number_too_long_to_show_is_refused_like_any_other(key: str) -> None:
    """Python refuses to write it, which is no reason to crash."""
    with pytest.raises(JobRejected, match="too long to show"):
        validate(parse(f"{key} = 0x{'f' * 100_000}", "job.toml"))


def test_the_largest_numbers_that_are_taken_can_be_computed_with() -> None:
    """A job is accepted in the evening; a number that cannot be would end its survey, or the run at night."""
    most = spec(f"epochs: {2**62}\nmax_seq_length: {2**31 - 1}\nmemory: {{limit_gb: {2**62}}}")
    assert steps_of(most, 10**6) > 2**62
    assert limits_of(most.memory, Device(10**9, None)).limit == 10**9
    assert Documents(memory(3), most.max_seq_length).lengths.tolist() == [0, 1, 2]


def test_every_mistake_is_named_at_once() -> None:
    """Nobody wants to submit a job six times to find six mistakes."""
    error = refused("iters: x\nbatch_size: y\nitres: 1\n")
    for key in ("iters", "batch_size", "itres"):
        assert f"`{key}`" in error.what


@pytest.mark.parametrize(
    "text",
    ["epochs: 1\niters: 5", "validate_every: 3\nsteps_per_eval: 4", "checkpoint_every: 3\nsave_every: 4"],
)
def test_two_names_of_one_thing_may_not_differ(text: str) -> None:
    """One of the two would be ignored."""
    assert "keep one of them" in refused(text).what


def test_our_names_take_effect() -> None:
    """`validate_every` and `checkpoint_every` are the names that the documents use."""
    made = spec("validate_every: 7\ncheckpoint_every: 9")
    assert (made.eval_every, made.save_steps) == (7, 9)
    assert (JobSpec().eval_every, JobSpec().save_steps) == (200, 100)
    assert spec("validate_every: 4\nsteps_per_eval: 4").eval_every == 4


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_can_be_built(name: str) -> None:
    """By the name that mlx_lm knows it by."""
    assert type(build_optimizer(spec(f"optimizer: {name}"))).__name__.lower() == name


@pytest.mark.parametrize(
    ("schedule", "first"),
    [
        ("{name: cosine_decay, arguments: [1e-3, 100]}", 1e-3),
        ("{name: exponential_decay, arguments: [1e-3, 0.9]}", 1e-3),
        ("{name: linear_schedule, arguments: [1e-3, 1e-5, 100]}", 1e-3),
        ("{name: step_decay, arguments: [1e-3, 0.9, 10]}", 1e-3),
        ("{name: cosine_decay, arguments: [1e-3, 100], warmup: 10, warmup_init: 1e-6}", 1e-6),
    ],
)
def test_every_schedule_can_be_built(schedule: str, first: float) -> None:
    """With the arguments that mlx_lm's documents give."""
    optimizer = build_optimizer(spec(f"lr_schedule: {schedule}"))
    assert optimizer.learning_rate.item() == pytest.approx(first)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("optimizer_config: {adam: {betaz: 1}}", "optimizer_config.adam"),
        ("optimizer: sgd\noptimizer_config: {sgd: {learning_rate: 1}}", "optimizer_config.sgd"),
        ("lr_schedule: {name: cosine_decay, arguments: [1e-3]}", "lr_schedule.arguments"),
        ("lr_schedule: {name: step_decay, arguments: [1, 2, 3, 4, 5, 6]}", "lr_schedule.arguments"),
    ],
)
def test_arguments_that_an_optimizer_does_not_take_are_refused(text: str, where: str) -> None:
    """An error of Python's would name a class that the user never heard of."""
    with pytest.raises(JobRejected) as caught:
        build_optimizer(spec(text))
    assert caught.value.where == where


def test_what_a_job_says_about_its_turn() -> None:
    """A duration and a time as people write them; what a resolved job stores reads the same again."""
    found = spec(
        "after: [first, second]\nnot_before: 2026-12-01T21:00:00Z\nmax_runtime: 2h30m\nretries: 3\nurgent: true"
    )
    assert (found.after, found.not_before) == (["first", "second"], "2026-12-01T21:00:00+00:00")
    assert (found.max_runtime, found.retries, found.urgent) == (9000.0, 3, True)
    assert spec("after: first").after == ["first"]
    again = JobSpec.model_validate(json.loads(found.model_dump_json()))
    assert again == found


@pytest.mark.parametrize(
    "text", ["max_runtime: soon", "max_runtime: 0", "not_before: tomorrow", "retries: 21", "after: ['']", "after: 3"]
)
def test_what_cannot_be_a_turn_is_refused(text: str) -> None:
    """With the key and its line."""
    error = refused(text)
    assert text.partition(":")[0] in error.what
    assert "line 1" in (error.where or "")
