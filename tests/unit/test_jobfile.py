"""Reading a job file: three formats, and limits that a hostile file meets before it can do harm."""

from __future__ import annotations

import json
import os
import time
import tracemalloc
from pathlib import Path

import pytest

from qlora_engine.job.errors import Exit, JobRejected
from qlora_engine.job.jobfile import MAX_BYTES, MAX_DEPTH, parse, read_job_file

WANTED = {"model": "m", "learning_rate": 1e-5, "lora_parameters": {"rank": 8, "keys": ["q"]}, "mask_prompt": True}


def refused(text: str, name: str = "job.yaml") -> JobRejected:
    with pytest.raises(JobRejected) as caught:
        parse(text, name)
    error = caught.value
    assert error.exit_code == Exit.DATAERR
    assert error.what.endswith(".")
    assert error.where is not None
    assert error.where.startswith(name)
    assert error.remedy
    return error


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("job.yaml", "model: m\nlearning_rate: 1e-5\nlora_parameters:\n  rank: 8\n  keys: [q]\nmask_prompt: true\n"),
        (
            "job.yml",
            "\ufeffmodel: m\nlearning_rate: 1.0e-05\nlora_parameters: {rank: 8, keys: [q]}\nmask_prompt: yes\n",
        ),
        ("job.json", json.dumps(WANTED)),
        (
            "JOB.TOML",
            'model = "m"\nlearning_rate = 1e-5\nmask_prompt = true\n[lora_parameters]\nrank = 8\nkeys = ["q"]\n',
        ),
    ],
)
def test_the_three_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    """A job is what it says, not how it is written."""
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    content, job = read_job_file(path)
    assert job.values == WANTED
    assert content == text.removeprefix("\ufeff")


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.e-5", "+1e-5", "10e-6", ".00001", "1.0e-5", "0.1e-4", "1_0e-6"])
def test_numbers_are_numbers_however_they_are_written(number: str) -> None:
    """Plain YAML 1.1 reads 1e-5 as a string, and a learning rate is written so more often than not."""
    assert parse(f"learning_rate: {number}", "j.yaml").values["learning_rate"] == pytest.approx(1e-5)


@pytest.mark.parametrize("text", ["e5", "1e", "a1e5", "1e5b", "'1e-5'", "1.2.3", "e-5", "0x"])
def test_what_is_no_number_stays_text(text: str) -> None:
    """A name such as `1e5b` is a name."""
    assert isinstance(parse(f"name: {text}", "j.yaml").values["name"], str)


def test_a_file_that_ends_too_soon_is_said_to() -> None:
    """In words, not with the parser's name for it."""
    assert refused("a: [1\n", "job.yaml").what.endswith("expected ',' or ']', but got the end of the file.")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("job.yaml", "iters: 1\nmodel: m\niters: 2\n", ", line 3"),
        ("job.yaml", "lora_parameters:\n  rank: 1\n  scale: 2\n  rank: 3\n", ", line 4"),
        ("job.yaml", "a: [{b: 1, b: 2}]", ", line 1"),
        ("job.yaml", "iters: 1\n'iters': 2\n", ", line 2"),
        ("job.json", '{"iters": 1, "iters": 2}', ""),
        ("job.json", '{"a": {"b": 1, "b": 1}}', ""),
        ("job.toml", "iters = 1\niters = 2\n", ""),
    ],
)
def test_a_key_that_stands_twice_is_refused(name: str, text: str, line: str) -> None:
    """Most parsers take the last without a word; which was meant cannot be known."""
    assert refused(text, name).where == name + line


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("job.yaml", "model: m\n  iters: 2\n", "line 2"),
        ("job.yaml", "model: [m\niters: 2\n", "line 2"),
        ("job.yaml", "model: m\n\titers: 2\n", "line 2"),
        ("job.yaml", "model: *nowhere\n", "line 1"),
        ("job.yaml", "model: !!python/object/apply:os.system ['true']\n", "line 1"),
        ("job.yaml", "model: !x m\n", "line 1"),
        ("job.yaml", "!!set [[]]\n", "line 1"),
        ("job.yaml", "a: 1\nb: !!map ab\n", "line 2"),
        ("job.yaml", "a: 1\n---\nb: 2\n", "line 2"),
        ("job.yaml", "? [a, b]\n: 1\n", "line 1"),
        ("job.yaml", "model: \x07\n", ""),
        ("job.yaml", "date: 2020-13-45\n", ""),
        ("job.json", '{"model": "m",}', ""),
        ("job.json", "{", ""),
        ("job.json", '{"iters": ' + "9" * 5000 + "}", ""),
        ("job.toml", "model = m\n", ""),
        ("job.toml", "[[a]]\n[a]\n", ""),
    ],
)
def test_what_does_not_parse_is_refused_with_its_line(name: str, text: str, line: str) -> None:
    """A person must find the place."""
    error = refused(text, name)
    assert line in str(error.where)
    assert "Traceback" not in error.what


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n- b\n", "just text", "5", "null", "[]"])
def test_what_is_not_keys_and_values_is_refused(text: str) -> None:
    """Any text is YAML; a job is keys and values."""
    assert "keys and values" in refused(text).what


