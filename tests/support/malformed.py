"""Job files that are nearly right: a grammar over the keys of a job, three formats, and what goes wrong in them."""

# ruff: noqa: E501  # tables

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from qlora_engine.job.jobfile import MAX_BYTES
from qlora_engine.job.spec import EarlyStopping, JobSpec, LoraParameters, LrSchedule, Memory
from qlora_engine.job.sweep import Sweep

KEYS = [*JobSpec.model_fields, *LoraParameters.model_fields, *LrSchedule.model_fields, "alpha", "learning_rat", "after"]
RIGHT: dict[str, Any] = {"model": "m", "data": "d", "iters": 10, "lora_parameters": {"rank": 8, "scale": 2.0}}


@dataclass(frozen=True)
class File:
    """A job file's name and bytes."""

    name: str
    content: bytes

    def __repr__(self) -> str:
        shown = self.content if len(self.content) <= 400 else self.content[:400] + b" ..."
        return f"File({self.name!a}, {shown!r}, {len(self.content)} bytes)"


# Values

_hostile = st.sampled_from(
    [
        "", " ", "~", "~nobody/x", "../../etc/passwd", "/etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", "a/b",
        "http://127.0.0.1:1/", "a" * 5000, "/" + "b/" * 3000, "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\u202egnp.yaml",
        "$(reboot)", "%s%n{0}{}", "on", "null", "1e-5", "0x1f", "1:30", "\ud800", "\x00", "nan", "-.inf", "\u2028", "=", "<<",
        "!!python/object/apply:os.system [reboot]",
    ]
)  # fmt: skip
_scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=20), _hostile,
    st.sampled_from([0, -1, 1, 10**30, 10**4000, 1e308, 0.1, 8, 2048]),
)  # fmt: skip
_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=8,
)
_keys = st.one_of(st.sampled_from(KEYS), st.text(max_size=12), _hostile)
_jobs = st.builds(
    lambda base, more: {**base, **more},
    st.sampled_from([RIGHT, RIGHT, {}]),
    st.dictionaries(_keys, _values, max_size=4),
)


# How it is written


def _json(job: dict[str, Any]) -> str:
    return json.dumps(job)


def _yaml(job: dict[str, Any]) -> str:
    """Blocks at the top and flow below, as people write; by hand, so that what YAML would quote stays unquoted."""
    return "".join(f"{key}: {_flow(value)}\n" for key, value in job.items())


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def _toml(job: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(str(key))} = {json.dumps(value)}\n" for key, value in job.items())


_written = st.one_of(
    st.builds(lambda job: ("job.yaml", _yaml(job)), _jobs),
    st.builds(lambda job: ("job.json", _json(job)), _jobs),
    st.builds(lambda job: ("job.toml", _toml(job)), _jobs),
    st.builds(lambda name, job: (name, _json(job)), st.sampled_from(["a.yml", "a.YAML", "a.txt", "a"]), _jobs),
)


# What goes wrong with the text


def _cut(text: str, at: float) -> str:
    return text[: int(at * len(text))]


def _put(text: str, at: float, what: str) -> str:
    place = int(at * len(text))
    return text[:place] + what + text[place:]


_share = st.floats(0, 1)
_pieces = st.sampled_from(
    [
        "\t", "\n", "  ", ":", ": ", "- ", "[", "]", "{", "}", '"', "'", "&a ", "*a", "<<: *a\n", "|\n", ">\n", "#", "!!binary ",
        "!!set ", "!!timestamp ", "---\n", "...\n", "%YAML 1.1\n", "? ", "\\", "\r", "\x07", "\x1b[2J", "\ufeff", "\ufffe", "e9999",
        "[[a]]\n", "a.b.c = 1\n", '"""', "model: x\n", "2001-13-45", "0b" + "1" * 99, "{" * 30, "- " * 30, "[" * 2000, "é" * 100,
    ]
)  # fmt: skip
_changes = st.one_of(
    st.just(lambda text: text),
    st.builds(lambda at: lambda text: _cut(text, at), _share),
    st.builds(lambda at, what: lambda text: _put(text, at, what), _share, _pieces),
    st.builds(lambda count: lambda text: text * count, st.integers(2, 3)),
    st.builds(lambda size: lambda text: text + "# " + "x" * size, st.sampled_from([MAX_BYTES - 300, MAX_BYTES])),
)


def _changed(written: tuple[str, str], changes: Sequence[Any], encoding: str) -> File:
    name, text = written
    for change in changes:
        text = change(text)
    return File(name, text.encode(encoding, errors="surrogatepass" if encoding != "latin-1" else "replace"))


_nearly_right = st.builds(
    _changed,
    _written,
    st.lists(_changes, max_size=3),
    st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]),
)

# What is dense: much meaning in few bytes, up to the size that is read


def _dense(name: str, opening: str, unit: str, closing: str, times: int) -> File:
    return File(name, (opening + unit * times + closing)[:MAX_BYTES].encode())


