"""The data files of a job, checked row by row without a tokenizer: train, valid and test in JSON Lines."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from qlora_engine.job.errors import DataRejected
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.text import kind_in_words

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")


class DataFormat(StrEnum):
    """mlx_lm's row formats, told apart by the keys of the first row."""

    COMPLETION = "completion"  # {"prompt": …, "completion": …}
    CHAT = "chat"  # {"messages": […], "tools": […]}
    TEXT = "text"  # {"text": …}


class DataFile(BaseModel):
    """One checked data file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    rows: int
    bytes: int
    sha256: str
    format: DataFormat


@dataclass(frozen=True)
class RowKeys:
    """What of a job decides whether a row can be trained on: where its text is, and whether prompts are masked."""

    prompt_feature: str
    completion_feature: str
    chat_feature: str
    text_feature: str
    mask_prompt: bool

    @classmethod
    def of(cls, spec: JobSpec) -> Self:
        """Those of a job."""
        return cls(**{field.name: getattr(spec, field.name) for field in fields(cls)})


def read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every row of a JSON Lines file with its line number; blank lines are passed over.

    Raises:
        DataRejected: a line is not a JSON object, or not UTF-8.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, parse_row(raw, path, number)


def parse_row(raw: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line of a JSON Lines file as a row. Raises `DataRejected`."""
    try:
        row = json.loads(raw)
    except UnicodeDecodeError:
        raise _bad_row(path, number, "holds bytes that are not UTF-8", "Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:  # ValueError alone: an integer of more than 4,300 digits
        detail = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else "not readable"
        raise _bad_row(
            path,
            number,
            f"is not JSON ({detail})",
            'Write one JSON object a line, for example {"prompt": "…", "completion": "…"}.',
        ) from None
    if not isinstance(row, dict):
        raise _bad_row(path, number, f"is {kind_in_words(row)}, not an object", "Write one JSON object a line.")
    return row


def _bad_row(path: Path, number: int, problem: str, remedy: str) -> DataRejected:
    return DataRejected(f"Row {number} of {path.name} {problem}.", where=f"{path}, line {number}", remedy=remedy)


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal.

    Raises:
        DataRejected: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataRejected(
            f"{path} cannot be read: {error.strerror}.", where=str(path), remedy="Put the file back."
        ) from None


def check_folder(folder: Path, spec: JobSpec) -> dict[Split, DataFile]:
    """Check the data folder of a job.

    Returns:
        The files that are there; `train` always is.

    Raises:
        DataRejected: a file is missing, empty or holds a row that cannot be trained on.
    """
    if not folder.is_dir():
        if folder.exists():
            raise DataRejected(
                f"The data path {folder} is a file.",
                where=f"data: {spec.data}",
                remedy="Name the folder that holds train.jsonl and valid.jsonl.",
            )
        raise DataRejected(
            f"The data folder {folder} does not exist.",
            where=f"data: {spec.data}",
            remedy="Make the folder with train.jsonl (and valid.jsonl) in it, or correct `data`.",
        )
    found = {split: folder / f"{split}.jsonl" for split in SPLITS if (folder / f"{split}.jsonl").exists()}
    if "train" not in found:
        raise DataRejected(
            f"{folder} holds no train.jsonl.",
            where=str(folder / "train.jsonl"),
            remedy="Put the training rows there, one JSON object a line.",
        )
    if spec.test and "test" not in found:
        raise DataRejected(
            f"`test: true`, but {folder} holds no test.jsonl.",
            where=str(folder / "test.jsonl"),
            remedy="Add the file, or remove `test`.",
        )
    checked: dict[Split, DataFile] = {split: _check_file(path, spec) for split, path in found.items()}
    formats = {file.format for file in checked.values()}
    if len(formats) > 1:
        raise DataRejected(
            "The data files have different formats: "
            + ", ".join(f"{split}.jsonl is {file.format}" for split, file in checked.items())
            + ".",
            where=str(folder),
            remedy="Write all of them in one format.",
        )
    return checked


def _check_file(path: Path, spec: JobSpec) -> DataFile:
    if not path.is_file():  # a pipe would be waited for until somebody writes to it
        raise DataRejected(
            f"{path.name} is not a regular file.", where=str(path), remedy="Write the rows into a plain file."
        )
    found = path.stat()
    seen = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return _checked(path, RowKeys.of(spec), seen)


# The jobs of a sweep, examined by one process, have one data file. What it looked like is a part of the key.
@functools.lru_cache(maxsize=16)
def _checked(path: Path, spec: RowKeys, seen: tuple[int, ...]) -> DataFile:  # seen: for the cache
    digest, rows, kind = hashlib.sha256(), 0, None
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                digest.update(raw)
                if not raw.strip():
                    continue
                row = parse_row(raw, path, number)
                kind = kind or format_of(row, spec, path, number)
                check_row(row, kind, spec, path, number)
                rows += 1
    except OSError as error:
        raise DataRejected(
            f"{path} cannot be read: {error.strerror}.", where=str(path), remedy="Check its permissions."
        ) from None
    if kind is None:
        raise DataRejected(
            f"{path.name} has no rows.",
            where=str(path),
            remedy="Write one JSON object a line into it" + (", or delete the file." if path.stem != "train" else "."),
        )
    return DataFile(path=str(path), rows=rows, bytes=path.stat().st_size, sha256=digest.hexdigest(), format=kind)


def format_of(row: Mapping[str, Any], spec: JobSpec | RowKeys, path: Path, number: int) -> DataFormat:
    """The format of a file by its first row, in mlx_lm's order of precedence."""
    if spec.prompt_feature in row and spec.completion_feature in row:
        return DataFormat.COMPLETION
    if spec.chat_feature in row:
        return DataFormat.CHAT
    if spec.text_feature in row:
        if spec.mask_prompt:
            raise DataRejected(
                "`mask_prompt: true`, but rows of plain text have no prompt to mask.",
                where=f"{path}, line {number}",
                remedy="Remove `mask_prompt`, or write rows with prompt and completion, or messages.",
            )
        return DataFormat.TEXT
    raise DataRejected(
        f"Row {number} of {path.name} has none of the known forms; its keys are {sorted(row)[:8]}.",
        where=f"{path}, line {number}",
        remedy=f"Give each row `{spec.prompt_feature}` and `{spec.completion_feature}`, or "
        f"`{spec.chat_feature}`, or `{spec.text_feature}`.",
    )


def check_row(row: Mapping[str, Any], kind: DataFormat, spec: JobSpec | RowKeys, path: Path, number: int) -> None:
    """Raise `DataRejected` unless the row has what its format needs, with the right types."""
    keys = {
        DataFormat.COMPLETION: (spec.prompt_feature, spec.completion_feature),
        DataFormat.TEXT: (spec.text_feature,),
        DataFormat.CHAT: (),
    }[kind]
    for key in keys:
        if not isinstance(row.get(key), str):
            found = f"is {kind_in_words(row[key])}" if key in row else "is missing"
            raise _bad_row(path, number, f"lacks the text of `{key}`: it {found}", f"Give `{key}` a text, in quotes.")
    if kind is DataFormat.TEXT and not row[spec.text_feature]:
        raise _bad_row(path, number, f"has an empty `{spec.text_feature}`", "Remove the row or fill it.")
    if kind is DataFormat.CHAT:
        _check_messages(row.get(spec.chat_feature), spec.chat_feature, path, number)


def _check_messages(messages: Any, key: str, path: Path, number: int) -> None:
    remedy = f'Write `{key}` as [{{"role": "user", "content": "…"}}, {{"role": "assistant", "content": "…"}}].'
    if not isinstance(messages, list) or not messages:
        raise _bad_row(path, number, f"has no list of turns in `{key}`", remedy)
    for turn in messages:
        if not isinstance(turn, dict) or not isinstance(turn.get("role"), str):
            raise _bad_row(path, number, f"has a turn without a `role` in `{key}`", remedy)
        if not isinstance(turn.get("content"), str | list) and not turn.get("tool_calls"):
            raise _bad_row(path, number, f"has a turn without `content` in `{key}`", remedy)
