"""The keys of a job file: those of mlx_lm's LoRA config, with its meaning and defaults, and ours."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from qlora_engine.job.free_section import check_plain
from qlora_engine.job.sweep import Sweep
from qlora_engine.job.when import seconds_of
from qlora_engine.job.wishes import LIMIT, AnyText, Section, Text, Wishes, read_value, shown

# What `hf_dataset.config` may say to `datasets.load_dataset`: which data, and nothing of how it is loaded.
HUB_CONFIG = frozenset({"name", "data_dir", "data_files", "revision", "verification_mode", "keep_in_memory"})
# A packaged loader that unpickles, which runs whatever the file says.
UNPICKLES = frozenset({"pandas"})

REPORTERS = ("wandb", "swanlab", "tensorboard", "trackio")

AS_WRITTEN = {"as_written": True}  # validation context: only keys that a person wrote are there

INT32 = 2**31  # what counts the tokens of a row, and MLX the steps of a schedule

Count = Annotated[int, Field(ge=1, lt=LIMIT)]


class LoraParameters(Section):
    """Size, scale and place of the adapters. mlx_lm knows `scale`, not `alpha`."""

    rank: Count = Field(default=8, description="columns of an adapter's matrices")
    scale: Annotated[float, Field(gt=0)] = Field(default=20.0, description="alpha over rank")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="share of inputs left out")
    keys: list[Text] | None = Field(default=None, description="layer names; all linear layers when left out")
    rank_stabilized: bool = Field(default=False, description="multiply the scale by the square root of the rank")

    @property
    def effective_scale(self) -> float:
        """What the adapters' product is multiplied by.

        `scale` stands for alpha / rank. Rank-stabilized adapters use alpha / √rank (Kalajdzievski 2023).
        """
        return self.scale * math.sqrt(self.rank) if self.rank_stabilized else self.scale


class Memory(Section):
    """How much memory training may use, and when it gives back what it holds in reserve."""

    limit_gb: Annotated[float, Field(gt=0, lt=LIMIT)] | None = Field(
        default=None, description="10^9 bytes; what the device recommends when left out"
    )
    cleanup_every: Count | None = Field(
        default=None, description="micro-batches between two cleanups of the allocator; by need alone when left out"
    )


class EarlyStopping(Section):
    """When to end a run whose validation loss no longer falls."""

    patience: Count = Field(default=3, description="validations in a row without an improvement")
    min_delta: Annotated[float, Field(ge=0)] = Field(default=0.0, description="what counts as one, nats")


class LrSchedule(Section):
    """A schedule of `mlx.optimizers.schedulers` by name, with warmup in optimizer steps."""

    name: Literal["cosine_decay", "exponential_decay", "linear_schedule", "step_decay"] = Field(
        description="of mlx.optimizers.schedulers"
    )
    arguments: Annotated[list[float], Field(min_length=1)] = Field(description="of the schedule, in its own order")
    warmup: Annotated[int, Field(ge=0, lt=INT32)] = Field(default=0, description="optimizer steps that lead up to it")
    warmup_init: Annotated[float, Field(ge=0)] = Field(default=0.0, description="learning rate where that begins")


class MlxLmKeys(Section):
    """The keys of mlx_lm's LoRA config, with its meaning and defaults. Counts of iterations are micro-batches."""

    model: Text = Field(default="Qwen/Qwen3-0.6b", description="a model of the home, a folder, or a name of the hub")
    train: Literal[True] = Field(default=True, description="a job trains; `false` has no meaning here")
    fine_tune_type: Literal["lora", "dora", "full"] = Field(
        default="lora", description="adapters, adapters with magnitudes, or all weights"
    )
    optimizer: Literal["adam", "adamw", "muon", "sgd", "adafactor"] = Field(
        default="adam", description="of mlx.optimizers"
    )
    optimizer_config: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="arguments of the optimizer, by its name"
    )
    data: Text = Field(
        default="mlx-community/WikiSQL",
        description="a folder with train.jsonl and valid.jsonl, or a data set of the hub",
    )
    hf_dataset: dict[str, Any] | list[dict[str, Any]] | None = Field(
        default=None, description="data sets of the hub with their own keys, as in mlx_lm"
    )
    prompt_feature: Text = Field(default="prompt", description="key of a row's prompt")
    completion_feature: Text = Field(default="completion", description="key of a row's answer")
    chat_feature: Text = Field(default="messages", description="key of a row's messages")
    text_feature: Text = Field(default="text", description="key of a row's plain text")
    mask_prompt: bool = Field(default=False, description="learn the answers alone, not the prompts")
    seed: Annotated[int, Field(ge=0, lt=LIMIT)] = Field(
        default=0, description="decides the order of rows, the adapters' start and dropout"
    )
    num_layers: Annotated[int, Field(ge=-1, lt=LIMIT)] = Field(
        default=16, description="the last so many layers get adapters; -1 for all"
    )
    batch_size: Count = Field(default=4, description="rows of a micro-batch")
    iters: Count = Field(default=1000, description="length of the run in micro-batches")
    val_batches: Annotated[int, Field(ge=-1, lt=LIMIT)] = Field(
        default=25, description="micro-batches of a validation; -1 for all rows, 0 for none"
    )
    learning_rate: Annotated[float, Field(gt=0)] = Field(default=1e-5, description="where no schedule sets it")
    steps_per_report: Count = Field(default=10, description="micro-batches between two reports")
    steps_per_eval: Count = Field(default=200, description="micro-batches between two validations")
    save_every: Count = Field(default=100, description="micro-batches between two checkpoints")
    resume_adapter_file: Text | None = Field(default=None, description="adapters to start from, .safetensors")
    adapter_path: Text = Field(default="adapters", description="recorded; the result is in the run folder's adapters/")
    test: bool = Field(default=False, description="evaluate test.jsonl in the end")
    test_batches: Annotated[int, Field(ge=-1, lt=LIMIT)] = Field(
        default=500, description="micro-batches of that; -1 for all rows"
    )
    max_seq_length: Annotated[int, Field(ge=8, lt=INT32)] = Field(
        default=2048, description="tokens of a row; what is longer is cut"
    )
    config: AnyText | None = Field(default=None, description="no meaning inside a config file, as in mlx_lm")
    grad_checkpoint: bool = Field(
        default=False, description="compute layers again in the backward pass: less memory, more time"
    )
    grad_accumulation_steps: Count = Field(default=1, description="micro-batches of an optimizer step")
    clear_cache_threshold: Annotated[int, Field(ge=0, lt=LIMIT)] = Field(
        default=0, description="bytes of the allocator's reserve over which it is given back; 0 for by need"
    )
    lr_schedule: LrSchedule | None = Field(default=None, description="the learning rate over optimizer steps")
    lora_parameters: LoraParameters = Field(
        default_factory=LoraParameters, description="size, scale and place of the adapters"
    )
    report_to: Text | list[Text] | None = Field(
        default=None, description="wandb, swanlab, tensorboard, trackio; several with commas, as in mlx_lm"
    )
    project_name: AnyText | None = Field(default=None, description="of what is reported elsewhere; see `report_to`")
    trust_remote_code: Literal[False] = Field(default=False, description="refused from a job file")

    @field_validator("optimizer_config", "hf_dataset", mode="after")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        check_plain(value)
        return value

    @field_validator("hf_dataset", mode="after")
    @classmethod
    def _harmless(cls, value: Any) -> Any:
        for section in value if isinstance(value, list) else [value or {}]:
            path, config = section.get("path"), section.get("config") or {}
            if not isinstance(path, str | None):
                raise ValueError(f"`hf_dataset.path` is {shown(path)}, which is no text")  # noqa: TRY004  # what pydantic takes
            if path in UNPICKLES or str(path).endswith((".py", ".pkl", ".pickle")):
                raise ValueError(f"`hf_dataset.path` is {path!r:.60}, which would run code that came with the data")
            if not isinstance(config, dict) or (more := sorted(config.keys() - HUB_CONFIG)):
                found = f"has `{more[0]!s:.60}`" if isinstance(config, dict) else "is no section"
                raise ValueError(f"`hf_dataset.config` {found}; it may have {', '.join(sorted(HUB_CONFIG))}")
        return value

    @field_validator("optimizer_config", mode="before")
    @classmethod
    def _without_empty_entries(cls, value: Any) -> Any:
        # mlx_lm's own example lists every optimizer with nothing behind it, which YAML reads as null.
        return {key: entry or {} for key, entry in value.items()} if isinstance(value, dict) else value

    @field_validator("report_to", mode="after")
    @classmethod
    def _known_reporters(cls, value: str | list[str] | None) -> str | list[str] | None:
        for name in _reporters(value):
            if name not in REPORTERS:
                raise ValueError(f"`report_to` names {name!r}; known are {', '.join(REPORTERS)}")
        return value