_dense_files = st.builds(
    lambda parts, times: _dense(*parts, times),
    st.sampled_from(
        [
            ("job.yaml", "iters: ", "1:", "1\n"), ("job.yaml", "a: [", "1,", "]\n"), ("job.yaml", "", "- ", "x\n"),
            ("job.yaml", "", "? ", "x\n"), ("job.yaml", "", "&a ", "x\n"), ("job.yaml", "a: ", "!!str ", "x\n"),
            ("job.yaml", "a: '", "''", "'\n"), ("job.yaml", 'a: "', "\\u0041", '"\n'), ("job.yaml", "a: |\n", "  x\n", ""),
            ("job.yaml", "", "#\n", "model: m\n"), ("job.yaml", "", "\n", "model: m\n"), ("job.yaml", "a: ", "[*a,", "\n"),
            ("job.yaml", "&a a: ", "{b: ", "x\n"), ("job.yaml", "", "--- \n", ""), ("job.yaml", "", "%TAG ! !\n", "a: 1\n"),
            ("job.yaml", "a: 0x", "f", "\n"), ("job.yaml", "a: 1.", "5", "e5\n"), ("job.yaml", "a: ", "9", "\n"),
            ("job.yaml", "a: 2001-01-01 ", " ", "1\n"), ("job.yaml", "", "a: &x [x]\n", ""), ("job.yaml", "", "<<: {a: 1}\n", ""),
            ("job.json", '{"a":', "[", "]}"), ("job.json", '{"a":[', "1,", "1]}"), ("job.json", '{"a": ', "9", "}"),
            ("job.json", '{"a": "', "\\u0041", '"}'), ("job.json", '{"a": 1', "e", "1}"), ("job.json", "", " ", "{}"),
            ("job.json", "{", '"a":{', "}"), ("job.toml", "a = [", "1,", "]\n"), ("job.toml", "", "[a]\n", ""),
            ("job.toml", "", "[[a]]\n", ""), ("job.toml", "a", ".a", " = 1\n"), ("job.toml", "a = ", "{a=", "1\n"),
            ("job.toml", 'a = """', '\\"', '"""\n'), ("job.toml", "a = 0x", "f", "\n"), ("job.toml", "a = '", "x", "'\n"),
            ("job.toml", "[", "a.", "a]\n"), ("job.toml", "a = [", "[", "]\n"), ("job.toml", "", "a = 1\n", ""),
            ("job.toml", "a = 1", "0_0", "\n"), ("job.toml", "a = 1979-05-27T07:32:00.", "9", "\n"),
        ]
    ),
    st.sampled_from([20, 300, 3000, 30_000, MAX_BYTES]),
)  # fmt: skip

_noise = st.builds(File, st.sampled_from(["job.yaml", "job.json", "job.toml"]), st.binary(max_size=200))
_words = st.builds(
    lambda name, parts: File(name, "".join(parts).encode(errors="surrogatepass")),
    st.sampled_from(["job.yaml", "job.yaml", "job.json", "job.toml"]),
    st.lists(st.one_of(_pieces, st.sampled_from(KEYS), _hostile), max_size=30),
)

# One value that cannot be, or hardly, in a job that is right but for it

_SECTIONS = {"lora_parameters": LoraParameters, "lr_schedule": LrSchedule, "memory": Memory,
             "early_stopping": EarlyStopping, "sweep": Sweep}  # fmt: skip
_BESIDE = {"lr_schedule": {"name": "cosine_decay", "arguments": [1e-5, 100]}, "sweep": {"grid": {"seed": [1, 2]}}}
PLACES: list[tuple[str, ...]] = [
    *((key,) for key in JobSpec.model_fields),
    *((section, key) for section, kind in _SECTIONS.items() for key in kind.model_fields),
    ("optimizer_config", "adam"), ("optimizer_config", "adam", "x"), ("optimizer_config", "adam", "x", "y"),
    ("hf_dataset", "path"), ("hf_dataset", "config"), ("hf_dataset", "config", "revision"), ("sweep", "grid", "iters"),
    ("sweep", "grid", "max_runtime"), ("sweep", "grid", "optimizer_config.adam.x"), ("sweep", "grid", "memory.limit_gb"),
]  # fmt: skip
_AT = "@"  # where the value is put in; the text of no job has it
_COMMON = ["-1", "0", str(2**31), str(2**63), "1e308", "5e-324", "true", '""', "[]", "{}"]
LITERALS = {
    "yaml": [
        *_COMMON, "9" * 100, "2026-01-01", "0001-01-01", "9999-12-31 23:59:59", "!!binary aGk=", "!!set {a, b}", ".nan",
        "-.inf", "", "~", "190:20:30", '"\\ud83d"', "{2026-01-01: 1}", "{1: 1}", "[.inf]", "[2026-01-01]",
    ],
    "json": [*_COMMON, "9" * 400, "9" * 4000, "NaN", "-Infinity", "null", '"\\ud83d"', "[1e999]", "[%s]" % ("9" * 400)],
    "toml": [
        *_COMMON[:-1], "9" * 400, "0x" + "f" * 5000, "nan", "-inf", "2026-01-01", "22:00:00", "9999-12-31T23:59:59Z",
        "{x = 22:00:00}", "[0x%s]" % ("f" * 5000), "[2026-01-01]",
    ],
}  # fmt: skip


def one_value(kind: str, place: Sequence[str], literal: str) -> File:
    """A job file of this kind with one value, as its text, at a place."""
    job = _with_place({key: value for key, value in RIGHT.items() if (key, *place) != ("iters", "epochs")}, place)
    text = (
        "".join(f"{key} = {json.dumps(value)}\n" for key, value in _dotted(job)) if kind == "toml" else json.dumps(job)
    )
    return File(f"job.{kind}", text.replace(f'"{_AT}"', literal).encode())


def _with_place(section: dict[str, Any], place: Sequence[str]) -> dict[str, Any]:
    key, *rest = place
    return section | {key: _with_place(section.get(key, _BESIDE.get(key, {})), rest) if rest else _AT}


def _dotted(section: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        name = f"{before}{key if key.isidentifier() else json.dumps(key)}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{name}.")
        else:
            yield name, value


_one_values = st.sampled_from(sorted(LITERALS)).flatmap(
    lambda kind: st.builds(one_value, st.just(kind), st.sampled_from(PLACES), st.sampled_from(LITERALS[kind]))
)

job_files: st.SearchStrategy[File] = st.one_of(
    _nearly_right, _nearly_right, _nearly_right, _words, _dense_files, _noise, _one_values
)
