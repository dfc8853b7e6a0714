"""Whether training that goes on from a checkpoint computes what it would have computed without a stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Exactness:
    """What differs between the process that wrote a checkpoint and the one that goes on from it.

    Attributes:
        exact: none of it decides how results are rounded. On the CPU the run is then the same, bit by bit; a GPU may
            add up in another order at any time.
        changed: all of it, in words.
    """

    exact: bool
    changed: tuple[str, ...]


def compare(then: Mapping[str, Any], now: Mapping[str, Any]) -> Exactness:
    """Compare two environments, as `Runtime.environment` gives them; what one of them does not say is not compared.

    Python itself computes only the learning rate and the like, in double precision, so that a correction of it (3.12.4
    to 3.12.5) changes nothing. Any other version of MLX, mlx_lm or the engine may round otherwise, and so may another
    device or BLAS library.
    """
    differs = list(_differences(then, now))
    return Exactness(
        exact=all(name == "python" and _series(before) == _series(after) for name, before, after in differs),
        changed=tuple(_in_words(*difference) for difference in differs),
    )


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    before, after = then.get("versions", {}), now.get("versions", {})
    for name in sorted(before.keys() & after.keys()):
        if before[name] != after[name]:
            yield name, before[name], after[name]
    for name in ("backend", "device", "blas"):
        if name in then and name in now and then[name] != now[name]:
            yield name, then[name], now[name]


def _series(version: str) -> list[str]:
    return str(version).split(".")[:2]


def _in_words(name: str, before: object, after: object) -> str:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        parts = (key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key))
        return "; ".join(f"{name} {key} {before.get(key)} → {after.get(key)}" for key in parts)
    return f"{name} {before} → {after}"
