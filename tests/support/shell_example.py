"""A shell example as a script that a test can run: commands that never end get somebody who ends them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

STRICT = "set -euo pipefail\n"
# Variables that are set for it, the command, and a comment or what continues the line.
COMMAND = re.compile(r"(?P<before>\s*(?:\w+=(?:\"[^\"]*\"|\S*)\s+)*)(?P<words>.*?)(?P<after>\s*(?:\\|\s#.*)?)")

# Commands that go on until somebody ends them: what they show, and the keys that are typed then.
AT_A_TERMINAL: Mapping[str, tuple[str, ...]] = {
    r"(\S*/)?qlorad": ("worker started", "\x03"),
    r"(\S*/)?qlora top( --every \S+)?": ("q quits", "q"),
    r"(\S*/)?qlora ls( .*)? --watch( .*)?": ("q quits", "q"),
    r"(\S*/)?qlora init( [^- ]\S*)?": ("Name", "\r", "Model", "\r", "data", "\r"),
}
# Servers that what follows on the page asks, and what they say when they are ready.
LEFT_RUNNING: Mapping[str, str] = {
    r"python -m mlx_lm[ .]server .*": r"Starting httpd",
    r"valkey-server .*": r"Ready to accept connections",
}
# What is done after a command: `qlora init` has 16 layers trained, and the model here has two.
AFTERWARDS: Mapping[str, str] = {
    r"(?:\S*/)?qlora init (?P<folder>\S+).*": "sed -i 's/^num_layers: 16/num_layers: -1/' {folder}/job.yaml",
}
# Programs that serve a home get one of their own: the page's is served already.
OWN_HOME = re.compile(r"(\S*/)?qlorad")


def as_script(text: str, places: Mapping[str, str], servers: Path, own_home: Path) -> str:
    """The script.

    Args:
        text: of the example.
        places: words of the example that stand for something, and for what: `ID`, say.
        servers: the folder in which servers that are left running are noted.
        own_home: an empty folder.
    """
    for word, value in places.items():
        text = re.sub(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", lambda _, value=value: value, text)
    return STRICT + "".join(_line(line, servers, own_home) + "\n" for line in text.splitlines())


def _line(line: str, servers: Path, own_home: Path) -> str:
    parts = COMMAND.fullmatch(line)
    if parts is None:
        return line
    words, helper = " ".join(parts["words"].split()), ""
    for pattern, steps in AT_A_TERMINAL.items():
        if re.fullmatch(pattern, words):
            helper = shlex.join([sys.executable, "-m", "support.at_a_terminal", *steps, "--"])
    for pattern, says in LEFT_RUNNING.items():
        if re.fullmatch(pattern, words):
            helper = shlex.join([sys.executable, "-m", "support.left_running", says, str(servers), "--"])
    if OWN_HOME.fullmatch(words):
        helper = f"QLORAD_HOME={shlex.quote(str(own_home))} {helper}"
    runs = f"{parts['before']}{helper} {parts['words']}{parts['after']}" if helper else line
    found = ((re.fullmatch(pattern, words), then) for pattern, then in AFTERWARDS.items())
    return "\n".join([runs, *(then.format(**match.groupdict()) for match, then in found if match)])
