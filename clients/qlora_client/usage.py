"""What is said of a wrong command line, where typer's own words are those of a programmer."""

from __future__ import annotations

import math
import re
from typing import Any

import typer
from typer.core import TyperGroup

_REFUSED = re.compile(r"(?P<value>.+) is not (?:a valid .*|in the range .*)\.", re.DOTALL)
_KINDS = {"int": "a whole number", "float": "a number"}


class InPlainWords(TyperGroup):
    """The commands of a program, of which all numbers that cannot be are refused in the same words."""

    def invoke(self, ctx: Any) -> Any:  # Any: typer keeps the class of it to itself
        """As every group does it: reads the command's words, and runs it."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = in_plain_words(error.message, getattr(error.param, "type", None))
            raise


def finite(value: float) -> float:
    """A number of the command line, for `callback`: what is no number is neither below a range nor above it.

    Raises:
        BadParameter: it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a valid float.")
    return value


def in_plain_words(message: str, kind: object) -> str:
    """Typer's message about a number that cannot be, in words; any other as it is.

    Args:
        message: "'y' is not a valid int range." or "0 is not in the range x>=1."
        kind: the type of the option or argument, as typer has it.
    """
    name = str(getattr(kind, "name", "")).removesuffix(" range")
    found = _REFUSED.fullmatch(message)
    number = _KINDS.get({"integer": "int"}.get(name, name))
    if found is None or number is None:
        return message
    least, most = getattr(kind, "min", None), getattr(kind, "max", None)
    if least is not None and most is not None:
        number += f" from {least:g} to {most:g}"
    elif least is not None:
        number += f" of at least {least:g}"
    elif most is not None:
        number += f" of at most {most:g}"
    return f"it is {found['value'].removesuffix('.0')}, but must be {number}."
