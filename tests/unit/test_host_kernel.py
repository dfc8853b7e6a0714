"""What the kernel says by name, and how short of memory it says that the machine is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from qlora_daemon import boot
from qlora_engine.host import pressure, sysctl
from qlora_engine.host.pressure import Pressure, from_level, from_linux, memory_pressure
from support import recorded
from support.recorded import Recorded

CALM = "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10={} avg60=0.00 avg300=0.00 total=0\n"
MEMORY = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:   {} kB\n"


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """A machine with macOS's sysctl."""
    found = recorded.install(tmp_path / "bin", "sysctl", values={"hw.memsize": 17179869184})
    monkeypatch.setenv("PATH", recorded.on_path(tmp_path / "bin"))
    return found


def test_a_name_has_a_value_or_none(mac: Recorded) -> None:
    """What a Mac of another year does not know must not end a check."""
    assert sysctl.sysctl("hw.memsize") == "17179869184"
    assert sysctl.sysctl("hw.nothing") is None
    mac.check()


def test_a_kernel_that_does_not_answer_is_not_waited_for(mac: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the worst pressure even sysctl hangs, and the daemon may not hang with it."""
    monkeypatch.setattr(sysctl, "SECONDS", 0.2)
    mac.change(hangs=30.0)
    assert sysctl.sysctl("hw.memsize") is None


def test_a_machine_without_sysctl_knows_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small Linux has none, and is no reason to fail."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysctl, "USUAL", str(tmp_path / "sysctl"))
    assert sysctl.sysctl("kernel.ostype") is None


@pytest.mark.parametrize(
    ("level", "expected"), [("1", Pressure.NORMAL), ("2", Pressure.WARNING), ("4", Pressure.CRITICAL), ("9", None)]
)
def test_macos_counts_the_pressure_in_bits(mac: Recorded, level: str, expected: Pressure | None) -> None:
    """A job must stop before macOS ends programs of the person who works at the machine."""
    mac.change(values={pressure.MACOS: level})
    assert memory_pressure() is expected is from_level(level)
    mac.check()


@pytest.mark.parametrize(
    ("lost", "available", "expected"),
    [
        (0.0, 8_000_000, Pressure.NORMAL),
        (10.5, 8_000_000, Pressure.WARNING),
        (41.2, 8_000_000, Pressure.CRITICAL),
        (0.0, 1_500_000, Pressure.WARNING),
        (0.0, 400_000, Pressure.CRITICAL),
    ],
)
def test_linux_says_what_was_lost_and_what_is_left(lost: float, available: int, expected: Pressure) -> None:
    """Whichever of the two is worse."""
    assert from_linux(CALM.format(f"{lost:.2f}"), MEMORY.format(available)) is expected


def test_a_kernel_that_tells_half_is_believed_that_half() -> None:
    """Kernels without pressure accounting, and containers without meminfo."""
    assert from_linux("", MEMORY.format(400_000)) is Pressure.CRITICAL
    assert from_linux(CALM.format("50.00"), "") is Pressure.CRITICAL
    assert from_linux("", "") is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_this_machine_tells() -> None:
    """The files are as this reads them."""
    assert memory_pressure() in Pressure


def test_a_start_of_a_mac_has_a_name(mac: Recorded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where there is no /proc, the kernel is asked; an older one tells the time of its start."""
    monkeypatch.setattr(boot, "LINUX", tmp_path / "none")
    uuid = "7B2C9E0A-1D44-4E0B-8C59-6E1F3A2B4C5D"
    mac.change(values={"kern.bootsessionuuid": uuid})
    assert boot.boot_id() == uuid.lower()
    mac.change(values={"kern.boottime": "{ sec = 1763880000, usec = 123456 } Sun Nov 23 06:40:00 2025"})
    assert boot.boot_id() == "boot-1763880000"
    mac.change(values={})
    assert boot.boot_id() is None
    mac.check()
