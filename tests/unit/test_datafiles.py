"""The data files of a job, checked row by row before it is accepted."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from qlora_engine.job.datafiles import DataFormat, check_folder, digest, read_rows
from qlora_engine.job.errors import DataRejected, Exit
from qlora_engine.job.spec import JobSpec

COMPLETION = {"prompt": "a", "completion": "b"}
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
TEXT = {"text": "a"}


def write(folder: Path, **rows: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, values in rows.items():
        lines = (value if isinstance(value, str) else json.dumps(value) for value in values)
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def refused(folder: Path, **keys: Any) -> DataRejected:
    with pytest.raises(DataRejected) as caught:
        check_folder(folder, JobSpec(**keys))
    error = caught.value
    assert error.exit_code == Exit.DATAERR
    assert error.what.endswith(".")
    assert error.where
    assert error.remedy
    return error


@pytest.mark.parametrize(("row", "kind"), [(COMPLETION, "completion"), (CHAT, "chat"), (TEXT, "text")])
def test_each_format_is_known_by_its_keys(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    """mlx_lm's formats and its order of precedence."""
    found = check_folder(write(tmp_path / "d", train=[row, row], valid=[row]), JobSpec())
    assert set(found) == {"train", "valid"}
    assert found["train"].format == DataFormat(kind)
    assert (found["train"].rows, found["valid"].rows) == (2, 1)


def test_a_row_with_several_forms_has_mlx_lms_precedence(tmp_path: Path) -> None:
    """The same file must mean the same here as there."""
    assert check_folder(write(tmp_path / "a", train=[TEXT | CHAT]), JobSpec())["train"].format == "chat"
    assert check_folder(write(tmp_path / "b", train=[TEXT | CHAT | COMPLETION]), JobSpec())["train"].format == (
        "completion"
    )


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    """A run is resumed only on the very data that it began with."""
    folder = write(tmp_path / "d", train=[COMPLETION, "", COMPLETION])
    content = (folder / "train.jsonl").read_bytes()
    found = check_folder(folder, JobSpec())["train"]
    assert found.sha256 == hashlib.sha256(content).hexdigest() == digest(folder / "train.jsonl")
    assert found.bytes == len(content)
    assert found.rows == 2
    assert Path(found.path).is_absolute()


def test_a_missing_folder_a_missing_file_and_a_file_for_a_folder(tmp_path: Path) -> None:
    """Three mistakes, three remedies."""
    assert "does not exist" in refused(tmp_path / "none").what
    assert "train.jsonl" in refused(write(tmp_path / "d", valid=[TEXT])).what
    (tmp_path / "f").write_text("x")
    assert "is a file" in refused(tmp_path / "f").what
    assert "test.jsonl" in refused(write(tmp_path / "e", train=[TEXT]), test=True).what


@pytest.mark.parametrize("content", [b"", b"\n\n  \n"])
@pytest.mark.parametrize("name", ["train", "valid"])
def test_an_empty_file_is_refused(tmp_path: Path, content: bytes, name: str) -> None:
    """Nothing to train on, or a validation over nothing."""
    folder = write(tmp_path / "d", train=[TEXT], valid=[TEXT])
    (folder / f"{name}.jsonl").write_bytes(content)
    error = refused(folder)
    assert "no rows" in error.what
    assert error.where == str(folder / f"{name}.jsonl")


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"prompt": "a", "completion": }', "not JSON"),
        (b'{"prompt": "a"', "not JSON"),
        (b"prompt,completion", "not JSON"),
        (b"{'prompt': 'a'}", "not JSON"),
        (b'{"prompt": "a", "completion": "b"} {"prompt": "c"}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"prompt": ' + b"9" * 5000 + b', "completion": "b"}', ""),
        (b'["a", "b"]', "is a list, not an object"),
        (b'"a"', "is text, not an object"),
        (b"null", "is null, not an object"),
        (b'{"prompt": "\xff", "completion": "b"}', "UTF-8"),
        (b'{"prompt": "a"}', "completion"),
        (b'{"prompt": "a", "completion": 5}', "it is a number"),
        (b'{"prompt": null, "completion": "b"}', "it is null"),
        (b'{"text": "a"}', "prompt"),
        (b"{}", "prompt"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, line: bytes, what: str) -> None:
    """One bad row among a million must be found; blank lines count as lines."""
    folder = write(tmp_path / "d", train=[COMPLETION, "", COMPLETION], valid=[COMPLETION])
    with (folder / "train.jsonl").open("ab") as file:
        file.write(line + b"\n" + json.dumps(COMPLETION).encode() + b"\n")
    error = refused(folder)
    assert "Row 4 of train.jsonl" in error.what
    assert what in error.what
    assert error.where == f"{folder / 'train.jsonl'}, line 4"
    assert len(error.what) < 300


