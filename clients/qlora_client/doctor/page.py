"""The findings as a page for a person and as JSON for a program."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from rich.console import Console
from rich.text import Text

from qlora_client.doctor.examination import Examination
from qlora_client.doctor.finding import Finding, Severity, exit_code, worst
from qlora_engine.job.text import plain

_STYLES = {
    Severity.OK: "green",
    Severity.INFO: "cyan",
    Severity.WARNING: "yellow",
    Severity.ERROR: "bold red",
}
_WORD = max(len(severity) for severity in Severity)
_LEAST_TEXT = 24  # columns; where beside the names there are fewer, what was found stands below them
_INDENT = 4  # of it there


def as_json(found: Examination) -> dict[str, object]:
    """For machines."""
    return {
        "worst": worst(found.findings),
        "exit_code": int(exit_code(found.findings)),
        "seconds": round(found.seconds, 3),
        "findings": [
            {
                "topic": finding.topic,
                "name": finding.name,
                "severity": finding.severity,
                "what": finding.what,
                "remedy": finding.remedy,
            }
            for finding in found.findings
        ],
    }


def show(found: Examination, console: Console) -> None:
    """Print the page; lines are broken at the width of a terminal, and not at all for a pipe."""
    for line in lines(found, console.width):
        console.print(line, soft_wrap=True)


def lines(found: Examination, width: int) -> Iterator[Text]:
    """The page, line by line."""
    names = max((len(finding.name) for finding in found.findings), default=0)
    for topic, findings in groupby(found.findings, key=lambda finding: finding.topic):
        yield Text(topic, style="bold")
        for finding in findings:
            yield from _finding(finding, names, width)
        yield Text()
    yield from _summary(found, width)


def _finding(finding: Finding, names: int, width: int) -> Iterator[Text]:
    beside = len(f"  {'':<{_WORD}}  {'':<{names}}  ")
    fits = width - beside >= _LEAST_TEXT
    indent = beside if fits else _INDENT
    said = _wrapped(plain(finding.what), width - indent)
    line = Text("  ").append(f"{finding.severity:<{_WORD}}", style=_STYLES[finding.severity])
    line.append(f"  {finding.name:<{names}}  " if fits else f"  {finding.name}", style="dim")
    yield line.append(said.pop(0)) if fits else line
    for text in said:
        yield Text(" " * indent + text)
    if finding.remedy and finding.severity is not Severity.OK:
        for number, text in enumerate(_wrapped(plain(finding.remedy), width - indent - 2)):
            mark = "→ " if number == 0 else "  "
            yield Text(" " * indent).append(mark, style="dim").append(text)


def _wrapped(text: str, width: int) -> list[str]:
    """Never in the middle of a path or a command's word: those are copied."""
    return textwrap.wrap(text, max(width, _LEAST_TEXT), break_long_words=False, break_on_hyphens=False) or [""]


def _summary(found: Examination, width: int) -> Iterator[Text]:
    counts = Counter(finding.severity for finding in found.findings)
    words = {Severity.INFO: ("to know", "to know"), Severity.WARNING: ("warning", "warnings")}
    words |= {Severity.ERROR: ("error", "errors"), Severity.OK: ("ok", "ok")}
    parts = [f"{counts[severity]} {words[severity][counts[severity] > 1]}" for severity in Severity if counts[severity]]
    text = f"{len(found.findings)} checks: {', '.join(parts)}, in {found.seconds:.1f} s."
    yield from (Text(line, style=_STYLES[worst(found.findings)]) for line in _wrapped(text, width))
