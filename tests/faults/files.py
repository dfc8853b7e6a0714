"""Faults of what is dropped: slow copies, temporaries, names and content twice, hostile files."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from faults.fault import Fault
from faults.world import World
from support.service import wait_until


class Dropped(Fault):
    """Drops something that must be rejected, with a text beside it that says why; training does not notice."""

    happens = "It is rejected with a reason; training does not notice."
    patience = 30.0

    def strike(self, world: World) -> None:
        rejected = world.daemon.home.rejected
        before = _names(rejected)
        self.drop(world, world.daemon.home.jobs)
        wait_until(f"rejected: {self.name}", lambda: _names(rejected) - before, self.patience)
        new = _names(rejected) - before
        wait_until("a text says why", lambda: _names(rejected) >= {f"{name.removesuffix('.txt')}.txt" for name in new})
        assert all((rejected / name).read_text() for name in _names(rejected) - before if name.endswith(".txt"))

    def drop(self, world: World, jobs: Path) -> None:
        raise NotImplementedError


def hostile(name: str, make: Callable[[Path], None], ending: str = ".yaml") -> type[Dropped]:
    """A kind of file that is no job, as a fault."""

    def drop(self: Dropped, world: World, jobs: Path) -> None:
        world.dropped += 1
        hidden = jobs / f".bad{world.dropped}{ending}"
        make(hidden)
        hidden.rename(jobs / f"bad{world.dropped}{ending}")

    return type("Hostile", (Dropped,), {"name": f"Dropped: {name}", "drop": drop})


def _aliases() -> str:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    return "\n".join(levels)


hostile("a file that is not UTF-8", lambda path: path.write_bytes(b"model: \xff\xfe\n"))
hostile("a file with NUL bytes", lambda path: path.write_bytes(b"model: a\0b\n"))
hostile("aliases within aliases", lambda path: path.write_text(_aliases()))
hostile("5,000 levels of nesting", lambda path: path.write_text("[" * 5000))
hostile("100 MB", lambda path: os.truncate(_touched(path), 100_000_000))
hostile("a symbolic link", lambda path: path.symlink_to("/etc/passwd"))
hostile("an unknown key", lambda path: path.write_text("model: m\nlerning_rate: 1\n"))
hostile("data outside of its folder by `..`", lambda path: path.write_text("model: m\ndata: ../../etc\n"))


class Fifo(Dropped):
    name = "Dropped: a FIFO"

    def drop(self, world: World, jobs: Path) -> None:
        world.dropped += 1
        os.mkfifo(jobs / f"pipe{world.dropped}.yaml")


class SlowCopy(Fault):
    name = "A job file is copied slowly, in pieces"
    happens = "It is taken when it has come to rest, whole."

    def strike(self, world: World) -> None:
        world.dropped += 1
        name = f"job{world.dropped}"
        text = json.dumps(world.keys(name=name, priority=-world.dropped))
        size = len(text) // 5
        with (world.daemon.home.jobs / f"{name}.json").open("w") as file:
            for start in range(0, len(text), size):
                file.write(text[start : start + size])
                file.flush()
                time.sleep(0.2)  # the copy's own pace
        world.expected.add(name)
        _wait_for_job(world, name)


class EditorTemporaries(Fault):
    name = "An editor saves a job file: 4913, a swap file, a backup, a rename"
    happens = "The temporaries are left alone; the file is one job."

    def strike(self, world: World) -> None:
        world.dropped += 1
        name, jobs = f"job{world.dropped}", world.daemon.home.jobs
        text = json.dumps(world.keys(name=name, priority=-world.dropped))
        for temporary in ("4913", f".{name}.json.swp", f"{name}.json~"):
            (jobs / temporary).write_text(text)
        (jobs / f"{name}.tmp1").write_text(text)
        (jobs / f"{name}.tmp1").rename(jobs / f"{name}.json")
        world.expected.add(name)
        _wait_for_job(world, name)
        for temporary in ("4913", f".{name}.json.swp", f"{name}.json~"):
            (jobs / temporary).unlink()


class SameNameTwice(Fault):
    name = "Two jobs are dropped under one file name, one after the other"
    happens = "Two jobs."

    def strike(self, world: World) -> None:
        for _ in range(2):
            world.dropped += 1
            name = f"job{world.dropped}"
            text = json.dumps(world.keys(name=name, priority=-world.dropped))
            world.daemon.drop("same.json", text)
            world.expected.add(name)
            _wait_for_job(world, name)


class SameContentTwice(Fault):
    name = "The same content is dropped twice, under two names"
    happens = "Each file is one job, or said to be a duplicate of the first."

    def strike(self, world: World) -> None:
        world.dropped += 1
        text = json.dumps(world.keys(seed=world.dropped) | {"iters": 1})
        home, names = world.daemon.home, (f"one{world.dropped}", f"two{world.dropped}")
        rejected = _names(home.rejected)
        for name in names:
            world.daemon.drop(f"{name}.json", text)

        def settled() -> bool:
            jobs = [record.name for record in world.records() if record.name in names]
            turned_away = [p for p in _names(home.rejected) - rejected if p.endswith(".json")]
            return len(jobs) + len(turned_away) >= 2

        wait_until("both are settled", settled, 30)


def _wait_for_job(world: World, name: str) -> None:
    wait_until(f"{name} is a job", lambda: any(r.name == name for r in world.records()), 30)


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def _touched(path: Path) -> Path:
    path.touch()
    return path