@pytest.mark.parametrize(
    "messages",
    [
        None,
        "hello",
        [],
        ["hello"],
        [{"content": "a"}],
        [{"role": 5, "content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "assistant", "content": 5}],
    ],
)
def test_a_bad_conversation_is_named_by_its_line(tmp_path: Path, messages: Any) -> None:
    """A template would fail on it an hour later, or train on the word None."""
    error = refused(write(tmp_path / "d", train=[CHAT, {"messages": messages}]))
    assert "Row 2" in error.what
    assert error.remedy is not None
    assert '"role": "user"' in error.remedy


def test_tool_calls_and_parts_are_conversations(tmp_path: Path) -> None:
    """A turn that calls a tool has no content; content may be a list of parts."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "rain?"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
        {"role": "tool", "content": "yes"},
    ]
    assert check_folder(write(tmp_path / "d", train=[{"messages": messages}]), JobSpec())["train"].rows == 1


def test_a_row_of_no_known_form_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    """`instruction` and `output` are another tool's names."""
    error = refused(write(tmp_path / "d", train=[{"instruction": "a", "output": "b"}]))
    assert "instruction" in error.what
    assert error.remedy is not None
    for name in ("prompt", "completion", "messages", "text"):
        assert f"`{name}`" in error.remedy


def test_other_feature_names_are_known(tmp_path: Path) -> None:
    """As mlx_lm's `prompt_feature` and its like."""
    folder = write(tmp_path / "d", train=[{"instruction": "a", "output": "b"}])
    spec = JobSpec(prompt_feature="instruction", completion_feature="output")
    assert check_folder(folder, spec)["train"].format == "completion"


def test_plain_text_has_no_prompt_to_mask(tmp_path: Path) -> None:
    """mlx_lm raises the same, an import later."""
    assert "mask_prompt" in refused(write(tmp_path / "d", train=[TEXT]), mask_prompt=True).what


def test_empty_text_is_refused(tmp_path: Path) -> None:
    """It would be one end token, learned from nothing."""
    assert "Row 2" in refused(write(tmp_path / "d", train=[TEXT, {"text": ""}])).what


def test_files_of_different_formats_are_refused(tmp_path: Path) -> None:
    """A validation loss over another format says nothing of the training."""
    error = refused(write(tmp_path / "d", train=[COMPLETION], valid=[TEXT]))
    assert "train.jsonl is completion" in error.what
    assert "valid.jsonl is text" in error.what


def test_a_pipe_for_a_data_file_is_refused(tmp_path: Path) -> None:
    """Reading a FIFO without a writer would wait for ever."""
    folder = write(tmp_path / "d", valid=[TEXT])
    os.mkfifo(folder / "train.jsonl")
    assert "train.jsonl" in refused(folder).what


def test_a_folder_for_a_data_file_is_refused(tmp_path: Path) -> None:
    """With a reason, not a traceback."""
    folder = write(tmp_path / "d", valid=[TEXT])
    (folder / "train.jsonl").mkdir()
    assert "train.jsonl" in refused(folder).what


def test_a_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    folder = write(tmp_path / "d")
    (folder / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(TEXT).encode() + b"\r\n")
    assert check_folder(folder, JobSpec())["train"].rows == 1
    assert list(read_rows(folder / "train.jsonl")) == [(1, TEXT)]


def test_a_file_that_is_gone_has_no_hash(tmp_path: Path) -> None:
    """Data may be moved away while its job waits."""
    with pytest.raises(DataRejected) as caught:
        digest(tmp_path / "none.jsonl")
    assert caught.value.remedy
