"""The page: what a run folder says, put into the template and written as one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from qlora_engine import __version__
from qlora_engine.job import durable
from qlora_engine.job.errors import SystemRefused
from qlora_engine.job.events import Event
from qlora_engine.job.folder import RunFolder
from qlora_engine.job.record import utc_now
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.text import local_time, plain_lines
from qlora_engine.report.notes import listed, notes_of
from qlora_engine.report.plots import loss_plot, small_plots
from qlora_engine.report.read import RunData, read_run
from qlora_engine.report.summary import summarize

TEMPLATE = "page.html.j2"
Rows = list[tuple[str, str]]


def write_report(run: RunFolder) -> Path:
    """Write the report of a run, whatever its folder holds so far; one that is there is replaced at once.

    Raises:
        SystemRefused: the folder is missing or cannot be written.
    """
    try:
        durable.write_bytes(run.report, render(read_run(run)).encode(errors="replace"))
    except OSError as error:
        raise SystemRefused(
            f"The report cannot be written: {error.strerror}.",
            where=str(run.report),
            remedy="Name a run folder that exists and may be written, on a disk that is not full.",
        ) from None
    return run.report


def render(data: RunData) -> str:
    """The page as HTML; everything that came with the run is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    notes = notes_of(data.events)
    rows, left_out = listed(notes)
    return environment.get_template(TEMPLATE).render(
        summary=summarize(data),
        run=str(data.run.path),
        loss=loss_plot(data, notes),
        loss_narrow=loss_plot(data, notes, narrow=True),
        plots=small_plots(data),
        samples=samples_of(data),
        notes=rows,
        left_out=left_out,
        changed=changed_keys(data.spec),
        job=json.dumps(data.job, indent=2, ensure_ascii=False) if data.job else "",
        facts=[(title, found) for title, found in facts_of(data) if found],
        version=__version__,
        written=local_time(utc_now(), date=True),
    )


def samples_of(data: RunData) -> list[dict[str, str]]:
    """Each prompt once, with the newest answers before and after training."""
    found: dict[str, dict[str, str]] = {}
    for event in data.of("sample.answered"):
        prompt = str(event.get("prompt"))
        sample = found.setdefault(prompt, {"prompt": prompt, "before": "", "after": "", "expected": ""})
        if event.get("when") in ("before", "after"):
            sample[event["when"]] = str(event.get("answer") or "(nothing)")
        sample["expected"] = str(event.get("expected") or sample["expected"])
    return list(found.values())


def changed_keys(spec: Mapping[str, Any]) -> Rows:
    """The keys of the job that are not at their default, sections opened: `lora_parameters.rank`."""
    defaults = _opened(JobSpec().model_dump(mode="json"))
    changed = ((key, value) for key, value in _opened(spec).items() if defaults.get(key) != value)
    return [(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)) for key, value in changed]


def facts_of(data: RunData) -> list[tuple[str, Rows]]:
    """Tables of what was found: data, model, machine, memory, and how the ladder laid training out anew."""
    started, model = data.last("training.started"), data.last("model.loaded")
    versions = started.get("versions") or data.runtime.get("versions")
    files = data.job.get("data")
    machine = _rows(started, backend="backend", device="device", blas="BLAS", threads="BLAS threads")
    machine += [(name, str(version)) for name, version in versions.items()] if isinstance(versions, dict) else []
    return [
        (
            "Data",
            [
                (split, f"{file.get('path')} ({_shown(file.get('rows'))} rows)")
                for split, file in files.items()
                if isinstance(file, dict)
            ]
            if isinstance(files, dict)
            else [],
        ),
        (
            "Rows and tokens",
            _rows(
                data.last("data.loaded"), format="format", train="training rows", valid="validation rows",
                test="test rows", tokens="tokens", supervised="learned tokens", truncated="rows cut at max_seq_length",
                lost_share="share of tokens lost", nothing_to_learn="rows with nothing to learn",
                steps="micro-batches", updates="optimizer steps",
            ),
        ),
        (
            "Model",
            _rows(
                model, model="model", model_type="architecture", bits="bits of the weights", parameters="parameters",
                trainable="trained parameters", quantized_on_load="quantized on load",
                dequantized="dequantized for the CPU", memory_gb="memory after load, GB",
            ),
        ),
        ("Machine", machine),
        (
            "Memory",
            _rows(
                data.last("memory.limits"), limit_gb="limit, GB", wired_gb="wired, GB", cache_gb="cache, GB",
                device_gb="device, GB", source="limits from",
            ),
        ),
        ("After out of memory", [(key, _shown(value)) for key, value in data.ladder.items() if key != "format"]),
    ]  # fmt: skip


def _rows(event: Event | Mapping[str, Any], **names: str) -> Rows:
    return [(title, _shown(event[key])) for key, title in names.items() if event.get(key) is not None]


def _opened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    opened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            opened |= _opened(value, f"{prefix}{key}.")
        else:
            opened[f"{prefix}{key}"] = value
    return opened


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _harmless(value: object) -> object:
    """Text without control characters and marks that reorder it; what is HTML already stays."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else plain_lines(value, 200_000)
