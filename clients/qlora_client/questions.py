"""What `qlora init` asks a person, and what it takes for an answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import typer

from qlora_client.first_job import FirstJob, check_data
from qlora_engine.job.errors import JobRejected
from qlora_engine.job.folder import Home
from qlora_engine.job.models import CATALOGUE, installed

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
        say(_about_models(home))
        job = replace(job, model=from_folder(_prompt("Model", job.model), job.folder, CONFIG))
    if "data" not in given:
        say("A folder with train.jsonl and valid.jsonl; if there is none, it is made with a few rows.")

        def check(answer: str) -> str:
            answer = from_folder(answer, job.folder, "train.jsonl")
            try:
                check_data(job.folder / Path(answer).expanduser())
            except JobRejected as wrong:
                raise typer.BadParameter(f"{wrong.what} {wrong.remedy}") from None
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
    if (folder / Path(path).expanduser() / holds).is_file() or not (Path(path) / holds).is_file():
        return path
    return str(Path(path).absolute())


def missing_model(model: str, home: Home) -> str | None:
    """The name of a model that `qlora models add` knows and that is not here yet; None for any other."""
    return model if model in CATALOGUE and not (home.models / model).exists() else None


def _about_models(home: Home) -> str:
    if here := [model.name for model in installed(home.path) if model.problem is None]:
        return f"Models that are here: {', '.join(here)}. A folder, or owner/name of the hub, will do, too."
    small = ", ".join(CATALOGUE)
    return f"This one of the hub fits; {small} is small and fetched by `qlora models add`. A folder will do, too."


def _something(answer: str) -> str:
    if not answer.strip():
        raise typer.BadParameter("It must not be blank.")
    return answer.strip()


def _prompt(question: str, proposed: str, check: Callable[[str], str] = _something) -> str:
    return str(typer.prompt(question, default=os.fspath(proposed), value_proc=check))
