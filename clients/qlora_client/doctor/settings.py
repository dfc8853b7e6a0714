"""The settings: whether they can be used, are spelled as they should be, and are those that the service has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qlora_client.doctor.finding import Verdict, error, info, ok, warning
from qlora_client.doctor.machine import Machine
from qlora_client.doctor.topic import Topic
from qlora_engine.host.installed import installed_service
from qlora_engine.job.errors import BadSetting, ProgramFailed
from qlora_worker.settings import PREFIX, is_public, unknown_variables

HOME = f"{PREFIX}HOME"  # the service was found by it
SHARED = frozenset({f"{PREFIX}REDIS_URL", f"{PREFIX}GPU_LOCK"})  # in which clients and daemon must agree


@dataclass(frozen=True)
class SettingsFacts:
    """Of this shell and of the service.

    Attributes:
        problem: why the settings cannot be used.
        here: the `QLORAD_*` variables of this process.
        service: those that the service was installed with; None where there is none, or only root may read them.
    """

    problem: BadSetting | None = None
    here: Mapping[str, str] = field(default_factory=dict)
    service: Mapping[str, str] | None = None


def look(machine: Machine) -> SettingsFacts:
    """Read the environment, and the service's file."""
    try:
        service = installed_service(machine.home)
    except (ProgramFailed, OSError):
        service = None  # the topic of the service says so
    theirs = None if service is None or service.up_to_date is None else _ours(service.environment)
    return SettingsFacts(machine.problem, _ours(machine.environment), theirs)


def values(facts: SettingsFacts) -> Verdict:
    """Every value can be used; otherwise neither the daemon nor a client starts."""
    if facts.problem is not None:
        return error(facts.problem.what, facts.problem.remedy or "Correct or unset it.")
    return ok(f"{len(facts.here)} set" if facts.here else "the defaults")


def unknown(facts: SettingsFacts) -> Verdict:
    """Every variable is a setting; a misspelled one is ignored without a word."""
    found = unknown_variables({**(facts.service or {}), **facts.here})
    if not found:
        return ok("none")
    named = [f"{name}{f' (did you mean {meant}?)' if meant else ''}" for name, meant in found]
    return warning(f"No settings, and ignored: {', '.join(named)}.", "Correct or unset them.")


def as_the_service(facts: SettingsFacts) -> Verdict | None:
    """The service has what this shell says: it keeps the settings that it was installed with."""
    if facts.service is None:
        return None
    here, service = ({**each, HOME: ""} for each in (facts.here, facts.service))
    other = sorted(name for name in here.keys() | service.keys() if here.get(name) != service.get(name))
    if not other:
        return ok("as in this shell")
    named = ", ".join(f"{name} is {_shown(name, service)} there, {_shown(name, here)} here" for name in other)
    what = f"The service has other settings than this shell: {named}."
    remedy = "Run `qlorad install` in a shell that has what you want, and keep that in your shell's profile."
    if any(name in here or name in SHARED for name in other):
        return warning(what, remedy)
    return info(what, "That is well; but `qlorad install` in this shell would take them away.")


def _ours(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.upper().startswith(PREFIX)}


def _shown(name: str, among: Mapping[str, str]) -> str:
    if name not in among:
        return "unset"
    return repr(among[name]) if is_public(name) else "set"


TOPIC = Topic("Settings", look, {"settings": values, "unknown settings": unknown, "service's settings": as_the_service})
