"""Faults of what lives and does nothing: hung, deaf, asleep, orphaned, out of descriptors, in another time."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator

import psutil

from faults.fault import Fault
from faults.processes import with_no_such
from faults.world import World
from qlora_engine.job.states import State
from support.service import wait_until


class HangingTraining(Fault):
    name = "The training process hangs"
    interrupts = True
    happens = "The watchdog dumps its stacks after the time that a stall takes, ends it, and the job goes on."
    within = 60.0
    quick = False

    def strike(self, world: World) -> None:
        world.send("training", signal.SIGSTOP)


class DeafTraining(Fault):
    name = "The training process ignores SIGTERM while the daemon stops, then a start"
    interrupts = True
    happens = "It is killed when its time is over; the job goes on from its newest checkpoint, no crash is counted."
    within = 20.0
    quick = False

    def strike(self, world: World) -> None:
        world.send("training", signal.SIGSTOP)
        world.send("daemon", signal.SIGTERM)
        world.restart()


class HungWorker(Fault):
    name = "The worker hangs while a job waits for it"
    interrupts = True
    happens = "Nobody takes the job for 20 s, so the worker is killed and started again."
    within = 45.0
    quick = False

    def strike(self, world: World) -> None:
        world.send("worker", signal.SIGSTOP)
        world.send("training", signal.SIGTERM)


class SleepingMachine(Fault):
    name = "Everything stands still for 3 s, then goes on"
    happens = "Nothing: the job goes on as it was, in the same process."
    seconds = 3.0

    def strike(self, world: World) -> None:
        processes = world.daemon.processes()
        world.draw.shuffle(processes)
        for process in processes:
            with_no_such(process, signal.SIGSTOP)
        time.sleep(self.seconds)  # the fault itself
        world.draw.shuffle(processes)
        for process in processes:
            with_no_such(process, signal.SIGCONT)


class LongSleepingMachine(SleepingMachine):
    name = "Everything stands still for 100 s, longer than RQ's times, then goes on"
    happens = "Likewise."
    seconds = 100.0
    quick = False


@contextlib.contextmanager
def _pipe_held_open(training: psutil.Process) -> Iterator[None]:
    """The training process does not see meanwhile that the worker's end of its pipe is closed. Linux only."""
    arguments = training.cmdline()
    reads = arguments[arguments.index("--parent-fd") + 1]
    writes = os.open(f"/proc/{training.pid}/fd/{reads}", os.O_WRONLY)
    try:
        yield
    finally:
        os.close(writes)


class Orphan(Fault):
    name = "A training process outlives everything else, hung, and wakes beside a new daemon"
    interrupts = True
    happens = "It holds the GPU, so nothing starts beside it; woken, it finds its pipe ended, saves and goes."
    within = 40.0
    quick = False

    def strike(self, world: World) -> None:
        orphan = world.wait_for_process("training")
        worker, daemon = world.wait_for_process("worker"), world.wait_for_process("daemon")
        others = [process for process in world.daemon.processes() if process.pid != orphan.pid]
        # The daemon first: it must not see its worker go, and the worker would pass on that its daemon has gone.
        daemon.suspend()
        # Stopped before its worker is gone, it would get a SIGHUP then, as every stopped group that loses its last
        # relative does, and die of it. So its worker goes first, unnoticed: its pipe is held open meanwhile.
        with _pipe_held_open(orphan):
            worker.kill()
            # Its main thread may be a zombie while others still end; the group is forsaken with the last of them.
            while orphan.ppid() == worker.pid:
                pass
            orphan.suspend()
        for process in others:
            with_no_such(process, signal.SIGKILL)
        world.restart()
        world.wait_for_process("worker")
        assert world.process("training") == orphan
        world.pause(2.0)
        with_no_such(orphan, signal.SIGCONT)


class NoDescriptors(Fault):
    name = "The daemon has no file descriptors left for 3 s"
    may_trouble = True
    happens = "What it cannot write now it writes later; the training process does not notice."

    def strike(self, world: World) -> None:
        daemon = world.wait_for_process("daemon")
        limits = daemon.rlimit(psutil.RLIMIT_NOFILE)
        daemon.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        time.sleep(3)  # the fault itself
        daemon.rlimit(psutil.RLIMIT_NOFILE, limits)


class ClockForward(Fault):
    name = "The clock is set a day forward, then back"
    interrupts = True
    happens = "Waiting is measured on the monotonic clock; a job that rests is not kept waiting for a day."
    days = 1

    def strike(self, world: World) -> None:
        clock = world.daemon.home.path / "clock"
        clock.write_text(str(self.days))
        world.send("training", signal.SIGTERM)
        wait_until("it is queued", lambda: all(r.state is not State.RUNNING for r in world.records()), 30)
        clock.write_text("0")


class ClockBack(ClockForward):
    name = "The clock is set a day back, then right again"
    happens = "Likewise."
    days = -1
