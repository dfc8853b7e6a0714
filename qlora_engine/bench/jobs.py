"""The job of a bench, in the form that each trainer takes: the same documents an optimizer step, no validation."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qlora_engine import blas
from qlora_engine.job.datafiles import DataFile, DataFormat
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.examine import examine_text
from qlora_engine.job.jobfile import JobText, read_job_file
from qlora_engine.job.overrides import with_value
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec

WITHOUT_END = 10**9  # micro-batches; whoever measures ends the run

# mlx_lm's keys that say what is trained and how. The others say when to save, to validate, and where to report.
_OF_TRAINING = (
    "model", "fine_tune_type", "optimizer", "optimizer_config", "data", "prompt_feature", "completion_feature",
    "chat_feature", "text_feature", "mask_prompt", "num_layers", "batch_size", "learning_rate", "max_seq_length",
    "grad_checkpoint", "grad_accumulation_steps", "clear_cache_threshold", "lr_schedule", "lora_parameters",
)  # fmt: skip
_OF_THE_ENGINE = ("grad_clip", "lora_plus_ratio", "max_loss", "on_out_of_memory", "memory", "packing")


@dataclass(frozen=True)
class BenchJob:
    """A job whose data is on this machine.

    Attributes:
        resolved: the job with its data.
        data: the folder of the data.
    """

    resolved: ResolvedJob
    data: Path

    @property
    def spec(self) -> JobSpec:
        """The job's keys."""
        return self.resolved.spec

    def on(self, folder: Path, file: DataFile) -> BenchJob:
        """The same job on rows of plain text in another folder."""
        spec = self.spec.model_copy(update={"mask_prompt": False})
        return replace(
            self, resolved=self.resolved.model_copy(update={"spec": spec, "data": {"train": file}}), data=folder
        )

    def shared_keys(self) -> dict[str, Any]:
        """What both trainers are given, as JSON."""
        keys: dict[str, Any] = self.spec.model_dump(mode="json", include=set(_OF_TRAINING))
        return {**keys, "model": self.resolved.model_path or self.spec.model, "data": str(self.data)}

    def for_engine(self, seed: int, *, packing: str | None = None) -> dict[str, Any]:
        """The job file of the engine: a report each optimizer step on a CPU, where one takes seconds; else each five.

        Args:
            seed: of order and weights.
            packing: instead of the job's own choice.
        """
        ours = self.spec.model_dump(mode="json", include=set(_OF_THE_ENGINE))
        return {
            **self.shared_keys(),
            **ours,
            **({"packing": packing} if packing is not None else {}),
            "seed": seed,
            "iters": WITHOUT_END,
            "steps_per_report": self.spec.grad_accumulation_steps * (1 if _on_cpu() else 5),
            "val_batches": 0,
            "samples": 0,
            "save_every": WITHOUT_END,
            "checkpoint_minutes": 0,
        }

    def for_mlx_lm(self, seed: int, adapters: Path) -> dict[str, Any]:
        """The config of mlx_lm: a report each iteration."""
        lora = self.spec.lora_parameters
        known = {"rank": lora.rank, "scale": lora.effective_scale, "dropout": lora.dropout}
        return {
            **self.shared_keys(),
            "lora_parameters": known | ({"keys": lora.keys} if lora.keys else {}),
            "train": True,
            "seed": seed,
            "iters": WITHOUT_END,
            "steps_per_report": 1,
            "steps_per_eval": WITHOUT_END,
            "val_batches": 0,
            "save_every": WITHOUT_END,
            "adapter_path": str(adapters),
        }


def read_bench_job(job_file: Path | None, overrides: Mapping[str, Any], *, home: Path, work: Path) -> BenchJob:
    """The job to compare with.

    Args:
        job_file: a job file, or None for the bench's own small job.
        overrides: keys that replace those of the file; relative paths in them start from the working folder.
        home: QLORAD_HOME, whose models have short names.
        work: an existing folder that lasts as long as the bench.

    Raises:
        JobRejected: (or a subclass) the file, its model or its data cannot be used.
    """
    text = read_job_file(job_file.resolve())[1] if job_file is not None else JobText(own_job(work / "own"), "job.json")
    for key, value in _absolute(overrides).items():
        text = with_value(text, (key,), value, f"{key}: {value!s:.80}")
    base = job_file.absolute().parent if job_file is not None else work
    resolved = examine_text(text, home=home, base=base, shown_as=str(job_file or "the bench's own job"))
    if not resolved.data:
        raise JobRejected(
            "The job's data is a data set of the hub, which a bench does not load.",
            where=f"data: {resolved.spec.data}",
            remedy="Name a folder with train.jsonl: `--data FOLDER`.",
        )
    return BenchJob(resolved, Path(resolved.data["train"].path).parent)


def full_rows(job: BenchJob, folder: Path) -> BenchJob:
    """The job on rows of text that fill max_seq_length, which were written to `folder/train.jsonl`."""
    train = folder / "train.jsonl"
    with train.open("rb") as file:
        rows = sum(1 for _ in file)
    size = train.stat().st_size
    return job.on(folder, DataFile(path=str(train), rows=rows, bytes=size, sha256="", format=DataFormat.TEXT))


def own_job(folder: Path) -> dict[str, Any]:
    """A job for those who name none: short questions and answers for SmolLM2, four an optimizer step.

    On a CPU, where mlx_lm takes some ten seconds a row, these are four micro-batches of one, so that a run is over
    in time; elsewhere one of four.
    """
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in _own_rows()))
    return {
        "model": "smollm2",
        "data": str(folder),
        "batch_size": 1 if _on_cpu() else 4,
        "grad_accumulation_steps": 4 if _on_cpu() else 1,
        "max_seq_length": 49,  # 48 inputs; the longest row has under 40 tokens
        "num_layers": 16,
    }


def _on_cpu() -> bool:
    """Known without mlx, which the process that runs a bench never imports."""
    return sys.platform.startswith("linux") and blas.installed("mlx-cpu")


def _own_rows() -> list[str]:
    draw = random.Random(0)  # noqa: S311  # the same rows every time
    rows = []
    for _ in range(400):
        numbers = [draw.randrange(10, 1000) for _ in range(draw.randrange(2, 6))]
        rows.append(f"Add {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}. The sum is {sum(numbers)}.")
    return rows


def _absolute(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Paths from the working folder, where the command was typed; names of models stay names.

    Another `data` also replaces `hf_dataset`, which would be read in its place.
    """
    paths = {key: str(Path(str(overrides[key])).expanduser().absolute()) for key in ("data",) if key in overrides}
    if "model" in overrides and Path(str(overrides["model"])).expanduser().is_dir():
        paths["model"] = str(Path(str(overrides["model"])).expanduser().absolute())
    return {**({"hf_dataset": None} if "data" in overrides else {}), **overrides, **paths}
