"""Each check of `qlora doctor`: that it is content with a healthy machine, and finds what it is there to find."""

from __future__ import annotations

import stat
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from qlora_client.doctor import clock, compute, disk, folders, memory, python, service, settings, unattended
from qlora_client.doctor import queue as queues
from qlora_client.doctor.backup import BackupFacts
from qlora_client.doctor.examination import TOPICS
from qlora_client.doctor.finding import Finding, Severity, exit_code, worst
from qlora_engine.host.installed import InstalledService
from qlora_engine.host.mounts import Mount
from qlora_engine.host.pressure import Pressure
from qlora_engine.host.reach import Answer, Reached
from qlora_engine.job.errors import BadSetting, Exit, ProgramFailed
from qlora_engine.job.folder import Home

INFO, WARNING, ERROR = Severity.INFO, Severity.WARNING, Severity.ERROR
GIGA = 1_000_000_000
NOW = datetime(2026, 11, 22, 14, 35, tzinfo=UTC)
HOME = Home(Path("/Users/me/qlora"))

PYTHON = python.PythonFacts("macos", (3, 12, 4), Path("/v/bin/python"), "arm64", True, "15.1", here="0.1.0")
METAL = compute.Mlx("0.32.4", "metal", "Apple M4", True, 24 * GIGA, 17 * GIGA, None)
COMPUTE = compute.ComputeFacts("macos", METAL, memory=24 * GIGA, wired_limit=0)
CPU = compute.ComputeFacts("linux", replace(METAL, backend="cpu", name="", blas="/usr/lib/libopenblas.so.0"))
MEMORY = memory.MemoryFacts(24 * GIGA, 12 * GIGA, Pressure.NORMAL)
DISK = disk.DiskFacts(HOME.path, Mount(Path("/"), "apfs"), 100 * GIGA, 5 * GIGA, 2 * GIGA, 3)
BACKUP = BackupFacts(())
EMBEDDED = queues.QueueFacts(HOME.socket, embedded="9.1.2")
EXTERNAL = queues.QueueFacts(None, external=queues.Server("8.0.1", append_only=True, policy="noeviction"))
SERVICE = service.ServiceFacts(
    "linux",
    "systemd",
    InstalledService("systemd", Path("/u/q.service"), True, True, 41, 0, ("/v/bin/python", "-P"), True),
    lingers=True,
    daemon=service.Daemon(41, "0.1.0"),
    version="0.1.0",
)
SETTINGS = settings.SettingsFacts(here={"QLORAD_POWER": "ac"}, service={"QLORAD_POWER": "ac"})
CLOCK = clock.ClockFacts(NOW, NOW - timedelta(hours=1))
MAC_MINI = unattended.UnattendedFacts(
    {"sleep": 0, "lowpowermode": 0, "autorestart": 1}, encrypted=False, logs_in="me", service="agent"
)
THERE = Reached(HOME.path, Answer.READABLE, writable=True, owner=501, mode=stat.S_IFDIR | 0o700)
AT_HOME = folders.HomeFacts("macos", HOME, {HOME.path: THERE, HOME.state: replace(THERE, path=HOME.state)}, user=501)
DATA = folders.DataFacts("macos", (), (replace(THERE, path=Path("/data/train.jsonl")),))

HEALTHY = (
    PYTHON,
    COMPUTE,
    CPU,
    MEMORY,
    AT_HOME,
    DISK,
    BACKUP,
    DATA,
    EMBEDDED,
    EXTERNAL,
    SERVICE,
    SETTINGS,
    CLOCK,
    MAC_MINI,
)


def home_is(answer: Answer, **changes: Any) -> folders.HomeFacts:
    return replace(AT_HOME, reached={HOME.path: replace(THERE, answer=answer, **changes)})


def state_is(**changes: Any) -> folders.HomeFacts:
    state = replace(THERE, path=HOME.state, **changes)
    return replace(AT_HOME, reached={HOME.path: THERE, HOME.state: state})


def data_is(answer: Answer) -> folders.DataFacts:
    return folders.DataFacts("linux", None, (replace(THERE, path=Path("/data/train.jsonl"), answer=answer, why="why"),))


def disk_is(kind: str) -> disk.DiskFacts:
    return replace(DISK, mount=Mount(Path("/mnt"), kind))


def installed(**changes: Any) -> service.ServiceFacts:
    assert SERVICE.installed is not None
    return replace(SERVICE, installed=replace(SERVICE.installed, **changes))


def mac(**plugged: int) -> unattended.UnattendedFacts:
    return replace(MAC_MINI, plugged={**MAC_MINI.plugged, **plugged})


