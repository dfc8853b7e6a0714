"""Faults of Valkey: away, hung, wiped, its file cut or damaged."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

from faults.fault import Fault
from faults.world import World
from qlora_worker.connection import connect
from support.service import wait_until


class KillValkey(Fault):
    name = "SIGKILL of Valkey"
    happens = "It is started again; training does not notice."

    def strike(self, world: World) -> None:
        world.pause(0.5)
        world.send("valkey", signal.SIGKILL)


class AwayTwoSeconds(Fault):
    name = "Valkey does not answer for 2 s"
    happens = "Training does not notice."
    seconds = 2.0

    def strike(self, world: World) -> None:
        world.send("valkey", signal.SIGSTOP)
        time.sleep(self.seconds)  # the fault itself
        world.send("valkey", signal.SIGCONT)


class AwayThirtySeconds(AwayTwoSeconds):
    name = "Valkey does not answer for 30 s"
    happens = "Training does not notice; a Valkey of our own that hangs is killed and started again."
    seconds = 30.0
    quick = False


class AwayTwoMinutes(AwayTwoSeconds):
    name = "Valkey does not answer for 120 s"
    happens = "Likewise."
    seconds = 120.0
    quick = False


class AwayBetweenAttempts(Fault):
    name = "Valkey hangs while the job waits for its next attempt"
    interrupts = True
    happens = "It is killed and started again, and the job is offered anew."
    within = 40.0
    quick = False

    def strike(self, world: World) -> None:
        world.send("valkey", signal.SIGSTOP)
        world.send("training", signal.SIGTERM)


class Wiped(Fault):
    name = "Redis is wiped, and a job submitted then"
    happens = "Training does not notice; the run folders say what is to be done next."

    def strike(self, world: World) -> None:
        _wipe(world)
        world.dropped += 1
        name = f"job{world.dropped}"
        text = json.dumps(world.keys(name=name, priority=-world.dropped))
        answer = world.daemon.requests().ask("submit", {"text": text, "name": "asked.json", "base": "/"})
        assert answer.ok, answer
        world.expected.add(name)


class WipedBetweenAttempts(Fault):
    name = "Redis is wiped while the job is given away"
    interrupts = True
    happens = "No trace of the attempt is left, so after 2 s the job is offered anew."

    def strike(self, world: World) -> None:
        before = _attempts(world)
        world.send("training", signal.SIGTERM)
        # Another job, where this one was at its end.
        wait_until("a job is given away", lambda: bool(_attempts(world) - before), 30)
        _wipe(world)


def _attempts(world: World) -> set[tuple[str, int]]:
    return {(record.id, record.attempt) for record in world.unfinished() if record.attempt}


class TruncatedFile(Fault):
    name = "Everything is killed and Valkey's file truncated, then a start"
    interrupts = True
    may_crash = True
    happens = "Valkey loads what is left; whatever it holds of attempts is cleared."
    within = 20.0

    def strike(self, world: World) -> None:
        file = _newest_file(world)
        world.kill_everything()
        size = file.stat().st_size
        with file.open("r+b") as opened:
            opened.truncate(world.draw.randrange(size + 1))
        world.restart()


class DamagedFile(Fault):
    name = "Everything is killed and Valkey's file damaged, then a start"
    interrupts = True
    may_crash = True
    happens = "Valkey refuses it; it is moved aside, Valkey starts empty, the run folders say what is to be done."
    within = 20.0

    def strike(self, world: World) -> None:
        file = _newest_file(world)
        world.kill_everything()
        content = bytearray(file.read_bytes())
        for at in (0, *(world.draw.randrange(max(1, len(content))) for _ in range(20))):
            content[at : at + 8] = b"\0" + world.draw.randbytes(7)
        file.write_bytes(content)
        _start_on_damage(world)


class GarbageForManifest(Fault):
    name = "Everything is killed and Valkey's manifest replaced by garbage, then a start"
    interrupts = True
    may_crash = True
    happens = "Likewise."
    within = 20.0

    def strike(self, world: World) -> None:
        world.kill_everything()
        folder = world.daemon.home.state / "appendonlydir"
        folder.mkdir(exist_ok=True)  # an earlier fault may have caught Valkey before it made one
        # Not "#" first, which begins a comment: a manifest of comments alone is one of an empty file.
        (folder / "appendonly.aof.manifest").write_bytes(b"\0" + world.draw.randbytes(99))
        _start_on_damage(world)


def _start_on_damage(world: World) -> None:
    before = len(world.daemon.events("queue.damaged"))
    world.restart()
    wait_until("the damage is found", lambda: len(world.daemon.events("queue.damaged")) > before, 20.0)


class HungDuringStop(Fault):
    name = "Valkey hangs while the daemon stops, then a start"
    interrupts = True
    happens = "It is killed after five seconds; the training has its checkpoint by then."

    def strike(self, world: World) -> None:
        world.send("valkey", signal.SIGSTOP)
        world.send("daemon", signal.SIGTERM)
        world.restart()


def _wipe(world: World) -> None:
    with connect(world.daemon.settings(), timeout=5, retries=10) as connection:
        connection.flushall()


def _newest_file(world: World) -> Path:
    folder = world.daemon.home.state / "appendonlydir"
    wait_until("Valkey has a file", lambda: list(folder.glob("*.incr.aof")))
    return max(folder.glob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
