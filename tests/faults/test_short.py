"""The short form of the fault suite: one fault of each important kind. All of them: `make faults`."""

from __future__ import annotations

import random

import pytest

from faults.driver import SHORT, strike_all
from faults.world import world
from support.service import NotInTime, wait_until

SEED = 5


@pytest.mark.slow
def test_nothing_is_lost_run_twice_or_changed_by_any_fault() -> None:
    """Whatever is killed, wiped, filled or put to sleep: each job ends once, with the adapters of a quiet run."""
    told: list[str] = []
    with world(SEED) as made:
        kinds = [kind for kind in SHORT if made.mounted or not kind.needs_disks]
        random.Random(SEED).shuffle(kinds)
        struck = strike_all(made, kinds, told.append)
        assert made.daemon.stop() == 0
        wait_until("nothing of the daemon is left", lambda: not made.daemon.processes(), 10.0)
    problems = [f"{one.fault.name}: {one.problem}" for one in struck if one.problem]
    assert not problems, "\n".join([*problems, *told])
    never = [one.fault.name for one in struck if one.seconds is None]
    assert not never, NotInTime(f"training never went on after {never}")
