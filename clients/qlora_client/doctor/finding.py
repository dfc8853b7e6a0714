"""What a check says: how bad it is, what was found, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from qlora_engine.job.errors import Exit


class Severity(StrEnum):
    """How bad it is, the best first.

    Attributes:
        OK: as it should be.
        INFO: worth knowing; nothing has to be done.
        WARNING: jobs run, but slower, or not through whatever may happen.
        ERROR: jobs cannot run.
    """

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_ORDER = tuple(Severity)


@dataclass(frozen=True)
class Verdict:
    """What a check thinks of the facts; `remedy` says what to do, and is there for whatever is not ok."""

    severity: Severity
    what: str
    remedy: str | None = None


@dataclass(frozen=True)
class Finding:
    """A verdict with the names of its topic and its check."""

    topic: str
    name: str
    severity: Severity
    what: str
    remedy: str | None = None


def ok(what: str) -> Verdict:
    """As it should be."""
    return Verdict(Severity.OK, what)


def info(what: str, remedy: str) -> Verdict:
    """Worth knowing."""
    return Verdict(Severity.INFO, what, remedy)


def warning(what: str, remedy: str) -> Verdict:
    """Jobs run, but not as well as they could."""
    return Verdict(Severity.WARNING, what, remedy)


def error(what: str, remedy: str) -> Verdict:
    """Jobs cannot run."""
    return Verdict(Severity.ERROR, what, remedy)


def worst(findings: Iterable[Finding]) -> Severity:
    """The worst severity among them."""
    return max((finding.severity for finding in findings), key=_ORDER.index, default=Severity.OK)


def exit_code(findings: Iterable[Finding]) -> Exit:
    """69 when something keeps jobs from running; a warning is no failure, or every laptop would be one."""
    return Exit.UNAVAILABLE if worst(findings) is Severity.ERROR else Exit.OK
