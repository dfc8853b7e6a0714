"""Options that stand for a key of a job file, and errors about them in the words of the command line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qlora_engine.job.errors import QloradError


@dataclass(frozen=True)
class Option:
    """An option as it was given.

    Attributes:
        name: as it is typed, `--after`.
        key: of the job file.
        value: as the job file would have it.
        typed: all of it as a person has typed it, or would.
    """

    name: str
    key: str
    value: object
    typed: str

    @property
    def override(self) -> str:
        """What says the same to `--set`."""
        from qlora_engine.job.jobfile import as_yaml  # noqa: PLC0415  # the help needs no yaml

        return f"{self.key}={as_yaml(self.value)}"


def given(name: str, key: str, value: object) -> Iterator[Option]:
    """The option, unless it was left out: None, False, or a list of nothing."""
    import shlex  # noqa: PLC0415

    if isinstance(value, list) and value:
        yield Option(name, key, value, " ".join(f"{name} {shlex.quote(str(one))}" for one in value))
    elif value is True:
        yield Option(name, key, value, name)
    elif value is not None and value is not False and value != []:
        yield Option(name, key, value, f"{name} {shlex.quote(str(value))}")


@contextmanager
def as_typed(options: Iterable[Option]) -> Iterator[None]:
    """Errors about the keys of these options name the options."""
    try:
        yield
    except QloradError as error:
        for option in options:
            if _is_about(error, option):
                error.where = option.typed
                error.what = _renamed(error.what, option)
                error.remedy = _renamed(error.remedy, option) if error.remedy else None
                break
        raise


def _is_about(error: QloradError, option: Option) -> bool:
    from qlora_engine.job.overrides import place_of  # noqa: PLC0415

    if error.where is None:
        return f"`{option.key}`" in error.what
    return error.where == place_of(option.override) or error.where.partition(": ")[0] == option.key


def _renamed(text: str, option: Option) -> str:
    return text.replace(f"`{option.key}`", f"`{option.name}`")