class JobSpec(Wishes, MlxLmKeys):
    """A fine-tuning job: mlx_lm's keys, and ours."""

    max_runtime: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds of training, or 30m, 2h30m, 1d: then it is held at a checkpoint"
    )
    epochs: Annotated[float, Field(gt=0, lt=LIMIT)] | None = Field(
        default=None, description="length of the run in passes over the data, instead of `iters`"
    )
    validate_every: Count | None = Field(default=None, description="another name for steps_per_eval")
    checkpoint_every: Count | None = Field(default=None, description="another name for save_every")
    checkpoint_minutes: Annotated[float, Field(ge=0)] = Field(
        default=5.0, description="a checkpoint is written after this time as well; 0 for by count alone"
    )
    grad_clip: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="largest gradient norm; larger ones are scaled down to it"
    )
    lora_plus_ratio: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="learning rate of the B matrices over that of the A matrices (LoRA+)"
    )
    packing: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="join documents in rows, kept apart by attention: where that is faster, wherever it saves "
        "padding, or never",
    )
    max_loss: Annotated[float, Field(gt=0)] = Field(
        default=1e6, description="mean loss over which a micro-batch is dropped, nats"
    )
    early_stopping: EarlyStopping | None = Field(
        default=None, description="end the run when the validation loss no longer falls"
    )
    keep: Literal["last", "best"] = Field(
        default="last", description="which adapters are the result: the last, or those of the lowest validation loss"
    )
    on_change: Literal["refuse", "restart"] = Field(
        default="refuse", description="what to do when data or settings changed since the checkpoint"
    )
    on_out_of_memory: Literal["step_down", "truncate", "fail"] = Field(
        default="step_down",
        description="recompute layers, then smaller micro-batches; `truncate`: then shorter sequences, too",
    )
    memory: Memory = Field(default_factory=Memory, description="how much of it training may use")
    samples: Annotated[int, Field(ge=0, le=20)] | list[Text] = Field(
        default=2, description="answers before and after training: how many validation rows, or the prompts"
    )
    sweep: Sweep | None = Field(
        default=None, exclude=True, description="lists of values that make this file a group of jobs"
    )  # of the file alone: a job that came of it has its own values and nothing of this

    @field_validator("max_runtime", mode="before")
    @classmethod
    def _as_seconds(cls, value: Any) -> Any:
        return None if value is None else read_value("max_runtime", seconds_of, value)

    @field_validator("packing", mode="before")
    @classmethod
    def _as_word(cls, value: Any) -> Any:
        # YAML reads `on` and `off` as truth values.
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @model_validator(mode="after")
    def _agree(self, info: ValidationInfo) -> JobSpec:
        if info.context != AS_WRITTEN:
            return self  # a resolved job has every default written out, so both keys of each pair
        for ours, theirs in (("validate_every", "steps_per_eval"), ("checkpoint_every", "save_every")):
            if {ours, theirs} <= self.model_fields_set and getattr(self, ours) != getattr(self, theirs):
                raise ValueError(f"`{ours}` and `{theirs}` mean the same but differ; keep one of them")
        if {"epochs", "iters"} <= self.model_fields_set and self.epochs is not None:
            raise ValueError("`epochs` and `iters` both set the length of the run; keep one of them")
        return self

    @property
    def eval_every(self) -> int:
        """Micro-batches between two validations."""
        return self.validate_every or self.steps_per_eval

    @property
    def reporters(self) -> tuple[str, ...]:
        """The names in `report_to`."""
        return _reporters(self.report_to)

    @property
    def save_steps(self) -> int:
        """Micro-batches between two checkpoints; each waits for the end of its window."""
        return self.checkpoint_every or self.save_every


def _reporters(value: str | list[str] | None) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value or []
    return tuple(name.strip().lower() for name in names if name.strip())
