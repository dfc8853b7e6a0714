"""What a value may be, in words, from its JSON Schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from reference.words import any_of, code

Schema = Mapping[str, Any]

PLAIN = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "section",
}


def shape(schema: Schema, sections: Mapping[str, str]) -> str:  # noqa: PLR0911  # one case a kind of schema
    """What a value may be.

    Args:
        schema: of the value.
        sections: by the names of schemas that others refer to, what leads to their own part of the page.
    """
    match schema:
        case {"$ref": str(name)}:
            return sections[name.rpartition("/")[2]]
        case {"const": value}:
            return code(json.dumps(value))
        case {"enum": values}:
            return any_of([code(value) for value in values])
        case {"anyOf": others}:
            # That a key may be left empty is said once for all of them.
            return any_of(list(dict.fromkeys(shape(one, sections) for one in others if one.get("type") != "null")))
        case {"type": "array", "items": items}:
            return f"list of {shape(items, sections)}"
        case {"format": "path"}:
            return "path"
    # That whole numbers are what 64 bits hold is, too.
    known = {word for word in schema if schema["type"] == "integer" and schema[word] == 2**63}
    limits = _limits({word: value for word, value in schema.items() if word not in known})
    return PLAIN[schema["type"]] + (f" ({limits})" if limits else "")


def default(schema: Schema) -> str:
    """What holds where nothing is said, as a job file has it; nothing where that is no value."""
    value = schema.get("default")
    return "" if value is None or value in ([], {}) else code(value if isinstance(value, str) else _number(value))


def _limits(schema: Schema) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        return f"{_number(least)} to {_number(most)}"
    words = {"minimum": "from {}", "exclusiveMinimum": "over {}", "maximum": "to {}", "exclusiveMaximum": "under {}"}
    return ", ".join(text.format(_number(schema[word])) for word, text in words.items() if word in schema)


def _number(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value)
    if value in (2**31, 2**63):
        return f"2^{int(value).bit_length() - 1}"
    return re.sub(r"e([+-])0*", lambda found: f"e{found[1]}".removesuffix("+"), f"{value:.12g}")
