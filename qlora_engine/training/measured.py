"""What was measured on this machine, kept for the next run that asks the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qlora_engine.job import durable

MOST = 500  # answers; the oldest go first


class Measured:
    """Answers by question, in a file that may be deleted at any time.

    Args:
        path: of the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def answer(self, question: Mapping[str, Any]) -> Any:
        """What was measured for a question, or None."""
        return self._known().get(_key(question))

    def note(self, question: Mapping[str, Any], answer: Any) -> None:
        """Keep an answer, as JSON. On a disk that takes nothing it is measured again the next time."""
        if self._path is None:
            return
        known = self._known()
        known[_key(question)] = answer
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            durable.write_json(self._path, dict(list(known.items())[-MOST:]))
        except OSError:
            return

    def _known(self) -> dict[str, Any]:
        try:
            known = json.loads(self._path.read_bytes()) if self._path is not None else {}
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}


def _key(question: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(question, sort_keys=True).encode()).hexdigest()
