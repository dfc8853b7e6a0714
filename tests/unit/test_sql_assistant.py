"""The SQL example's data: valid, varied, held out, short, and what its generator writes."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "sql-assistant"
SPLITS = ("train", "valid", "test")
PROMPT = re.compile(r"Table (?P<table>\w+)\((?P<columns>\w+(?:, \w+)*)\)\nQuestion: (?P<question>[^\n]+[.?])")


class Row(NamedTuple):
    """A row, taken apart."""

    prompt: str
    sql: str
    table: str
    columns: tuple[str, ...]
    question: str


def read(path: Path) -> list[Row]:
    """The rows of a data file."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        assert list(entry) == ["prompt", "completion"]
        prompt = PROMPT.fullmatch(entry["prompt"])
        assert prompt, f"not a table on one line and a question on the next: {entry['prompt']!r}"
        columns = tuple(prompt["columns"].split(", "))
        rows.append(Row(entry["prompt"], entry["completion"], prompt["table"], columns, prompt["question"]))
    return rows


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Row]]:
    """The rows of each split."""
    return {split: read(EXAMPLE / "data" / f"{split}.jsonl") for split in SPLITS}


@pytest.fixture(scope="module")
def rows(splits: dict[str, list[Row]]) -> list[Row]:
    """The rows of all splits and the demo's prompts."""
    return [*(row for split in SPLITS for row in splits[split]), *read(EXAMPLE / "prompts.jsonl")]


def without_strings(sql: str) -> str:
    """The statement with its string literals emptied."""
    return re.sub(r"'(?:[^']|'')*'", "''", sql)


def kind(sql: str) -> str:
    """The statement's keywords, functions and operators, without names and values."""
    return " ".join(re.findall(r"\b[A-Z]+\b|[<>=]+|\*", without_strings(sql)))


def test_every_completion_runs_on_the_table_of_its_prompt(rows: list[Row]) -> None:
    """The model may not be taught SQL that a database refuses, or columns that the table lacks."""
    for row in rows:
        with closing(sqlite3.connect(":memory:")) as database:
            database.execute(f"CREATE TABLE {row.table} ({', '.join(row.columns)})")
            database.execute(row.sql)


def test_every_completion_reads_from_the_table_of_its_prompt(rows: list[Row]) -> None:
    """The demo shows "SQL of the asked table", so each statement reads from that table and no other."""
    for row in rows:
        assert set(re.findall(r"\bFROM (\w+)", without_strings(row.sql))) == {row.table}


def test_the_question_holds_every_value_of_its_answer(rows: list[Row]) -> None:
    """A value that the question does not name cannot be learned, only guessed."""
    for row in rows:
        strings = [string.replace("''", "'").strip("%") for string in re.findall(r"'((?:[^']|'')*)'", row.sql)]
        numbers = re.findall(r"\b\d+\b", without_strings(row.sql).removesuffix(" LIMIT 1;"))
        for value in [*strings, *numbers]:
            year = re.fullmatch(r"(\d{4})-(?:01-01|12-31)", value)
            assert value in row.question or (year and year[1] in row.question), row


def test_completions_share_one_style(rows: list[Row]) -> None:
    """A small model learns a style from few rows only if they all have it."""
    for row in rows:
        assert re.fullmatch(r"SELECT [^;\n\"]+;", row.sql), row.sql
        lower = set(re.findall(r"\b[a-z]\w*\b", without_strings(row.sql)))
        assert lower <= {row.table, *row.columns}, "keywords are upper case"


def test_held_out_tables_occur_in_no_other_split(splits: dict[str, list[Row]]) -> None:
    """The validation loss measures what carries over to unknown tables, not what was memorized."""
    tables = [{row.table for row in splits[split]} for split in SPLITS]
    tables.append({row.table for row in read(EXAMPLE / "prompts.jsonl")})
    assert len(set.union(*tables)) == sum(len(names) for names in tables)


def test_no_row_occurs_twice(rows: list[Row]) -> None:
    """A repeated row counts double in training and leaks between splits."""
    assert len({row.prompt for row in rows}) == len(rows)
    assert len({row.sql for row in rows}) == len(rows)


def test_the_rows_are_many_and_varied(splits: dict[str, list[Row]]) -> None:
    """Fewer rows, tables or kinds of statement would teach one pattern instead of a language."""
    assert len(splits["train"]) >= 300
    assert len(splits["valid"]) >= 40
    assert len(splits["test"]) >= 40
    assert len({row.table for row in splits["train"]}) >= 40
    for split in SPLITS:
        assert len({kind(row.sql) for row in splits[split]}) >= 10
    taught = {word for row in splits["train"] for word in kind(row.sql).split()}
    assert taught >= {"WHERE", "AND", "OR", "BETWEEN", "LIKE", "IN", "<>", "<", ">", "<=", ">="}
    assert taught >= {
        "COUNT",
        "AVG",
        "MIN",
        "MAX",
        "SUM",
        "GROUP",
        "HAVING",
        "ORDER",
        "DESC",
        "LIMIT",
        "DISTINCT",
    }


def test_the_rows_are_short(rows: list[Row]) -> None:
    """The demo trains on two CPU cores in minutes, at about 3 characters a token."""
    assert max(len(row.prompt + row.sql) for row in rows) < 400


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_generator_writes_what_is_checked_in(tmp_path: Path, hash_seed: str) -> None:
    """Someone who changes the generator or the tables can see what it changes, on any machine and Python."""
    subprocess.run(
        [sys.executable, EXAMPLE / "generate.py", "--seed", "7", "--out", tmp_path],
        check=True,
        capture_output=True,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
    )
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (EXAMPLE / "data" / name).read_bytes(), name


def test_the_job_file_names_the_data_beside_it() -> None:
    """The folder is a job as it is: it can be dropped into the watched folder."""
    job = yaml.safe_load((EXAMPLE / "job.yaml").read_text(encoding="utf-8"))
    assert job["name"] == "sql-assistant"
    assert job["model"] == "smollm2"
    assert job["mask_prompt"] is True
    assert job["iters"] * job["batch_size"] <= 360, "one pass over the data at most"
    assert {f"{split}.jsonl" for split in SPLITS} <= {path.name for path in (EXAMPLE / job["data"]).iterdir()}