def mlx_is(facts: compute.ComputeFacts, **changes: Any) -> compute.ComputeFacts:
    assert facts.mlx is not None
    return replace(facts, mlx=replace(facts.mlx, **changes))


@dataclass(frozen=True)
class Case:
    """Facts with which one check is not content.

    Attributes:
        says: words of the finding.
    """

    check: str
    facts: object
    severity: Severity
    says: str


CASES = [
    # Python
    Case("python", replace(PYTHON, version=(3, 10, 12)), ERROR, "Python 3.10.12"),
    Case("python", replace(PYTHON, version=(3, 14, 0)), ERROR, "3.11 to 3.13"),
    Case("architecture", replace(PYTHON, processor="x86_64"), ERROR, "Rosetta"),
    Case("architecture", replace(PYTHON, processor="x86_64", apple_silicon=False), ERROR, "Intel"),
    Case("architecture", replace(PYTHON, system="linux", processor="armv7l"), ERROR, "armv7l"),
    Case("macos", replace(PYTHON, macos="13.6.1"), ERROR, "macOS 13.6.1"),
    Case("macos", replace(PYTHON, macos="14.7"), INFO, "swapped out before 15"),
    Case("packages", replace(PYTHON, unmet=(("mlx <0.33,>=0.32.4", "0.29.1"),)), ERROR, "mlx <0.33,>=0.32.4 (0.29.1"),
    Case("packages", replace(PYTHON, unmet=(("rq >=3.0", None),)), ERROR, "rq >=3.0 (missing)"),
    Case(
        "installations",
        replace(PYTHON, others=(python.Installation(Path("/opt/homebrew/bin/qlora"), "0.0.9"),)),
        WARNING,
        "/opt/homebrew/bin/qlora (0.0.9)",
    ),
    # Computing
    Case("mlx", replace(COMPUTE, mlx=None, problem="No module named 'mlx'"), ERROR, "No module named 'mlx'"),
    Case("mlx", mlx_is(COMPUTE, works=False), ERROR, "adds up wrongly on Apple M4"),
    Case("device", mlx_is(COMPUTE, backend="cpu"), ERROR, "no Metal"),
    Case("device", replace(CPU, nvidia=True), WARNING, "NVIDIA"),
    Case("gpu memory", mlx_is(COMPUTE, recommended=4 * GIGA), WARNING, "4.0 GB for training of 24 GB"),
    Case("wired limit", replace(COMPUTE, wired_limit=22_800), WARNING, "24 GB of 24 GB"),
    Case("blas", mlx_is(CPU, blas=None), WARNING, "no OpenBLAS"),
    Case("blas", replace(mlx_is(CPU, blas=None), choice="off"), INFO, "is off"),
    Case("blas", replace(CPU, blas_problem=BadSetting("It names nothing.", remedy="Mend it.")), ERROR, "names nothing"),
    Case("compiler", replace(CPU, compiler=False), WARNING, "no g++"),
    # Memory
    Case("memory", replace(MEMORY, total=4 * GIGA), WARNING, "4.0 GB"),
    Case("pressure", replace(MEMORY, pressure=Pressure.WARNING), WARNING, "short"),
    Case("pressure", replace(MEMORY, pressure=Pressure.CRITICAL), ERROR, "jobs wait"),
    # Home
    Case("home", home_is(Answer.HANGS, why="no answer within 2 s"), ERROR, "no answer within 2 s"),
    Case("home", home_is(Answer.DENIED, why="Operation not permitted"), ERROR, "Operation not permitted"),
    Case("home", home_is(Answer.FAILED, why="Input/output error"), ERROR, "Input/output error"),
    Case("home", home_is(Answer.READABLE, writable=False), ERROR, "cannot be written"),
    Case("home", home_is(Answer.READABLE, mode=stat.S_IFREG | 0o600), ERROR, "is a file"),
    Case("home", home_is(Answer.MISSING), ERROR, "cannot be made"),
    Case("folders", state_is(answer=Answer.DENIED, why="Permission denied"), ERROR, "state cannot be read"),
    Case("folders", state_is(writable=False), ERROR, "/Users/me/qlora/state cannot be written"),
    Case("folders", state_is(owner=0), WARNING, "another user (0)"),
    Case("folders", state_is(mode=stat.S_IFDIR | 0o755), WARNING, "Others may enter"),
    # Disk
    Case("file system", disk_is("smbfs"), ERROR, "network disk (smbfs at /mnt)"),
    Case("file system", disk_is("exfat"), ERROR, "formatted as exfat"),
    Case("file system", disk_is("tmpfs"), WARNING, "in memory"),
    Case("free space", replace(DISK, free=4 * GIGA), ERROR, "below 5.0 GB no job starts"),
    Case("free space", replace(DISK, free=GIGA // 4, reserve=0), ERROR, "below 500 MB"),
    Case("free space", replace(DISK, free=6 * GIGA), WARNING, "3 jobs have not ended and may write 2.0 GB"),
    Case("time machine", BackupFacts((HOME.models,)), INFO, "/Users/me/qlora/models"),
    # Data
    Case("guarded folders", replace(DATA, guarded=(Path("/Users/me/Documents/rows"),)), WARNING, "Documents/rows"),
    Case("data", data_is(Answer.HANGS), ERROR, "did not answer"),
    Case("data", data_is(Answer.MISSING), ERROR, "is not there"),
    Case("data", data_is(Answer.DENIED), ERROR, "cannot be read: why"),
    # Queue
    Case("valkey", replace(EMBEDDED, embedded=None, problem="bad CPU type"), ERROR, "bad CPU type"),
    Case("socket path", replace(EMBEDDED, socket=Path("/" + "x" * 103)), ERROR, "104 bytes"),
    Case("redis", replace(EXTERNAL, external=None, problem="no connection"), ERROR, "no connection"),
    Case("redis", replace(EXTERNAL, external=queues.Server("6.2.14")), ERROR, "Redis 6.2.14"),
    Case("persistence", replace(EXTERNAL, external=queues.Server("8.0", False)), WARNING, "forgets all"),
    Case("persistence", replace(EXTERNAL, external=queues.Server("8.0", True, "allkeys-lru")), WARNING, "allkeys-lru"),
    # Service
    Case("service", replace(SERVICE, problem=ProgramFailed("It hangs.")), WARNING, "It hangs."),
    Case("service", replace(SERVICE, installed=None), INFO, "Not installed"),
    Case("service", installed(loaded=False), ERROR, "does not know /u/q.service"),
    Case("service", installed(running=False, last_exit=78), ERROR, "code 78 (a setting cannot be used)"),
    Case("last end", installed(last_exit=-9), WARNING, "signal 9 (it was killed"),
    Case("service file", installed(up_to_date=False), WARNING, "/u/q.service is not as this version"),
    Case("service file", installed(up_to_date=None), INFO, "Only root may read /u/q.service"),
    Case("service's python", replace(SERVICE, program_exists=False), ERROR, "/v/bin/python, which is gone"),
    Case("service's python", replace(SERVICE, same_python=False), WARNING, "The service starts /v/bin/python"),
    Case("after logout", replace(SERVICE, lingers=False), WARNING, "when you log out"),
    Case("daemon", replace(SERVICE, installed=None, daemon=None), INFO, "None runs"),
    Case("daemon", replace(SERVICE, daemon=service.Daemon(41, "0.0.9")), WARNING, "version 0.0.9"),
    Case("daemon", replace(SERVICE, daemon=service.Daemon(41, "0.1.0", True, ("worker",))), ERROR, "worker"),
    Case("daemon", replace(SERVICE, daemon=service.Daemon(41, "0.1.0", False)), ERROR, "the queue"),
    # Settings
    Case("settings", replace(SETTINGS, problem=BadSetting("QLORAD_POWER cannot be used.")), ERROR, "QLORAD_POWER"),
    Case("unknown settings", replace(SETTINGS, here={"QLORAD_HOEM": "/x"}), WARNING, "did you mean QLORAD_HOME?"),
    Case("unknown settings", replace(SETTINGS, service={"QLORAD_TYPO": "1"}), WARNING, "QLORAD_TYPO"),
    Case("service's settings", replace(SETTINGS, service={}), WARNING, "QLORAD_POWER is unset there, 'ac' here"),
    Case("service's settings", replace(SETTINGS, here={}), INFO, "QLORAD_POWER is 'ac' there, unset here"),
    Case(
        "service's settings",
        settings.SettingsFacts(here={}, service={"QLORAD_REDIS_URL": "redis://:secret@localhost"}),
        WARNING,
        "QLORAD_REDIS_URL is set there, unset here",
    ),
    # Clock
    Case("clock", replace(CLOCK, now=datetime(1970, 1, 1, tzinfo=UTC)), ERROR, "long gone"),
    Case("clock", replace(CLOCK, newest=NOW + timedelta(days=2)), ERROR, "2 d before the newest entry"),
    Case("jumps", replace(CLOCK, jumps=((NOW, 30.0), (NOW, -90.0), (NOW, 5.0))), WARNING, "3 times within a day"),
    # Unattended
    Case("sleep", mac(sleep=10), WARNING, "sleeps 10 min"),
    Case("sleep", replace(mac(sleep=1), portable=True), INFO, "sleeps 1 min"),
    Case("low power mode", mac(lowpowermode=1), WARNING, "slower"),
    Case("power failure", mac(autorestart=0), WARNING, "stays off"),
    Case("filevault", replace(MAC_MINI, encrypted=True), INFO, "typed a password"),
    Case("login", replace(MAC_MINI, logs_in=None), INFO, "until you log in"),
]  # fmt: skip


def findings_of(facts: object) -> list[Finding]:
    """What the topic that has such facts says of them."""
    topic = next(topic for topic in TOPICS if type(facts).__module__ == topic.look.__module__ and _takes(topic, facts))
    return topic.judge(facts)


def _takes(topic: Any, facts: object) -> bool:
    return type(facts).__name__ in str(topic.look.__annotations__["return"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.check}: {case.says}")
def test_a_check_fails_when_it_should(case: Case) -> None:
    """A check that is content with everything is worse than none; and a finding without a remedy helps nobody."""
    found = {finding.name: finding for finding in findings_of(case.facts)}[case.check]
    assert found.severity is case.severity, found
    assert case.says in found.what
    assert found.remedy


def test_no_check_is_without_a_case_in_which_it_fails() -> None:
    """Whoever adds a check shows here that it finds something."""
    assert {name for topic in TOPICS for name in topic.checks} == {case.check for case in CASES}


def test_a_healthy_machine_is_all_green() -> None:
    """Every check is content with a machine on which nothing is wrong: whoever cries wolf is not read."""
    found = [finding for facts in HEALTHY for finding in findings_of(facts)]
    assert [finding for finding in found if finding.severity is not Severity.OK] == []
    assert {finding.name for finding in found} == {name for topic in TOPICS for name in topic.checks}


@pytest.mark.parametrize(
    ("facts", "absent"),
    [
        (CPU, {"gpu memory", "wired limit"}),
        (COMPUTE, {"blas", "compiler"}),
        (replace(COMPUTE, mlx=None), {"device", "gpu memory"}),
        (replace(PYTHON, macos=None), {"macos"}),
        (replace(MEMORY, pressure=None), {"pressure"}),
        (EMBEDDED, {"redis", "persistence"}),
        (EXTERNAL, {"valkey", "socket path"}),
        (replace(DISK, mount=None), {"file system"}),
        (replace(DATA, guarded=None, reached=()), {"guarded folders", "data"}),
        (replace(SERVICE, manager=None, installed=None, lingers=None),
         {"service", "last end", "service file", "service's python", "after logout"}),
        (replace(SETTINGS, service=None), {"service's settings"}),
        (unattended.UnattendedFacts(), {"sleep", "low power mode", "power failure", "filevault", "login"}),
        (replace(MAC_MINI, encrypted=True), {"login"}),
        (replace(SERVICE, daemon=None), {"daemon"}),
    ],
)  # fmt: skip
def test_what_does_not_apply_is_left_out(facts: object, absent: set[str]) -> None:
    """A green line for something that this machine does not have would be a lie."""
    assert not absent & {finding.name for finding in findings_of(facts)}


def test_a_password_in_an_address_is_never_shown() -> None:
    """The page is what people paste into reports; what is no setting may be a password as well."""
    facts = settings.SettingsFacts(
        here={"QLORAD_REDIS_URL": "redis://:secret-1@localhost", "QLORAD_REDIS_PASSWORD": "secret-2"},
        service={"QLORAD_REDIS_URL": "redis://:secret-3@localhost", "QLORAD_NOTIFY": "slack://secret-4/B/C"},
    )
    page = " ".join(f"{finding.what} {finding.remedy}" for finding in findings_of(facts))
    assert "QLORAD_REDIS_PASSWORD is unset there, set here" in page
    assert "secret" not in page


def test_a_service_of_the_machine_needs_no_login() -> None:
    """Whoever installed it --headless has done what there is to do."""
    facts = replace(MAC_MINI, service="daemon", logs_in=None)
    assert next(finding for finding in findings_of(facts) if finding.name == "login").severity is Severity.OK


def test_a_home_that_is_not_there_yet_is_no_fault() -> None:
    """Whoever has just installed qlorad has none."""
    facts = replace(home_is(Answer.MISSING), parent=replace(THERE, path=Path("/Users/me")))
    assert [finding.severity for finding in findings_of(facts)] == [Severity.OK]


def test_only_an_error_fails_the_command() -> None:
    """A script that asks whether jobs can run must not be told no for a laptop that sleeps."""
    findings = [Finding("Clock", "clock", severity, "") for severity in Severity]
    assert (worst(findings), exit_code(findings)) == (ERROR, Exit.UNAVAILABLE)
    assert (worst(findings[:3]), exit_code(findings[:3])) == (WARNING, Exit.OK)
    assert (worst([]), exit_code([])) == (Severity.OK, Exit.OK)
