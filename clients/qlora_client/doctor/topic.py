"""A topic of the page: one look at the machine, and the checks that judge what was seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from qlora_client.doctor.finding import Finding, Severity, Verdict
from qlora_client.doctor.machine import Machine
from qlora_engine.job.errors import QloradError

Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Topic(Generic[Facts]):
    """Checks that need the same facts.

    Attributes:
        name: heading on the page.
        look: gathers the facts; the only part that touches the machine, and bounded in time.
        checks: by name, each a pure function of the facts; None where it does not apply to this machine.
        reads_home: the look reads the home, and is left out where the home does not answer.
    """

    name: str
    look: Callable[[Machine], Facts]
    checks: Mapping[str, Callable[[Facts], Verdict | None]]
    reads_home: bool = False

    def examine(self, machine: Machine) -> list[Finding]:
        """Look, and judge what was seen."""
        try:
            facts = self.look(machine)
        except (QloradError, OSError) as error:
            return [self._unseen(error)]
        return self.judge(facts)

    def judge(self, facts: Facts) -> list[Finding]:
        """What the checks that apply say of the facts."""
        verdicts = ((name, check(facts)) for name, check in self.checks.items())
        return [
            Finding(self.name, name, verdict.severity, verdict.what, verdict.remedy)
            for name, verdict in verdicts
            if verdict is not None
        ]

    def _unseen(self, error: QloradError | OSError) -> Finding:
        what = error.what if isinstance(error, QloradError) else str(error)
        remedy = error.remedy if isinstance(error, QloradError) else None
        return Finding(
            self.name,
            "look",
            Severity.WARNING,
            f"This could not be examined: {what}",
            remedy or "Mend that, then run `qlora doctor` again.",
        )
