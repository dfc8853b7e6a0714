"""docs/commands.md: every command with its arguments and options, from the programs themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from qlora_client import cli as client
from qlora_daemon import cli as daemon
from qlora_engine import foreground as engine
from reference.words import code, table

HEAD = """# Commands

`qlora` is the client, `qlorad` the daemon and its service, `python -m qlora_engine` the engine by itself. Each has
`--help`. A job is named by its id or by any part of it that no other has; an [exit code](exit-codes.md) says how a
command ended. This page is made from the programs by `make docs`.
"""


PROGRAMS = {"qlora": client.app, "qlorad": daemon.app, "python -m qlora_engine": engine.app}


def as_markdown() -> str:
    """The page."""
    lines = [HEAD]
    for name, app in PROGRAMS.items():
        root = typer.main.get_command(app)
        lines += ["", f"## {code(name)}", *_described(root)]
        for words, command in _commands(root, name):
            lines += ["", f"### {code(words)}", *_described(command)]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def _commands(group: typer.core.TyperGroup, before: str) -> Iterator[tuple[str, typer.core.TyperCommand]]:
    for name, command in getattr(group, "commands", {}).items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{before} {name}")
        else:
            yield f"{before} {name}", command


def _described(command: typer.core.TyperCommand) -> list[str]:
    lines = ["", str(command.help), ""]
    rows = [
        (_name(param), _default(param), str(param.help or "").replace("<", "\\<"))
        for param in command.params
        if _shown(param)
    ]
    return [*lines, *table(("", "default", ""), rows)] if rows else lines


def _shown(param: object) -> bool:
    return not getattr(param, "hidden", False) and isinstance(param, TyperArgument | TyperOption) and param.help


def _name(param: TyperArgument | TyperOption) -> str:
    context = typer.Context(typer.core.TyperCommand("x"))
    if isinstance(param, TyperArgument):
        return code(param.make_metavar(context))
    names = ", ".join(param.opts + param.secondary_opts)
    least, most = getattr(param.type, "min", None), getattr(param.type, "max", None)
    if least is not None or most is not None:
        return code(f"{names} NUMBER") + f", {_range(least, most)}"
    return code(names if param.is_flag else f"{names} {param.make_metavar(context)}")


def _range(least: float | None, most: float | None) -> str:
    return f"from {least:g}" if most is None else f"to {most:g}" if least is None else f"{least:g} to {most:g}"


def _default(param: TyperArgument | TyperOption) -> str:
    value = param.default
    if value in (None, "") or callable(value) or isinstance(value, bool) or not param.show_default or param.required:
        return ""
    return code(getattr(value, "value", value))
