"""What the doctor says of a Mac with two things wrong: the real checks, on facts that are written down here."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path
from typing import Any

from qlora_client.doctor import backup, clock, compute, disk, folders, memory, python, queue, service, settings
from qlora_client.doctor import unattended as alone
from qlora_client.doctor.examination import Examination
from qlora_client.doctor.topic import Topic
from qlora_engine.host.installed import InstalledService
from qlora_engine.host.mounts import Mount
from qlora_engine.host.pressure import Pressure
from qlora_engine.host.reach import Answer, Reached
from qlora_engine.job.folder import Home
from screens.home import DAEMON, NOW

_GIGA = 1_000_000_000
_HOME = Home(Path("/Users/me/qlora"))
_THERE = Reached(_HOME.path, Answer.READABLE, writable=True, owner=501, mode=stat.S_IFDIR | 0o700)
_STATE = Reached(_HOME.state, Answer.READABLE, writable=True, owner=501, mode=stat.S_IFDIR | 0o700)
_TRAIN = Reached(Path("/Users/me/data/train.jsonl"), Answer.READABLE, writable=True, owner=501, mode=stat.S_IFREG)
_PROGRAM = ("/Users/me/.local/bin/python", "-P")
_AGENT = InstalledService("launchd", Path("agent.plist"), True, True, DAEMON, 0, _PROGRAM, True)
_METAL = compute.Mlx("0.32.4", "metal", "Apple M3 Pro", True, 36 * _GIGA, 27 * _GIGA, None)

# Any: each topic has facts of its own kind.
_FACTS: tuple[tuple[Topic[Any], object], ...] = (
    (python.TOPIC, python.PythonFacts("macos", (3, 12, 4), Path(_PROGRAM[0]), "arm64", True, "15.1", here="0.1.0")),
    (compute.TOPIC, compute.ComputeFacts("macos", _METAL, memory=36 * _GIGA, wired_limit=0)),
    (memory.TOPIC, memory.MemoryFacts(36 * _GIGA, 19 * _GIGA, Pressure.NORMAL)),
    (folders.HOME, folders.HomeFacts("macos", _HOME, {_HOME.path: _THERE, _HOME.state: _STATE}, user=501)),
    (disk.TOPIC, disk.DiskFacts(_HOME.path, Mount(Path("/"), "apfs"), 4 * _GIGA, 5 * _GIGA, 2 * _GIGA, 3)),
    (backup.TOPIC, backup.BackupFacts(())),
    (folders.DATA, folders.DataFacts("macos", (), (_TRAIN,))),
    (queue.TOPIC, queue.QueueFacts(_HOME.socket, embedded="9.1.2")),
    (
        service.TOPIC,
        service.ServiceFacts(
            "macos", "launchd", _AGENT, lingers=None, daemon=service.Daemon(DAEMON, "0.1.0"), version="0.1.0"
        ),
    ),
    (settings.TOPIC, settings.SettingsFacts(here={}, service={})),
    (clock.TOPIC, clock.ClockFacts(NOW, NOW - timedelta(hours=1))),
    (
        alone.TOPIC,
        alone.UnattendedFacts(
            {"sleep": 0, "lowpowermode": 0, "autorestart": 0}, encrypted=False, logs_in="me", service="agent"
        ),
    ),
)


def examination() -> Examination:
    """What it found."""
    return Examination(tuple(finding for topic, facts in _FACTS for finding in topic.judge(facts)), 0.8)
