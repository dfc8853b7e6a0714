"""The JSON Schema of a job file, by which editors complete and check one while it is written."""

from __future__ import annotations

import json
from typing import Any

from qlora_engine.job.fuse_spec import KEY, FuseSpec
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.wishes import Wishes

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FILE = "job.schema.json"
# How yaml-language-server, which most editors ask, learns which schema a file has.
REFERENCE = f"# yaml-language-server: $schema={FILE}"

# What a job file may say beside what its spec holds once it is read.
ALSO: dict[str, dict[str, Any]] = {
    "after": {"type": "string"},
    "max_runtime": {"type": "string"},
    "notify": {"type": "string"},
    "packing": {"type": "boolean"},  # YAML's `on` and `off`
}

Schema = dict[str, Any]


def job_schema() -> Schema:
    """The schema, as JSON: of a job that fuses where the file has the key for it, else of one that trains."""
    training, fusing = _of(JobSpec), _of(FuseSpec)
    # mlx_lm's own example lists optimizers with nothing behind them.
    training["properties"]["optimizer_config"]["anyOf"][0]["additionalProperties"]["type"] = ["object", "null"]
    definitions = training.pop("$defs") | fusing.pop("$defs", {})
    return {
        "$schema": DIALECT,
        "title": "A qlorad job",
        "$defs": definitions,
        "if": {"required": [KEY]},
        "then": fusing,
        "else": training,
    }


def _of(kind: type[Wishes]) -> Schema:
    """The schema of one kind of job."""
    schema = _without_titles(kind.model_json_schema())
    for part in (schema, *schema.get("$defs", {}).values()):
        properties: dict[str, Schema] = part["properties"]
        for key, one in properties.items():
            also = [ALSO[key]] if part is schema and key in ALSO else []
            empty = [] if key in part.get("required", ()) else [{"type": "null"}]
            properties[key] = _also(one, [*also, *empty])
    return schema


def as_text() -> str:
    """The schema, as the text of a file."""
    return json.dumps(job_schema(), indent=2) + "\n"


def _also(one: Schema, others: list[Schema]) -> Schema:
    """A schema that takes other shapes, too; what is said of the key stays with the key."""
    about = {word: one[word] for word in ("description", "default") if word in one}
    shape = {word: value for word, value in one.items() if word not in about}
    shapes = shape.get("anyOf", [shape])
    return about | {"anyOf": [*shapes, *(other for other in others if other not in shapes)]}


def _without_titles(schema: Schema) -> Schema:
    """Pydantic titles every key with the key."""
    kept: Schema = {}
    for word, value in schema.items():
        if word == "title" and isinstance(value, str):
            continue
        if word in ("properties", "$defs"):
            kept[word] = {key: _without_titles(one) for key, one in value.items()}
        else:
            kept[word] = _without_titles(value) if isinstance(value, dict) else _each(value)
    return kept


def _each(value: Any) -> Any:
    return (
        [_without_titles(one) if isinstance(one, dict) else one for one in value] if isinstance(value, list) else value
    )
