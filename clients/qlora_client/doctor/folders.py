"""Access to folders: the home, those that macOS guards, and those of the jobs' data and models."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_client.doctor.finding import Verdict, error, ok, warning
from qlora_client.doctor.machine import Machine, System
from qlora_client.doctor.open_jobs import needs
from qlora_client.doctor.topic import Topic
from qlora_engine.host.reach import Answer, Reached, reach
from qlora_engine.job.folder import Home
from qlora_engine.job.text import many

GUARDED = ("Documents", "Desktop", "Downloads", "Library/Mobile Documents")
GRANT = "System Settings › Privacy & Security › Full Disk Access"
SHOWN = 3  # folders that are named


@dataclass(frozen=True)
class HomeFacts:
    """Of the home itself.

    Attributes:
        reached: what came of reading it and its parts, by path.
        parent: of the nearest folder above it that there is, where the home is missing.
        user: id of who runs this.
    """

    system: System
    home: Home
    reached: Mapping[Path, Reached] = field(default_factory=dict)
    parent: Reached | None = None
    user: int = 0


@dataclass(frozen=True)
class DataFacts:
    """Of folders beside the home.

    Attributes:
        guarded: the home, data and models of jobs that lie where macOS asks before a program may read.
        reached: what came of reading the data and models of jobs that have not ended.
    """

    system: System
    guarded: tuple[Path, ...] | None
    reached: tuple[Reached, ...] = ()


def look_at_home(machine: Machine) -> HomeFacts:
    """Read the home and its parts."""
    home = machine.home
    parts = (home.path, home.jobs, home.runs, home.logs, home.state, home.models)
    reached = reach(parts)
    parent = None
    if reached[home.path].answer is Answer.MISSING:
        above = reach(home.path.parents)
        parent = next((above[path] for path in home.path.parents if above[path].answer is not Answer.MISSING), None)
    return HomeFacts(machine.system, home, reached, parent, os.getuid())


def home_folder(facts: HomeFacts) -> Verdict:
    """The home can be read and written, or made."""
    where, home = facts.home.path, facts.reached[facts.home.path]
    if home.answer is Answer.MISSING:
        if facts.parent is None or not facts.parent.writable:
            return error(f"{where} is not there and cannot be made here.", "Set QLORAD_HOME to a folder of yours.")
        return ok(f"{where}, made by the first start")
    if home.answer is Answer.HANGS:
        return error(f"{where} does not answer: {home.why}.", _hangs(where, facts.system))
    if home.answer is not Answer.READABLE:
        return error(f"{where} cannot be read: {home.why}.", _denied(where, facts.system))
    if not home.is_folder:
        return error(f"{where} is a file.", "Move it away, or set QLORAD_HOME to a folder.")
    return ok(str(where)) if home.writable else error(f"{where} cannot be written.", _make_yours(where))


def home_parts(facts: HomeFacts) -> Verdict | None:
    """What lies in the home can be written: one start by sudo leaves folders that nobody else may."""
    parts = [part for path, part in facts.reached.items() if path != facts.home.path]
    present = [part for part in parts if part.answer is not Answer.MISSING]
    if not present or not facts.reached[facts.home.path].is_folder:
        return None
    for part in present:
        if part.answer is not Answer.READABLE:
            return error(f"{part.path} cannot be read: {part.why}.", _denied(part.path, facts.system))
        if not part.writable:
            return error(f"{part.path} cannot be written.", _make_yours(part.path))
        if part.owner not in (None, facts.user):
            return warning(
                f"{part.path} belongs to another user ({part.owner}).",
                _make_yours(part.path),
            )
    state = facts.reached.get(facts.home.state)
    if state is not None and state.mode is not None and state.mode & 0o077:
        return warning(
            f"Others may enter {state.path}, where the queue's socket is.",
            f"Keep it to yourself: chmod 700 '{state.path}'",
        )
    return ok("can be read and written")


def look_at_data(machine: Machine) -> DataFacts:
    """Read the data and the models of jobs that have not ended."""
    files = dict.fromkeys(path for need in needs(machine.home) for path in need.files)
    reached = tuple(reach(files).values())
    places = (machine.home.path, *files)
    guarded = tuple(path for path in places if is_guarded(path, machine.user_home)) if machine.is_mac else None
    return DataFacts(machine.system, guarded, reached)


def is_guarded(path: Path, user_home: Path) -> bool:
    """Whether macOS asks a person before a program may read it."""
    if path.is_relative_to("/Volumes"):
        return True
    return any(path.is_relative_to(user_home / folder) for folder in GUARDED)


def guarded(facts: DataFacts) -> Verdict | None:
    """Nothing that the daemon needs lies where macOS guards it: what a terminal may read, a service may not."""
    if facts.guarded is None:
        return None
    if not facts.guarded:
        return ok("none is used")
    return warning(
        f"macOS guards {_some(facts.guarded)}: the service may be refused, or hang, where this terminal is not.",
        f"Move it elsewhere, such as ~/qlora; or give the service's Python access in {GRANT}.",
    )


def data(facts: DataFacts) -> Verdict | None:
    """The data and models of jobs that have not ended are there and can be read."""
    if not facts.reached:
        return None
    hanging = [item.path for item in facts.reached if item.answer is Answer.HANGS]
    if hanging:
        return error(f"{_some(hanging)} did not answer in time.", _hangs(hanging[0], facts.system))
    missing = [item.path for item in facts.reached if item.answer is Answer.MISSING]
    if missing:
        return error(f"{_some(missing)} is not there, and a job needs it.", "Put it back, or `qlora cancel` the job.")
    refused = [item for item in facts.reached if item.answer is not Answer.READABLE]
    if refused:
        return error(f"{refused[0].path} cannot be read: {refused[0].why}.", _denied(refused[0].path, facts.system))
    return ok(f"{many(len(facts.reached), 'path')} of jobs can be read")


def _some(paths: tuple[Path, ...] | list[Path]) -> str:
    shown = ", ".join(map(str, paths[:SHOWN]))
    return shown if len(paths) <= SHOWN else f"{shown} and {len(paths) - SHOWN} more"


def _make_yours(path: Path) -> str:
    return f"Make it yours: sudo chown -R $(id -un) '{path}'"


def _hangs(path: Path, system: System) -> str:
    if system == "linux":
        return "Its disk is away: connect it again, or see `mount` and `dmesg`."
    return (
        f"If `ls '{path}'` hangs, too, its disk is away: connect it again. If it does not, macOS waits for somebody to "
        f"allow access: look for a question on the screen, or grant it in {GRANT}."
    )


def _denied(path: Path, system: System) -> str:
    look = f"See whose it is: ls -ld '{path}'"
    return look if system == "linux" else f"{look} If it is yours, grant access in {GRANT}."


HOME = Topic("Home", look_at_home, {"home": home_folder, "folders": home_parts})
DATA = Topic("Data", look_at_data, {"guarded folders": guarded, "data": data}, reads_home=True)
