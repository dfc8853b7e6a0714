"""Finds the examples that come with qlorad, in a source checkout or in an installed package."""

from __future__ import annotations

from pathlib import Path

from qlora_engine.job.errors import Exit, QloradError

_HERE = Path(__file__).resolve()
# Packaged beside this file; in a checkout beside the component that this package lies in.
PLACES = (_HERE.parent / "examples", _HERE.parents[2] / "examples")


class ExampleMissing(QloradError):
    """An example is not where qlorad is installed."""

    exit_code = Exit.NOINPUT


def find_example(name: str) -> Path:
    """The folder of an example.

    Raises:
        ExampleMissing: it did not come with this installation.
    """
    for place in PLACES:
        if (place / name / "job.yaml").is_file():
            return place / name
    raise ExampleMissing(
        f"The example {name} is not installed.",
        where=" and ".join(str(place) for place in PLACES),
        remedy="Install qlorad again, or run this from a source checkout.",
    )
