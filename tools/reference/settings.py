"""docs/settings.md: every `QLORAD_` variable, from the models that read them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from qlora_engine.settings import EngineSettings
from qlora_worker.settings import PREFIX, Settings
from reference.shapes import default, shape
from reference.words import code, table

HEAD = f"""# Settings

Settings are `{PREFIX}` variables of the environment. Each program reads them once, at its start; the service has
those of the shell in which it was [installed](install.md), and another value means: set it and install again. A value
that cannot be used ends a program with code 78 and says which and why. The engine by itself reads those of the first
table alone; `qlora ls` and `qlora top` read `{PREFIX}HOME` alone and `qlora schema` none, so that they answer at once;
and [`qlora doctor`](doctor.md) goes on, and tells of it. An empty path counts as unset, and one that
begins with `~` or `~user` is in that home. A variable that looks like a setting and is
none is ignored, which [`qlora doctor`](doctor.md) and the daemon's log say. This page is made from
`qlora_engine/settings.py` and `worker/qlora_worker/settings.py` by `make docs`.
"""


def as_markdown() -> str:
    """The page."""
    service = [name for name in Settings.model_fields if name not in EngineSettings.model_fields]
    lines = [HEAD, "## Of every program", ""]
    lines += ["They matter to the engine by itself, `python -m qlora_engine job.yaml`, as well.", ""]
    lines += _rows(EngineSettings.model_fields)
    lines += ["", "## Of the service", "", *_rows(service)]
    return "\n".join(lines) + "\n"


def _rows(names: Iterable[str]) -> list[str]:
    properties: dict[str, Any] = Settings.model_json_schema()["properties"]
    return table(
        ("variable", "value", "default", "meaning"),
        ((code(f"{PREFIX}{name.upper()}"), *_about(properties[name])) for name in names),
    )


def _about(schema: dict[str, Any]) -> tuple[str, str, str]:
    return _shape(schema), _default(schema), schema["description"]


def _shape(schema: dict[str, Any]) -> str:
    """Variables are text, which says of truth values `1` and `0`."""
    return shape(schema, {}).replace("true or false", "`1` or `0`")


def _default(schema: dict[str, Any]) -> str:
    if isinstance(schema.get("default"), bool):
        return code(int(schema["default"]))
    return default(schema) if schema.get("default") != "" else ""
