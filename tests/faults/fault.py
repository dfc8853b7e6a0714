"""What a fault is: a class with a name, a sentence on what happens, and a strike."""

from __future__ import annotations

from faults.world import World

FAULTS: list[type[Fault]] = []


class Fault:
    """One kind of fault. A subclass is registered by being written.

    Attributes:
        name: what is done, for the table.
        happens: what qlorad does about it, for the table.
        within: seconds until training goes on, at most, once the fault is over and the daemon runs.
        quick: whether it may be part of the short form.
        needs_disks: whether it needs folders with disks of their own.
        may_crash: whether it may count as a crash of the job's own.
        may_trouble: whether the daemon may say that it could not do something; otherwise that is a bug.
        interrupts: whether the training process ends by it, so that only a step of the next attempt counts; otherwise
            the same attempt must train on.
    """

    name = "the end of all"
    happens = ""
    within = 15.0
    quick = True
    needs_disks = False
    interrupts = False
    may_trouble = False
    may_crash = False

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            FAULTS.append(cls)

    def strike(self, world: World) -> None:
        """Do it, and undo what would not end by itself. A job is training."""
        raise NotImplementedError
