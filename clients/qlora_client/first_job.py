"""What `qlora init` writes: a job file for this machine, with comments, and a few rows where there are none yet."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from qlora_client.home import expanded
from qlora_engine.job import datafiles
from qlora_engine.job.errors import Exit, JobRejected, QloradError
from qlora_engine.job.folder import Home
from qlora_engine.job.jobfile import as_yaml
from qlora_engine.job.models import installed
from qlora_engine.job.schema import FILE, REFERENCE, as_text
from qlora_engine.job.spec import JobSpec

GIGA = 1e9
TOGETHER = 8  # rows of an optimizer step, on every machine
PLAIN = re.compile(r"[A-Za-z./~][\w./~-]*")  # what YAML needs no quotes for

# Rows that show the form of the data and train within seconds; whoever has data of their own replaces them.
TRAIN = [
    ("Name a fruit that is red.", "A cherry."),
    ("Name a fruit that is yellow.", "A lemon."),
    ("Name an animal that swims.", "An otter."),
    ("Name an animal that flies.", "A swallow."),
    ("Name a tool for wood.", "A plane."),
    ("Name a tool for metal.", "A file."),
    ("Name a river in Africa.", "The Niger."),
    ("Name a river in Asia.", "The Mekong."),
]
VALID = [("Name a fruit that is green.", "A gooseberry."), ("Name a river in Europe.", "The Loire.")]


class FileExists(QloradError):
    """What would be written is there already, or a file stands where a folder should be."""

    exit_code = Exit.CANTCREAT


@dataclass(frozen=True)
class Fitting:
    """What a machine has room for.

    Attributes:
        up_to: 10^9 bytes of memory.
        model: of the hub, 4 bits.
        batch_size: rows of 512 tokens at once.
    """

    up_to: float
    model: str
    batch_size: int


# Twice the memory, twice the model. A test holds each against the engine's own estimate.
FITTINGS = (
    Fitting(12, "mlx-community/Qwen3-1.7B-4bit", 2),
    Fitting(24, "mlx-community/Qwen3-4B-4bit", 4),
    Fitting(48, "mlx-community/Qwen3-8B-4bit", 4),
    Fitting(float("inf"), "mlx-community/Qwen3-14B-4bit", 4),
)


@dataclass(frozen=True)
class FirstJob:
    """What is to be written.

    Attributes:
        folder: of the job file.
        model: a model of the home, a folder, or a name of the hub.
        data: the folder of the data, as it stands in the job file.
        name: of the job.
        memory: bytes that the machine has.
    """

    folder: Path
    model: str
    data: str
    name: str
    memory: int

    @property
    def file(self) -> Path:
        """The job file."""
        return file_in(self.folder)

    @property
    def data_folder(self) -> Path:
        """Where the rows are; an absolute path stays as it is."""
        return self.folder / expanded(self.data)

    def text(self, *, masks: bool) -> str:
        """The job file's.

        Args:
            masks: the rows have prompts, which need not be learned.
        """
        fitting = fitting_for(self.memory)
        mask = "mask_prompt: true            # learn the answers, not the questions\n" if masks else ""
        return f"""{REFERENCE}
# A fine-tuning job, made for {self.memory / GIGA:.0f} GB of memory. See what it needs: qlora validate
# All keys with what they mean: qlora schema. Paths start from this file's folder.
name: {_scalar(self.name)}
model: {_scalar(self.model)}
data: {_scalar(self.data)}                   # a folder with train.jsonl and valid.jsonl

# What is trained: adapters of the last 16 layers; -1 takes all.
num_layers: 16
lora_parameters: {{rank: 8, scale: 20.0, dropout: 0.0}}
{mask}max_seq_length: 512          # tokens; longer rows are cut, and `qlora validate` says how many

# How: {TOGETHER} rows an optimizer step, {fitting.batch_size} of them at once.
epochs: 3
batch_size: {fitting.batch_size}
grad_accumulation_steps: {TOGETHER // fitting.batch_size}
grad_checkpoint: false       # true needs less memory and more time
learning_rate: 1.0e-4

# How often, in micro-batches: a report, a validation, a checkpoint.
steps_per_report: 20
steps_per_eval: 100
save_every: 200
keep: best                   # of the checkpoints, the one with the lowest validation loss
"""


def fitting_for(memory: int) -> Fitting:
    """What a machine with so many bytes of memory has room for."""
    return next(fitting for fitting in FITTINGS if memory / GIGA < fitting.up_to)


def model_to_propose(home: Home, memory: int) -> str:
    """A model that is here already and can be used, or else one of the hub that fits."""
    here = [model for model in installed(home.path) if model.problem is None]
    return here[0].name if here else fitting_for(memory).model


def file_in(folder: Path) -> Path:
    """The job file of a folder."""
    return folder / "job.yaml"


def check_place(folder: Path, *, replace: bool = False) -> None:
    """Refuse a folder in which no job file can be made, before anybody is asked what should stand in it.

    Raises:
        FileExists: there is a job file, and it is not to be replaced; or the folder is a file.
    """
    if folder.is_file():
        raise FileExists(
            f"{folder} is a file.", where=str(folder), remedy="Name a folder; job.yaml is made in it, with its data."
        )
    if file_in(folder).exists() and not replace:
        raise FileExists(
            f"There is a job file already: {file_in(folder)}.",
            where=str(file_in(folder)),
            remedy="Name another folder, or replace it with --force.",
        )


def check_data(folder: Path) -> None:
    """Refuse a folder of data that is there and holds nothing to train on. Raises `JobRejected`."""
    if folder.exists() and not (folder / "train.jsonl").is_file():
        raise JobRejected(
            f"The data folder {folder} holds no train.jsonl.",
            where=str(folder / "train.jsonl"),
            remedy="Put one there: a JSON object a line, with `prompt` and `completion`, `messages`, or `text`.",
        )


def write(job: FirstJob, *, replace: bool = False) -> list[Path]:
    """Write the job file, its schema beside it, and rows where there are none.

    Returns:
        What was written.

    Raises:
        FileExists: as of `check_place`.
        JobRejected: there is data of which a row cannot be read.
        OSError: the folder cannot be written.
    """
    check_place(job.folder, replace=replace)
    check_data(job.data_folder)
    job.folder.mkdir(parents=True, exist_ok=True)
    written = []
    data = job.data_folder
    if not data.exists():
        data.mkdir(parents=True)
        for name, rows in (("train", TRAIN), ("valid", VALID)):
            file = data / f"{name}.jsonl"
            lines = (json.dumps({"prompt": prompt, "completion": answer}) for prompt, answer in rows)
            file.write_text("\n".join(lines) + "\n")
            written.append(file)
    text = job.text(masks=_has_prompts(data / "train.jsonl"))
    (job.folder / FILE).write_text(as_text())
    job.file.write_text(text)
    return [job.file, job.folder / FILE, *written]


def _has_prompts(train: Path) -> bool:
    number, row = next(datafiles.read_rows(train), (1, {}))
    return datafiles.format_of(row, JobSpec(), train, number) is not datafiles.DataFormat.TEXT


def _scalar(text: str) -> str:
    return text if PLAIN.fullmatch(text) else as_yaml(text)
