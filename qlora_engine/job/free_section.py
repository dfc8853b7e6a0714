"""What a section may hold whose keys are a library's, not ours: what JSON can say, for that is how a job is stored."""

from __future__ import annotations

import math
from datetime import date, datetime, time
from typing import Any

from qlora_engine.job.wishes import LIMIT, shown


class NotPlain(ValueError):
    """A value that JSON does not have, or that not everybody who reads JSON takes.

    Attributes:
        keys: that lead to it, from the section.
        remedy: what to write instead.
    """

    def __init__(self, keys: tuple[str, ...], what: str, remedy: str) -> None:
        super().__init__(keys, what, remedy)
        self.keys, self.what, self.remedy = keys, what, remedy

    def __str__(self) -> str:
        return self.what


def check_plain(value: Any, keys: tuple[str, ...] = ()) -> None:
    """Raise `NotPlain` unless `value` is text, a number, a truth value, nothing, or lists and sections of such."""
    match value:
        case dict():
            for key, inner in value.items():
                _check_key(key, keys)
                check_plain(inner, (*keys, key))
        case list():
            for number, inner in enumerate(value):
                check_plain(inner, (*keys, str(number)))
        case str():
            _check_text(value, keys)
        case bool() | None:
            pass
        case int():
            if abs(value) >= LIMIT:
                raise NotPlain(keys, f"is {shown(value)}, which is too large", "Write a smaller number.")
        case float():
            if not math.isfinite(value):
                raise NotPlain(keys, f"is {value}, which is no number", "Write a number, or leave the key out.")
        case date() | time():
            text = value.isoformat(" ") if isinstance(value, datetime) else value.isoformat()
            raise NotPlain(keys, "is a date or time, and text or a number is wanted", f"Write it in quotes: '{text}'.")
        case _:
            raise NotPlain(
                keys, f"is a value of the kind `{type(value).__name__}`", "Write it as text, in quotes, or as a list."
            )


def _check_key(key: Any, keys: tuple[str, ...]) -> None:
    if not isinstance(key, str):
        raise NotPlain(keys, f"has the key {shown(key)}, which is no text", "Write the key in quotes.")
    _check_text(key, keys)


def _check_text(text: str, keys: tuple[str, ...]) -> None:
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise NotPlain(keys, "holds half a character", "Write the whole character, or leave it out.")
