"""Faults of processes: killed, asked to stop, hung, aborted, left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil

from faults.fault import Fault
from faults.world import World
from qlora_engine.job.states import State
from support.service import wait_until


class KillTraining(Fault):
    name = "SIGKILL of the training process"
    interrupts = True
    may_crash = True
    happens = "A crash of the job, one of three without a new checkpoint; it goes on from its checkpoint."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("training", signal.SIGKILL)


class AbortTraining(Fault):
    name = "SIGABRT of the training process, as Metal's watchdog does it"
    interrupts = True
    may_crash = True
    happens = "As SIGKILL."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("training", signal.SIGABRT)


class KillWorker(Fault):
    name = "SIGKILL of the worker"
    interrupts = True
    happens = "The training process finds its pipe ended, saves a checkpoint and ends; a new worker goes on."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("worker", signal.SIGKILL)


class KillDaemon(Fault):
    name = "SIGKILL of the daemon, then a start"
    interrupts = True
    happens = "Worker and training process stop at a checkpoint; the next daemon settles what they left and goes on."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("daemon", signal.SIGKILL)
        world.restart()


class KillAll(Fault):
    name = "SIGKILL of everything at once, then a start"
    interrupts = True
    may_crash = True
    happens = "The job goes on from its newest checkpoint."
    within = 20.0

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.kill_everything()
        world.restart()


class KillAtStart(Fault):
    name = "SIGKILL of everything while the job starts"
    interrupts = True
    may_crash = True
    happens = "Likewise: the run folder says that it was starting."
    within = 20.0

    def strike(self, world: World) -> None:
        world.send("training", signal.SIGTERM)
        wait_until("it starts anew", lambda: any(r.state is State.STARTING for r in world.records()), 30)
        world.pause(1.5)
        world.kill_everything()
        world.restart()


class TermTraining(Fault):
    name = "SIGTERM of the training process"
    interrupts = True
    happens = "It saves a checkpoint and ends; the job is started again after two seconds."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("training", signal.SIGTERM)


class TermTrainingTwice(Fault):
    name = "SIGTERM of the training process, twice"
    interrupts = True
    happens = "It ends at once; the job goes on from its newest checkpoint."

    def strike(self, world: World) -> None:
        world.send("training", signal.SIGTERM)
        process = world.process("training")
        if process is not None:
            world.pause(0.05)
            with_no_such(process, signal.SIGTERM)


class TermAtImport(Fault):
    name = "SIGTERM of the training process while it imports"
    interrupts = True
    happens = "There is nothing to lose yet: it ends and is started again."

    def strike(self, world: World) -> None:
        old = world.wait_for_process("training").pid
        world.send("training", signal.SIGTERM)
        wait_until("a new one", lambda: (p := world.process("training")) is not None and p.pid != old, 30)
        world.pause(1.0)
        world.send("training", signal.SIGTERM)


class TermWorker(Fault):
    name = "SIGTERM of the worker"
    interrupts = True
    happens = "It passes it on, waits for the checkpoint and ends; a new worker goes on."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("worker", signal.SIGTERM)


class TermBetweenPopAndSpawn(Fault):
    name = "SIGTERM of the worker between its pop and the spawn"
    interrupts = True
    happens = "It writes down that nothing was trained, and ends; the job is given to the next worker."

    def strike(self, world: World) -> None:
        worker = world.wait_for_process("worker")
        world.send("training", signal.SIGTERM)
        wait_until("it is given away", lambda: any(r.state is State.STARTING for r in world.records()), 30)
        with_no_such(worker, signal.SIGTERM)


class StopDaemon(Fault):
    name = "SIGTERM of the daemon, then a start"
    interrupts = True
    happens = "A checkpoint is saved, everything ends in order; the next daemon goes on."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("daemon", signal.SIGTERM)
        world.restart()


class StopDaemonTwice(Fault):
    name = "SIGTERM of the daemon, twice, then a start"
    interrupts = True
    happens = "It hurries: the training process ends at once, the job goes on from its newest checkpoint."

    def strike(self, world: World) -> None:
        world.send("daemon", signal.SIGTERM)
        world.pause(0.2)
        with_no_such(psutil.Process(world.daemon.process.pid), signal.SIGTERM)
        world.restart()


class CtrlC(Fault):
    name = "Ctrl-C in the daemon's terminal, then a start"
    interrupts = True
    happens = "The signal reaches the daemon alone, since each child has its own group; it stops in order."

    def strike(self, world: World) -> None:
        for child in ("valkey", "worker", "training"):
            assert os.getpgid(world.wait_for_process(child).pid) != os.getpgid(world.daemon.process.pid)
        world.send("daemon", signal.SIGINT)
        world.restart()


class TwoDaemons(Fault):
    name = "A second daemon is started"
    happens = "It is refused and ends with 69; the first does not notice."

    def strike(self, world: World) -> None:
        second = subprocess.run(
            [sys.executable, "-P", "-m", "qlora_daemon"],
            env=world.daemon.environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert second.returncode == 69, second.stderr


def with_no_such(process: psutil.Process, number: signal.Signals) -> None:
    """Send a signal, unless the process is just gone."""
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
