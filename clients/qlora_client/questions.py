"""What `qlora init` asks a person, and what it takes for an answer."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import typer

from qlora_client.first_job import FirstJob, check_data
from qlora_client.home import expanded
from qlora_engine.job.errors import JobRejected, ModelRejected
from qlora_engine.job.folder import Home
from qlora_engine.job.models import CATALOGUE, installed, resolve
from qlora_engine.job.sources import may_be_hub_name

CONFIG = "config.json"  # every folder of a model has one


def ask(proposed: FirstJob, given: Collection[str], home: Home, say: Callable[[str], None]) -> FirstJob:
    """Ask for what was not given. Enter takes what is proposed; an answer that cannot be is asked for again.

    Args:
        proposed: the job without any answer.
        given: which of `name`, `model` and `data` the command line has said.
        home: whose models are named.
        say: explains a question.

    Raises:
        typer.Abort: the person has ended it.
    """
    job = proposed
    if {"name", "model", "data"} - set(given):
        say("Enter takes what stands in brackets.")
    if "name" not in given:
        job = replace(job, name=_prompt("Name of the job", job.name))
    if "model" not in given:
        _say_wrapped(say, _about_models(home))

        def checked(answer: str) -> str:
            answer = from_folder(_something(answer), job.folder, CONFIG)
            check_model_name(answer, job.folder, home)
            return answer

        job = replace(job, model=_prompt("Model", job.model, checked))
    if "data" not in given:
        _say_wrapped(say, "A folder of train.jsonl and valid.jsonl; a few rows are made if there is none.")

        def check(answer: str) -> str:
            answer = from_folder(answer, job.folder, "train.jsonl")
            check_data(job.folder / expanded(answer))
            return answer

        job = replace(job, data=_prompt("Data", job.data, check))
    return job


def from_folder(path: str, folder: Path, holds: str) -> str:
    """A path that somebody typed, as the job file in `folder` must name it.

    A shell's paths start from the working folder, a job file's from its own. What is found only from the working folder
    is therefore written in full.

    Args:
        path: as typed; a name that is no path stays as it is.
        folder: of the job file.
        holds: a file that lies in such a folder.
    """
    if (folder / expanded(path) / holds).is_file() or not (Path(path) / holds).is_file():
        return path
    return str(Path(path).absolute())


def check_model_name(name: str, folder: Path, home: Home) -> None:
    """Refuse what is not here, cannot be added, is no folder, and may be no name of the hub, which nobody is asked yet.

    Args:
        name: as the job file would have it.
        folder: of the job file.
        home: whose models are known.

    Raises:
        ModelRejected: it can be no model.
    """
    if name in CATALOGUE or resolve(name, home.path) or (folder / expanded(name)).is_dir():
        return
    if not may_be_hub_name(name):
        raise ModelRejected(
            f"No model and no folder is called {name!r:.80}.",
            where=f"--model {name:.80}",
            remedy="`qlora models ls` lists those that are here; a folder, or owner/name of the hub, will do, too.",
        )


def missing_model(model: str, home: Home) -> str | None:
    """The name of a model that `qlora models add` knows and that is not here yet; None for any other."""
    return model if model in CATALOGUE and not (home.models / model).exists() else None


def _about_models(home: Home) -> str:
    if here := [model.name for model in installed(home.path) if model.problem is None]:
        return f"Models that are here: {', '.join(here)}. A folder, or owner/name of the hub, will do, too."
    small = ", ".join(CATALOGUE)
    return f"This one of the hub fits; {small} is small and fetched by `qlora models add`. A folder will do, too."


def _say_wrapped(say: Callable[[str], None], text: str) -> None:
    for line in textwrap.wrap(text, shutil.get_terminal_size().columns, break_on_hyphens=False):
        say(line)


def _something(answer: str) -> str:
    if not answer.strip():
        raise typer.BadParameter("It must not be blank.")
    return answer.strip()


def _prompt(question: str, proposed: str, check: Callable[[str], str] = _something) -> str:
    def checked(answer: str) -> str:
        try:
            return check(answer)
        except JobRejected as wrong:
            raise typer.BadParameter(f"{wrong.what} {wrong.remedy}") from None

    return str(typer.prompt(question, default=os.fspath(proposed), value_proc=checked))
