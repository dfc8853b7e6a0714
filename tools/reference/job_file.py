"""docs/job-file.md: every key of a job file, from the model that reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from qlora_engine.job import spec
from qlora_engine.job.fuse_spec import FuseSpec
from qlora_engine.job.schema import job_schema
from qlora_engine.job.sweep import Sweep
from qlora_engine.job.wishes import Wishes
from reference.shapes import default, shape
from reference.words import code, table

SECTIONS = (spec.LoraParameters, spec.LrSchedule, spec.Memory, spec.EarlyStopping, Sweep)
OURS_IN_A_SECTION = {("LoraParameters", "rank_stabilized")}

HEAD = """# The job file

A job file is a config of `mlx_lm.lora -c config.yaml`: mlx_lm's keys mean the same here and have mlx_lm's defaults, so
that a file which works there can be dropped here. Keys of ours come on top. YAML, JSON and TOML; every key may be left
out, or left empty, but `name` and `arguments` of a schedule and the `grid` of a sweep, and an unknown one is refused
with the nearest that there is. This page is made from `qlora_engine/job/spec.py` by `make docs`, and so is
[`job.schema.json`](job.schema.json), by which editors complete and check a job file
([`qlora schema`](commands.md#qlora-schema)).

A micro-batch is `batch_size` rows; `iters` and all that is said to be "between two" of something count micro-batches.
Whole numbers are under 2^63 where nothing else is said. What the keys do while a job trains: [Training](training.md).
In which order jobs go: [The queue](queue.md).
"""

DIFFERENCES = """Four of them differ from mlx_lm:

- `adapter_path` is recorded, but the result stays in the run folder.
- `trust_remote_code` is refused from a job file: it would run code that came with a model.
- `resume_adapter_file` starts from an adapter. A run that was stopped needs no key to go on.
- `mask_prompt` learns every answer of a conversation; mlx_lm learns the last one alone.
"""


TURN = ", ".join(f"`{key}`" for key in Wishes.model_fields)
FUSING = f"""A file with the key `fuse` [makes one model](results.md#qlora-fuse-one-model) of what another job has
learned. Beside these keys it takes those of the queue: {TURN}.
"""


def as_markdown() -> str:
    """The page."""
    schema = job_schema()
    trains, fuses = schema["else"]["properties"], schema["then"]["properties"]
    theirs = list(spec.MlxLmKeys.model_fields)
    ours = [key for key in spec.JobSpec.model_fields if key not in spec.MlxLmKeys.model_fields]
    lines = [HEAD, "## Keys of mlx_lm", "", DIFFERENCES, *_keys(trains, theirs)]
    lines += ["", "## Keys of ours", "", *_keys(trains, ours)]
    for section in SECTIONS:
        lines += ["", f"## {code(_key_of(section))}", "", str(section.__doc__), ""]
        lines += _keys(schema["$defs"][section.__name__]["properties"], section.model_fields, section.__name__)
    lines += [
        "",
        "## A job that fuses",
        "",
        FUSING,
        *_keys(fuses, [key for key in FuseSpec.model_fields if key not in Wishes.model_fields]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _keys(properties: Mapping[str, Any], keys: Iterable[str], section: str = "") -> list[str]:
    links = {one.__name__: f"[section](#{_key_of(one)})" for one in SECTIONS}
    return table(
        ("key", "value", "default", "meaning"),
        (
            (
                code(key),
                shape(properties[key], links),
                default(properties[key]),
                properties[key]["description"] + (" (ours)" if (section, key) in OURS_IN_A_SECTION else ""),
            )
            for key in keys
        ),
    )


def _key_of(section: type[BaseModel]) -> str:
    """The key that has this section."""
    found = (key for key, field in spec.JobSpec.model_fields.items() if section.__name__ in str(field.annotation))
    return next(found)