@pytest.mark.parametrize("name", ["job.txt", "job", "job.yaml.bak", ".yaml", "job.py"])
def test_another_ending_is_refused_with_the_known_ones(name: str) -> None:
    """The ending says how to read it."""
    error = refused("model: m", name)
    assert error.remedy is not None
    assert ".yaml" in error.remedy


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MAPPING_BOMB = "a: &a {k1: x, k2: x}\n" + "".join(
    f"{name}: &{name} {{k1: *{before}, k2: *{before}, k3: *{before}, k4: *{before}}}\n"
    for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
HOSTILE = {
    "aliases": ("job.yaml", BOMB),
    "aliases in mappings": ("job.yaml", MAPPING_BOMB),
    "an alias of itself": ("job.yaml", "a: &a [*a]\n"),
    "an alias of itself in a mapping": ("job.yaml", "a: &a {b: *a}\n"),
    "merged into itself": ("job.yaml", "a: &a {<<: *a}\n"),
    "merged": (
        "job.yaml",
        f"a: &a {{{','.join(f'k{i}: 1' for i in range(200))}}}\nb: {{<<: [{','.join(['*a'] * 5000)}]}}\n",
    ),
    "deep sequences": ("job.yaml", "a: " + "[" * 5000 + "]" * 5000),
    "deep mappings": ("job.yaml", "a: " + "{a: " * 5000 + "}" * 5000),
    "deep blocks": ("job.yaml", "".join(f"{' ' * i}a:\n" for i in range(600))),
    "deep dashes": ("job.yaml", "a:\n  " + "- " * 5000 + "x"),
    "deep json": ("job.json", '{"a": ' + "[" * 5000 + "]" * 5000 + "}"),
    "very deep json": ("job.json", "[" * 100_000),
    "deep toml": ("job.toml", "a = " + "[" * 5000 + "]" * 5000),
    "dotted toml": ("job.toml", ".".join(["a"] * 100_000) + " = 1"),
    "dotted toml in a table": ("job.toml", "x = {" + ".".join(["a"] * 100_000) + " = 1}"),
    "many nodes": ("job.yaml", "a: [" + ",".join(["1"] * 120_000) + "]"),
    "many keys": ("job.yaml", "".join(f"k{i}: 1\n" for i in range(25_000))),
    "a number to the base 60": ("job.yaml", "iters: " + "1:" * 50_000 + "1"),
    "a number to the base 2": ("job.yaml", "iters: 0b" + "1" * 100_000),
    "NUL": ("job.yaml", "model: a\0b\n"),
    "too large": ("job.yaml", "# " + "x" * MAX_BYTES + "\n"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused_at_once(kind: str) -> None:
    """Neither 305 bytes of aliases nor 5,000 levels may hold up the daemon or end a process."""
    name, text = HOSTILE[kind]
    started = time.process_time()
    refused(text, name)
    assert time.process_time() - started < 1.0


@pytest.mark.parametrize("kind", ["aliases", "aliases in mappings", "merged", "dotted toml", "very deep json"])
def test_a_hostile_file_takes_little_memory(kind: str) -> None:
    """Memory that is taken is taken from the job that trains."""
    name, text = HOSTILE[kind]
    tracemalloc.start()
    try:
        refused(text, name)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50e6


@pytest.mark.parametrize(
    ("depth", "fine"), [(MAX_DEPTH, True), (MAX_DEPTH + 1, False)]
)  # of lists and sections; the file itself is the first
@pytest.mark.parametrize("name", ["job.yaml", "job.json"])
def test_the_depth_limit_is_the_same_for_all(name: str, depth: int, fine: bool) -> None:
    """A job may not be valid in one format and not in another."""
    text = '{"a": ' + "[" * (depth - 1) + "]" * (depth - 1) + "}"
    assert depth == text.count("[") + 1
    if fine:
        parse(text, name)
    else:
        assert "deeper" in refused(text, name).what


def test_modest_aliases_are_fine() -> None:
    """Anchors are part of YAML; only their abuse is refused."""
    text = "a: &a {rank: 8}\nb: *a\nc:\n  <<: *a\n  scale: 2\n"
    assert parse(text, "j.yaml").values == {"a": {"rank": 8}, "b": {"rank": 8}, "c": {"rank": 8, "scale": 2}}


def test_lines_are_known_for_keys_in_sections() -> None:
    """An error in `lora_parameters.rank` names the line of `rank`."""
    job = parse("model: m\n\nlora_parameters:\n  scale: 1\n  rank: x\n", "j.yaml")
    assert job.where(("lora_parameters", "rank")) == "j.yaml, line 5"
    assert job.where(("lora_parameters", "unknown")) == "j.yaml, line 3"
    assert job.where(("unknown",)) == "j.yaml"


def read_refused(path: Path) -> JobRejected:
    started = time.perf_counter()
    with pytest.raises(JobRejected) as caught:
        read_job_file(path)
    assert time.perf_counter() - started < 1.0
    assert caught.value.remedy
    return caught.value


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    """Somebody will drop the model itself."""
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\x7fELF\x02\x01\xff\xfe")
    assert "UTF-8" in read_refused(path).what
    path.write_bytes("model: ü".encode("utf-16"))
    assert "UTF-8" in read_refused(path).what
    path.write_bytes(b"model: a\0b")
    assert "NUL" in read_refused(path).what


def test_a_file_of_100_mb_is_refused_without_reading_it(tmp_path: Path) -> None:
    """Its size is enough to know."""
    path = tmp_path / "job.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    error = read_refused(path)
    assert "100,000,000" in error.what
    assert error.remedy is not None
    assert "data" in error.remedy


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A link in the watched folder could name any file of the user's."""
    (tmp_path / "real.yaml").write_text("model: m")
    (tmp_path / "job.yaml").symlink_to(tmp_path / "real.yaml")
    assert "link" in read_refused(tmp_path / "job.yaml").what


def test_a_pipe_a_folder_and_a_device_are_refused(tmp_path: Path) -> None:
    """Opening a FIFO without a writer would wait for ever."""
    os.mkfifo(tmp_path / "job.yaml")
    assert "regular" in read_refused(tmp_path / "job.yaml").what
    (tmp_path / "folder.yaml").mkdir()
    assert "regular" in read_refused(tmp_path / "folder.yaml").what


def test_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    """It may be removed between its sighting and its reading."""
    assert "cannot be read" in read_refused(tmp_path / "job.yaml").what
