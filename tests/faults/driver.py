"""Strikes a world with faults, one after the other, and measures how long it takes until training goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from faults import disks, files, invariants, processes, queue, standstill
from faults.fault import FAULTS, Fault
from faults.world import World
from support.service import NotInTime, wait_until

# Importing them has registered their faults.
MODULES = (processes, standstill, queue, disks, files)
PATIENCE = 100.0  # for training to go on at all; `Fault.within` is what is promised


@dataclass(frozen=True)
class Struck:
    """One fault that was struck, and how long it took until training went on; None: it did not."""

    fault: type[Fault]
    seconds: float | None
    problem: str = ""

    @property
    def is_late(self) -> bool:
        return self.seconds is None or self.seconds > self.fault.within


# One of each way to end, which the tests strike: the rest are for `make faults`.
SHORT = (
    processes.KillDaemon,
    processes.KillWorker,
    processes.KillTraining,
    processes.KillAll,
    processes.TermWorker,
    processes.TermBetweenPopAndSpawn,
    standstill.SleepingMachine,
    queue.KillValkey,
    queue.Wiped,
    queue.DamagedFile,
    disks.FullState,
)


def choose(count: int, draw: random.Random, *, quick: bool, disks_of_their_own: bool) -> list[type[Fault]]:
    """`count` faults: every kind as often as any other, but those that take minutes once; in a drawn order."""
    kinds = [kind for kind in FAULTS if (kind.quick or not quick) and (disks_of_their_own or not kind.needs_disks)]
    once = [kind for kind in kinds if not kind.quick]
    often = [kind for kind in kinds if kind.quick]
    draw.shuffle(often)
    chosen = (once + [often[n % len(often)] for n in range(max(0, count - len(once)))])[:count]
    draw.shuffle(chosen)
    return chosen


def strike_all(
    world: World, kinds: list[type[Fault]], say: Callable[[str], None], stopped: Event | None = None
) -> list[Struck]:
    """Strike, one after the other; the invariants are checked after each, and the results in the end."""
    struck = []
    for number, kind in enumerate(kinds, 1):
        if stopped is not None and stopped.is_set():
            return struck
        struck.append(_strike(world, kind()))
        say(f"{number:3}/{len(kinds)} {_seconds(struck[-1])}  {kind.name}  {struck[-1].problem}")
    try:
        wait_until("all jobs have ended", lambda: not _waiting(world), 300)
        invariants.check_end(world)
    except AssertionError as error:
        struck.append(Struck(Fault, None, f"in the end: {error}"))
        say(struck[-1].problem)
    return struck


def _strike(world: World, fault: Fault) -> Struck:
    problem, began = "", None
    try:
        job = world.make_it_train()
        errors = len(world.daemon.events("internal.error"))
        fault.strike(world)
        world.daemon_is_up()
        before = world.steps()
        began = time.monotonic()
        world.goes_on(before, PATIENCE, after=job if fault.interrupts else None)
        seconds: float | None = time.monotonic() - began
        if not fault.may_crash:
            invariants.no_crash_since(world, job)
        if not fault.interrupts:
            invariants.trained_on(world, job)
        if not fault.may_trouble:
            invariants.no_bug_since(world, errors)
        invariants.check(world)
    except Exception as error:  # noqa: BLE001  # one fault's trouble is a line of the table
        seconds = None if isinstance(error, NotInTime) else time.monotonic() - (began or time.monotonic())
        problem = f"{type(error).__name__}: {error}\n{world.last_words()}"
    return Struck(type(fault), seconds, problem)


def _waiting(world: World) -> bool:
    names = {record.name for record in world.records()}
    return bool(world.unfinished()) or not world.expected <= names


def _seconds(struck: Struck) -> str:
    return "    never" if struck.seconds is None else f"{struck.seconds:7.1f} s"
