"""Text for a terminal: what files and other processes say, made harmless, and numbers as people read them."""

from __future__ import annotations

import re
from datetime import datetime

# Escape sequences as a whole, so that none of their letters stay behind (ECMA-48: CSI, OSC and its kin, others).
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c|$)"
    r"|\x1b[ -/]*[0-~]?"
)
# Other control characters, marks that reorder a line, and halves of characters, which no terminal can show.
_HARMFUL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")


def plain(value: object, limit: int = 2000) -> str:
    """`value` as one line without anything that a terminal would obey, cut at `limit` characters."""
    text = _HARMFUL.sub("", _BREAKS.sub(" ", _SEQUENCES.sub("", str(value)[: 4 * limit]))).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def plain_lines(value: object, limit: int = 20_000) -> str:
    """`plain` for text whose line breaks and indentation are wanted."""
    lines = str(value)[:limit].splitlines()
    return "\n".join(" " * (len(line) - len(line.lstrip(" "))) + plain(line) for line in lines)


def many(count: int, noun: str) -> str:
    """So many of them: 1 row, 2,000 rows."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def kind_in_words(value: object) -> str:
    """What a value of a file is, for who knows no Python."""
    kinds = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return "null" if value is None else kinds.get(type(value), "something else")


def duration(seconds: float) -> str:
    """`7 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    whole = max(0, round(seconds))
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            count, rest = divmod(whole, size)
            part = rest // smaller_size
            return f"{count} {unit} {part} {smaller}" if part else f"{count} {unit}"
    return f"{whole} s"


def size(count: float) -> str:
    """A number of bytes: `98 MB`; units of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 9.95 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def local_time(value: object, *, date: bool = False) -> str:
    """A time of an event or record as this machine's clock shows it; what is no time comes back as plain text."""
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S")
    except (ValueError, OverflowError):
        return plain(value, 30)
