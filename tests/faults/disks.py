"""Faults of disks: full, read-only, gone; a checkpoint that was damaged."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil

from faults.fault import Fault
from faults.world import DISKS, World
from support.service import wait_until

FULL_SECONDS = 3.0


class FullDisk(Fault):
    """Fills one disk, then frees it."""

    folder = ""
    needs_disks = True
    may_trouble = True
    within = 45.0

    def strike(self, world: World) -> None:
        world.disturbed = True
        ballast = world.daemon.home.path / self.folder / ".ballast"
        try:
            _fill(ballast)
            time.sleep(FULL_SECONDS)  # the fault itself
        finally:
            ballast.unlink()


class FullRuns(FullDisk):
    interrupts = True
    name = "No room for run folders: records, events, checkpoints"
    happens = "The training process says so and ends; the job waits 30 s and goes on from its newest checkpoint."
    folder = "runs"
    quick = False


class FullLogs(FullDisk):
    name = "No room for the service log"
    happens = "Lines are lost there; nothing else is."
    folder = "logs"
    within = 15.0


class FullState(FullDisk):
    name = "No room for Valkey's append-only file"
    happens = "Training does not notice; what Valkey refuses meanwhile is asked again."
    folder = "state"
    within = 15.0


class FullInbox(FullDisk):
    name = "No room in the watched folder while a job is dropped"
    happens = "What is copied stays a hidden part and is no job; dropped again, when there is room, it is one."
    folder = "jobs"
    within = 15.0

    def strike(self, world: World) -> None:
        ballast = world.daemon.home.jobs / ".ballast"
        try:
            _fill(ballast)
            with contextlib.suppress(OSError):
                (world.daemon.home.jobs / ".half.json").write_text("{" + " " * 100_000)
            time.sleep(FULL_SECONDS)  # the fault itself
        finally:
            ballast.unlink()
            (world.daemon.home.jobs / ".half.json").unlink(missing_ok=True)


class ReadOnlyInbox(Fault):
    name = "The watched folder's disk is read-only for 3 s while a job lies in it"
    may_trouble = True
    happens = "The job stays where it is and is taken afterwards."
    needs_disks = True

    def strike(self, world: World) -> None:
        world.drop(priority=-world.dropped)
        remount(world.daemon.home.jobs, "ro")
        time.sleep(FULL_SECONDS)  # the fault itself
        remount(world.daemon.home.jobs, "rw")


class DeletedInbox(Fault):
    name = "The watched folder is deleted, and made again after 3 s"
    may_trouble = True
    happens = "It is watched again; a job that is dropped then is taken."

    def strike(self, world: World) -> None:
        jobs = world.daemon.home.jobs
        wait_until("nothing waits in it", lambda: _is_settled(world), 30)
        if world.mounted:
            subprocess.run(["umount", "-l", str(jobs)], check=True)
        shutil.rmtree(jobs)
        time.sleep(FULL_SECONDS)  # the fault itself
        jobs.mkdir(exist_ok=True)
        if world.mounted:
            mount(jobs)
        world.drop(priority=-world.dropped)


def _is_settled(world: World) -> bool:
    """Whether no job would go with the watched folder: none was dropped or claimed that is not accepted yet."""
    home = world.daemon.home
    return not [path for path in home.jobs.iterdir() if path.suffix == ".json"] and not os.listdir(home.taking)  # noqa: PTH208


class MissingMount(Fault):
    name = "The watched folder's disk is unplugged for 3 s"
    may_trouble = True
    happens = "An empty folder is watched meanwhile; a job dropped on the disk afterwards is taken."
    needs_disks = True

    def strike(self, world: World) -> None:
        jobs = world.daemon.home.jobs
        wait_until("nothing waits in it", lambda: _is_settled(world), 30)
        subprocess.run(["umount", "-l", str(jobs)], check=True)
        time.sleep(FULL_SECONDS)  # the fault itself
        mount(jobs)
        world.drop(priority=-world.dropped)


class DamagedCheckpoint(Fault):
    name = "Everything is killed and the newest checkpoint damaged, then a start"
    interrupts = True
    may_crash = True
    happens = "Its hashes do not fit: it is passed over, with an event, and the one before it is taken."
    within = 20.0

    def strike(self, world: World) -> None:
        job = world.unfinished()[0]
        world.kill_everything()
        checkpoints = sorted((world.daemon.home.run(job.id).checkpoints).glob("step-*"))
        if len(checkpoints) > 1:
            (checkpoints[-1].with_name(f".damaged-{checkpoints[-1].name}")).touch()
            file = checkpoints[-1] / "state.safetensors"
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
        world.restart()


class KilledInASave(Fault):
    name = "SIGKILL of the training process in a save"
    interrupts = True
    may_crash = True
    happens = "The unfinished checkpoint is invisible; the job goes on from the one before it."
    number = signal.SIGKILL

    def strike(self, world: World) -> None:
        job = world.unfinished()[0]
        checkpoints = world.daemon.home.run(job.id).checkpoints
        process = world.wait_for_process("training")
        end = time.monotonic() + 5.0
        while time.monotonic() < end and not any(checkpoints.glob(".tmp-*")):
            pass  # a save takes milliseconds: nothing slower than this would find one
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(self.number)


class StoppedInASave(KilledInASave):
    name = "SIGTERM of the training process in a save"
    happens = "The save is finished, one more is made where it stops, and the job goes on from that."
    may_crash = False
    number = signal.SIGTERM


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(65_536))
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0")


def mount(folder: Path) -> None:
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISKS[folder.name]}m,mode=700", "tmpfs", str(folder)], check=True
    )


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)
