"""What `qlora doctor` sees of a Mac, through programs that answer as macOS's do."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_client.doctor import backup, compute, folders, python, unattended
from qlora_client.doctor.finding import Severity
from qlora_client.doctor.machine import Machine, this_machine
from qlora_engine.host import backup as time_machine
from qlora_engine.host.energy import from_pmset
from qlora_engine.job.errors import ProgramFailed
from qlora_worker.settings import Settings
from support import recorded
from support.recorded import Recorded

SLEEPS = {"sleep": 1, "lowpowermode": 0, "displaysleep": 10}
DESKTOP = {"AC Power": SLEEPS | {"autorestart": 0}}
LAPTOP = {"Battery Power": SLEEPS | {"lowpowermode": 1}, "AC Power": SLEEPS}
NATIVE = {"hw.optional.arm64": 1, "sysctl.proc_translated": 0, "kern.osproductversion": "15.1", compute.WIRED: 0}

Install = Callable[..., Recorded]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Mac, whose home is not made yet."""
    settings = Settings.model_construct(home=tmp_path / "home", cpu_blas="off")
    return Machine("macos", settings, environment={"PATH": ""}, user_home=tmp_path / "me")


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a program of macOS onto PATH, which must be called as the real one could be."""
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", recorded.on_path(folder))
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    return lambda name, **state: recorded.install(folder, name, **state)


@pytest.fixture
def macos(install: Install) -> Recorded:
    """A Mac on a desk, plugged in, that was never set up to be left alone."""
    install("sysctl", values=NATIVE)
    install("fdesetup", on=False)
    install("defaults", values={})
    install("tmutil", destinations=["Backup"], excluded=[])
    return install("pmset", source="AC Power", percent=None, custom=DESKTOP)


def test_the_system_is_asked_for_in_one_place() -> None:
    """So that a test on Linux can look at a Mac."""
    assert [this_machine(platform).system for platform in ("darwin", "linux", "freebsd14")] == [
        "macos",
        "linux",
        "linux",
    ]


def test_a_mac_that_nobody_prepared_to_be_left_alone(machine: Machine, macos: Recorded) -> None:
    """It sleeps, and stays off after a power failure: what a person finds out after a week away."""
    facts = unattended.look(machine)
    assert facts is not None
    assert (facts.portable, facts.encrypted, facts.logs_in, facts.service) == (False, False, None, None)
    found = {finding.name: finding.severity for finding in unattended.TOPIC.judge(facts)}
    assert found["sleep"] is found["power failure"] is Severity.WARNING
    macos.check()


def test_a_mac_that_comes_back_by_itself(machine: Machine, macos: Recorded, install: Install) -> None:
    """An encrypted disk and a login by itself are read in the words of macOS."""
    install("fdesetup", on=True, encrypting=40)
    install("defaults", values={"/Library/Preferences/com.apple.loginwindow autoLoginUser": "me"})
    macos.change(source="AC Power", percent=100, custom=LAPTOP)
    facts = unattended.look(machine)
    assert facts is not None
    assert (facts.encrypted, facts.logs_in, facts.portable) == (True, "me", True)
    assert "autorestart" not in facts.plugged
    macos.check()


def test_settings_of_energy_are_read_by_source() -> None:
    """Names may be several words, and a line may go on behind its number."""
    text = (
        "Battery Power:\n Sleep On Power Button 1\n sleep                1 (sleep prevented by caffeinate)\n"
        " hibernatefile        /var/vm/sleepimage\nAC Power:\n sleep                0\n"
    )
    assert from_pmset(text) == {"Battery Power": {"Sleep On Power Button": 1, "sleep": 1}, "AC Power": {"sleep": 0}}
    assert from_pmset("") == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (NATIVE | {"sysctl.proc_translated": 1}, "Rosetta"),
        (NATIVE, "Rosetta"),
        ({"sysctl.proc_translated": 1}, "Rosetta"),
        ({"kern.osproductversion": "14.7"}, "Intel"),
    ],
)
def test_a_python_under_rosetta_is_known_from_an_intel_mac(
    machine: Machine, install: Install, monkeypatch: pytest.MonkeyPatch, values: dict[str, object], expected: str
) -> None:
    """One needs another Python, the other another Mac. What sysctl says of translation is about itself."""
    sysctl = install("sysctl", values=values)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert expected in python.architecture(python.look(machine)).what
    sysctl.check()


def test_memory_that_somebody_gave_the_gpu_is_seen(machine: Machine, install: Install) -> None:
    """The limit is megabytes, and beside it macOS needs some as well."""
    sysctl = install("sysctl", values=NATIVE | {compute.WIRED: 9_000_000})
    verdict = compute.wired_limit(compute.look(machine))
    assert verdict is not None
    assert verdict.severity is Severity.WARNING
    sysctl.check()


def test_time_machine_is_asked_about_what_is_large(machine: Machine, macos: Recorded, install: Install) -> None:
    """Models and checkpoints would fill every backup disk."""
    models, checkpoints = machine.home.models, machine.home.run("20261122-143501-a").checkpoints
    for folder in (models, checkpoints):
        folder.mkdir(parents=True)
    assert backup.look(machine) == backup.BackupFacts((models, checkpoints))
    install("tmutil", destinations=["Backup"], excluded=[str(models)])
    assert backup.look(machine) == backup.BackupFacts((checkpoints,))
    install("tmutil", destinations=[], excluded=[])
    assert backup.look(machine) is None
    install("tmutil", destinations=["Backup"], excluded=[], denied=True)
    assert backup.look(machine) is None
    macos.check()


def test_a_program_that_hangs_costs_one_line(
    machine: Machine, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it is about is said to be unknown, not to be well."""
    monkeypatch.setattr(time_machine, "TMUTIL_SECONDS", 0.3)
    install("tmutil", destinations=[], excluded=[], hangs=30.0)
    with pytest.raises(ProgramFailed):
        backup.look(machine)
    assert [(finding.severity, finding.topic) for finding in backup.TOPIC.examine(machine)] == [
        (Severity.WARNING, "Backup")
    ]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Documents/qlora", True), ("Desktop", True), ("Downloads/rows", True), ("Library/Mobile Documents/x", True),
        ("qlora", False), ("Documents-2/x", False), ("/Volumes/Disk/data", True), ("/tmp/x", False),
    ],
)  # fmt: skip
def test_macos_guards_some_folders(path: str, expected: bool) -> None:
    """A terminal that was granted access says nothing about a service that was not."""
    me = Path("/Users/me")
    assert folders.is_guarded(me / path, me) is expected


def test_a_home_in_a_guarded_folder_is_found(machine: Machine) -> None:
    """The first thing that goes wrong on a Mac, and it goes wrong without a word."""
    home = machine.user_home / "Documents" / "qlora"
    moved = replace(machine, settings=Settings.model_construct(home=home))
    assert folders.look_at_data(moved).guarded == (home,)
    assert folders.look_at_data(machine).guarded == ()
