"""What a value should be, in words of people rather than of pydantic."""

from __future__ import annotations

import re

# Its words, and ours.
_WORDS = (
    (r", unable .*", ""),
    (r"a valid dictionary( or instance of \w+)?", "a section of keys and values"),
    (r"a valid integer", "a whole number"),
    (r"a valid number", "a number"),
    (r"a valid string", "text"),
    (r"a valid list", "a list"),
    (r"greater than or equal to", "at least"),
    (r"less than or equal to", "at most"),
    (r" after validation, not .*", ""),
    (r"match pattern .*\._-.*", "be letters, digits, dots, dashes and underscores, a letter or digit first"),
    (r"match pattern .*", "be letters, digits, dashes and underscores, a letter or digit first"),
)


def expected(message: str, *, truth: str = "true or false") -> str:
    """From "Input should be a valid integer" to "should be a whole number".

    Args:
        message: pydantic's, about one value.
        truth: how a truth value is written there.
    """
    text = re.sub("^(Input|String|List|Value) ", "", message).removesuffix(".").replace("a valid boolean", truth)
    for theirs, ours in _WORDS:
        text = re.sub(theirs, ours, text)
    return text
