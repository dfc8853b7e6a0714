"""The unit that tells systemd about the daemon, with the same meaning as the property list for launchd."""

from __future__ import annotations

import re
from pathlib import Path

from qlora_engine.host.service import DESCRIPTION, OPEN_FILES, STOP_SECONDS, ServiceDefinition

_WORD = re.compile(r'"((?:[^"\\]|\\.)*)"|(\S+)')


def render(definition: ServiceDefinition) -> bytes:
    """The unit: one of the user's own or, with a user's name, one of the machine."""
    program = " ".join(_quoted(word, command=True) for word in definition.program)
    environment = [f"Environment={_quoted(f'{name}={value}')}" for name, value in definition.environment.items()]
    lines = [
        "[Unit]",
        f"Description={DESCRIPTION}",
        "# Started again however often it ends: a disk that is full for an hour must not end it for good.",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        f"ExecStart={program}",
        f"WorkingDirectory={_escaped(str(definition.home))}",
        *environment,
        *([f"User={definition.user}"] if definition.user else []),
        "Restart=always",
        "RestartSec=1",
        "# The daemon alone is asked to stop and stops the rest in order; what is left after that is killed.",
        "KillMode=mixed",
        f"TimeoutStopSec={STOP_SECONDS}",
        "# A training process that is killed for memory is started again by the daemon in a way that needs less.",
        "OOMPolicy=continue",
        "UMask=0077",
        f"LimitNOFILE={OPEN_FILES}",
        "",
        "[Install]",
        f"WantedBy={'multi-user.target' if definition.user else 'default.target'}",
    ]
    return ("\n".join(lines) + "\n").encode()


def read(content: bytes, name: str) -> ServiceDefinition:
    """The definition that a unit was made from.

    Args:
        content: of the file.
        name: of the file, without `.service`.

    Raises:
        ValueError: it is none of ours.
    """
    environment: dict[str, str] = {}
    single: dict[str, str] = {}
    for line in content.decode(errors="replace").splitlines():
        key, equals, value = line.partition("=")
        if key == "Environment":
            variable, _, text = _words(value)[0].partition("=")
            environment[variable] = text
        elif equals and not key.startswith("#"):
            single[key] = value
    if not {"ExecStart", "WorkingDirectory"} <= single.keys():
        raise ValueError("no unit of qlorad")
    program = tuple(word.replace("$$", "$") for word in _words(single["ExecStart"]))
    home = Path(single["WorkingDirectory"].replace("%%", "%"))
    return ServiceDefinition(name, home, program, environment, single.get("User"))


def _escaped(text: str) -> str:
    """Specifiers such as %h are none here."""
    return text.replace("%", "%%")


def _quoted(text: str, *, command: bool = False) -> str:
    """A word of systemd.syntax(7); in a command a dollar sign would begin a variable."""
    escaped = _escaped(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped.replace("$", "$$") if command else escaped}"'


def _words(text: str) -> list[str]:
    found = [(quoted, plain) for quoted, plain in _WORD.findall(text)]
    return [re.sub(r"\\(.)", r"\1", quoted).replace("%%", "%") if quoted else plain for quoted, plain in found]
