"""Format versions of what is kept on disk: what is older is brought up one step at a time, what is newer is refused.

A format gets a new number when an older qlorad would misread the file or lose a part of it, and with the number comes
the step that leads there. A file of the run folder that gets one takes the job record along, so that the record's
number is that of the whole folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qlora_engine.job.errors import Exit, QloradError

Value = dict[str, Any]  # JSON
Step = Callable[[Value], Value]  # a pure function from one format to the next; the number is set for it


class NewerFormat(QloradError, ValueError):
    """A newer qlorad has written this. It is left as it is."""

    exit_code = Exit.DATAERR

    @classmethod
    def of(cls, what: str, how: str, where: Path | str | None) -> NewerFormat:
        """The error for one file: what it holds, and what shows that it is newer."""
        return cls(
            f"This {what} was made by a newer qlorad: {how}.",
            where=str(where) if where else None,
            remedy="Install that version again, or a later one (docs/upgrading.md). Nothing was changed or deleted.",
        )


@dataclass(frozen=True)
class Format:
    """One kind of file: the format that is written now, and the way to it from each older one that can be read.

    Attributes:
        what: it holds, for messages.
        current: the number that is written.
        steps: from a number to the next, without a gap up to `current`.
    """

    what: str
    current: int
    steps: Mapping[int, Step] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sorted(self.steps) != list(range(self.current - len(self.steps), self.current)):
            raise AssertionError(f"the steps of {self.what} leave a gap before {self.current}")

    def number_of(self, value: Mapping[str, Any], where: Path | str | None = None) -> int:
        """The format of what was read; 1 where it does not say.

        Raises:
            NewerFormat: this version cannot read it.
            ValueError: it has no such number.
        """
        number = value.get("format", 1)
        if not isinstance(number, int) or isinstance(number, bool):
            raise ValueError(f"{number!r:.40} is not the format of a {self.what}")  # noqa: TRY004  # a damaged file
        if number > self.current:
            raise NewerFormat.of(self.what, f"it has format {number}, and this one reads {self.current}", where)
        return number

    def upgraded(self, value: Value, where: Path | str | None = None) -> Value:
        """What was read, in the current format; `value` stays as it is.

        Raises:
            NewerFormat: this version cannot read it.
            ValueError: nothing leads here from its format.
        """
        for number in range(self.number_of(value, where), self.current):
            step = self.steps.get(number)
            if step is None:
                raise ValueError(f"a {self.what} of format {number} cannot be read any more")
            value = step(dict(value)) | {"format": number + 1}
        return value


RECORD = Format("job record", 1)
SPEC = Format("resolved job", 1)
EXIT = Format("record of an attempt's end", 1)
RUNTIME = Format("record of a run's environment", 1)
LADDER = Format("record of a run's memory", 1)
CLAIM = Format("claim on a submission", 1)
REQUEST = Format("request", 1)
